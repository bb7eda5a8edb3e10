"""Where a table goes: a folder that one process at a time fills, part by part.

    .plan.json                  what this table is of and the digest of every shard; written first
    data/part-00000.parquet ..  one a shard
    .errors/00000.json ..       what of a shard was not read or left out; goes with the plan
    errors.jsonl                what could not be read
    manifest.json               written last; then the plan goes

Every file appears by one rename, whole, so whatever kills a run, the next one finds whole parts and
nothing else that counts. A part is kept if its checksums hold and it is of the shard it should be.

The process that holds the lock writes all but the parts. These any process may write, on any
machine that sees the folder, and two may write the same one: each under a name of its own until it
is whole.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from augself_hub.atomic import hidden_name, whole_file
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import ARRAY, ERRORS, IDS, MANIFEST, MODEL_KEY, PARTS, read_manifest

SHARD_KEY = b"augself.shard"
MOST_PARTS = 100_000  # part-00000 to part-99999: names that sort as their numbers do
_PLAN = ".plan.json"
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """images = rows + errors; a shard that is damaged counts as one error beside its images."""

    images: int = 0
    rows: int = 0
    errors: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images, self.rows + other.rows, self.errors + other.errors
        )


@dataclass(frozen=True)
class Part:
    """What becomes of a shard.

    Args:
        table: its rows. errors: {id, reason} of what could not be read.
        left_out: reason -> how many, of what was passed over and is no error.
    """

    table: pa.Table
    errors: list[dict[str, str]]
    left_out: dict[str, int]


class Destination:
    """One folder, locked while it is open. Parts can be read and written without opening it.

    Args:
        folder: need not exist.

    Raises:
        AugSelfError: (on entering) somebody else writes there, or it holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.errors = folder / ERRORS
        self._notes = folder / ".errors"

    def __enter__(self) -> Destination:
        if self.folder.exists() and not self.folder.is_dir():
            raise AugSelfError(f"{self.folder} is a file: choose another output")
        # A folder without a plan or manifest is ours only if there is nothing in it to lose.
        ours = {ERRORS, _LOCK, _PLAN, MANIFEST, self._notes.name}
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if not there & {_PLAN, MANIFEST} and there - ours - {hidden_name(name) for name in ours}:
            raise AugSelfError(
                f"{self.folder} exists and is no extraction: choose another output or remove it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / _LOCK)
        try:
            self._lock.acquire(timeout=0)  # the system gives it back when this process dies
        except Timeout:
            raise AugSelfError(f"{self.folder} is being written by another process") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def adopt(self, plan: dict[str, Any]) -> bool:
        """Begin, or go on with, the table of this plan. True: it is finished already.

        Raises:
            AugSelfError: the folder holds a table of another plan; says what changed.
        """
        begun = self._read(MANIFEST) or self._read(_PLAN)
        if begun is None:
            self.write(_PLAN, json.dumps(plan, indent=2))
        elif changed := changes(begun, plan):
            raise AugSelfError(
                f"{self.folder} was begun with something else: {'; '.join(changed)}. "
                "Choose another output, or remove it"
            )
        self._tidy()
        self.data.mkdir(exist_ok=True)
        self._notes.mkdir(exist_ok=True)
        return (self.folder / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except ValueError as error:
            raise AugSelfError(f"{path} is damaged: remove {self.folder}") from error

    def _tidy(self) -> None:
        """Remove what a killed run was writing."""
        for path in (
            p for folder in (self.folder, self.data, self._notes) for p in folder.glob(".*.new")
        ):
            path.unlink(missing_ok=True)  # its writer may be alive, on a machine that was cut off

    def part(self, number: int, shard: str) -> Counts | None:
        """What is in a part, or None where it is missing, damaged or of another shard."""
        path = self._part(number)
        if not path.is_file():
            return None
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                rows = sum(batch.num_rows for batch in file.iter_batches())
                if (file.schema_arrow.metadata or {})[SHARD_KEY].decode() == shard:
                    errors = len(self._note(number)["errors"])
                    return Counts(rows + errors, rows, errors)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            logger.warning("%s is damaged and is made again: %s", path, str(error).splitlines()[0])
        return None

    def write_part(self, number: int, part: Part, shard: str, model: str) -> Counts:
        """Add one part; its metadata says what it is of. What could not be read is there first."""
        note = json.dumps({"errors": part.errors, "left_out": part.left_out}).encode()
        writer = uuid.uuid4().hex
        self._write_file(self._note_path(number), lambda file: file.write(note), writer)
        table = part.table.replace_schema_metadata({MODEL_KEY: model, SHARD_KEY: shard})
        texts = [f.name for f in table.schema if f.type == pa.string()]  # numbers do not repeat
        self._write_file(
            self._part(number),
            lambda file: parquet.write_table(
                table, file, use_dictionary=texts, write_page_checksum=True
            ),
            writer,
        )
        rows, errors = table.num_rows, len(part.errors)
        return Counts(rows + errors, rows, errors)

    def _note_path(self, number: int) -> Path:
        return self._notes / f"{number:05}.json"

    def _note(self, number: int) -> dict[str, Any]:
        note: dict[str, Any] = json.loads(self._note_path(number).read_bytes())
        return note

    def has_part(self, number: int) -> bool:
        """Whether a part is there; not whether it is whole."""
        return self._part(number).is_file()

    def _part(self, number: int) -> Path:
        return self.data / f"part-{number:05}.parquet"

    def write(self, name: str, text: str) -> None:
        self._write_file(self.folder / name, lambda file: file.write(text.encode()))

    def _write_file(self, path: Path, write: Callable[[BinaryIO], Any], writer: str = "") -> None:
        """A file that is there whole or not at all, also after a power cut.

        Args:
            writer: names what is written until it is whole, where several may write it at once.

        Raises:
            AugSelfError: the disk is full.
        """
        try:
            with whole_file(path, writer) as file:
                write(file)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise AugSelfError(
                f"the disk of {self.folder} is full ({error.strerror}): the parts written so far "
                "are kept; make room and give the same command again"
            ) from error

    def write_errors(self) -> dict[str, int]:
        """errors.jsonl from what was noted beside the parts; what was left out, by reason."""
        left_out: Counter[str] = Counter()
        lines = []
        for number in range(len(self.parts())):
            note = self._note(number)
            left_out.update(note["left_out"])
            lines += [json.dumps(error) + "\n" for error in note["errors"]]
        self.write(ERRORS, "".join(lines))
        return dict(left_out.most_common())

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob(PARTS))

    def largest_label(self) -> int:
        """The largest label; -1 where there is none."""
        columns = (parquet.read_table(path, columns=["label"])["label"] for path in self.parts())
        return max((max(c.drop_null().to_pylist(), default=-1) for c in columns), default=-1)

    def write_array(self, rows: int, width: int, dtype: str, model: str) -> None:
        """The parts as one features.npy and a parquet file of everything else."""

        def write_npy(file: BinaryIO) -> None:
            """Part after part: the whole table need not fit into memory."""
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for path in self.parts():
                features = parquet.read_table(path)["features"].combine_chunks().flatten()
                file.write(np.ascontiguousarray(features).data)

        self._write_file(self.folder / ARRAY, write_npy)
        rest = [parquet.read_table(p, columns=["id", "label", "split"]) for p in self.parts()]
        ids = pa.concat_tables(rest).replace_schema_metadata({MODEL_KEY: model})
        self._write_file(self.folder / IDS, lambda file: parquet.write_table(ids, file))

    def finish(self, manifest: dict[str, Any], keep_parts: bool) -> None:
        """The manifest makes the table whole; what it no longer needs goes."""
        self.write(MANIFEST, json.dumps(manifest, indent=2) + "\n")
        self.clean(keep_parts)

    def clean(self, keep_parts: bool) -> None:
        """The plan goes last: parts without one would be taken for something foreign."""
        self._tidy()
        shutil.rmtree(self._notes, ignore_errors=True)
        if not keep_parts:
            shutil.rmtree(self.data, ignore_errors=True)
        (self.folder / _PLAN).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave only errors.jsonl, so that nothing stands in the next run's way."""
        self.clean(keep_parts=False)


_WORDS = {
    "table": "what is extracted",
    "preprocessing": "the preprocessing",
    "provider": "the provider",
    "precision": "the precision",
    "dtype": "--dtype",
    "normalized": "--normalize",
    "layout": "--format",
    "shard_rows": "--shard-rows",
}


def changes(begun: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """What differs between two plans, in words."""
    if begun.get("format") != plan["format"]:
        return ["another version of augself-hub"]
    found = []
    if begun["model"]["sha256"] != plan["model"]["sha256"]:
        old, new = (p["model"]["sha256"][:12] for p in (begun, plan))
        found.append(f"the model ({old} then, {new} now)")
    found += [
        f"{word} ({begun[key]} then, {plan[key]} now)"
        for key, word in _WORDS.items()
        if begun[key] != plan[key]
    ]
    if begun["shards"] != plan["shards"] and begun["shard_rows"] == plan["shard_rows"]:
        pairs = itertools.zip_longest(begun["shards"], plan["shards"])
        first = next((new or old)["name"] for old, new in pairs if old != new)
        counts = f"{len(begun['shards'])} shards then, {len(plan['shards'])} now"
        found.append(f"the input, first in {first} ({counts})")
    return found


def refuse_too_many(shards: Sequence[Any]) -> None:
    """
    Raises:
        UsageError: more shards than a table may have parts.
    """
    if len(shards) > MOST_PARTS:
        raise UsageError(
            f"{len(shards)} shards are more than the {MOST_PARTS} parts of a table: raise "
            "--shard-rows, or extract the source as several tables"
        )
