"""Where a table goes: a folder that one process at a time fills, part by part.

    .plan.json                  what this table is of and the digest of every shard; written first
    data/part-00000.parquet ..  one a shard, see `parts`
    .errors/00000.json ..       what of a shard was not read or left out; goes with the plan
    errors.jsonl                what could not be read
    manifest.json               written last; then the plan goes

Every file appears by one rename, whole, so whatever kills a run, the next one finds whole parts and
nothing else that counts. A part is kept if its checksums hold and it is of the shard it should be.
The process that holds the lock writes all but the parts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from augself_hub.atomic import hidden_name
from augself_hub.errors import AugSelfError
from augself_hub.features import ARRAY, ERRORS, IDS, MANIFEST, MODEL_KEY, read_manifest
from serving.extraction.parts import Parts, write_file
from serving.extraction.plan import changes

_PLAN, _LOCK = ".plan.json", ".lock"


class Destination:
    """One folder, locked while it is open.

    Args:
        folder: need not exist.

    Raises:
        AugSelfError: (on entering) somebody else writes there, or it holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, Parts(folder)
        self.errors = folder / ERRORS

    def __enter__(self) -> Destination:
        if self.folder.exists() and not self.folder.is_dir():
            raise AugSelfError(f"{self.folder} is a file: choose another output")
        # A folder without a plan or manifest is ours only if there is nothing in it to lose.
        ours = {ERRORS, _LOCK, _PLAN, MANIFEST, self.parts.notes.name}
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

    def begin(self, plan: dict[str, Any]) -> bool:
        """Begin, or go on with, the table of this plan. True: it is finished already.

        Raises:
            AugSelfError: the folder holds a table of another plan; says what changed. Or what it
                says of its plan is damaged.
        """
        name = MANIFEST if (self.folder / MANIFEST).is_file() else _PLAN
        begun = self._read(name)
        try:
            changed = [] if begun is None else changes(begun, plan)
        except (AttributeError, KeyError, TypeError) as error:  # a field is missing, or of no use
            raise self._damaged(name) from error
        if begun is None:
            self.write(_PLAN, json.dumps(plan, indent=2))
        elif changed:
            raise AugSelfError(
                f"{self.folder} was begun with something else: {'; '.join(changed)}. "
                "Choose another output, or remove it"
            )
        self._remove_unfinished()
        self.parts.data.mkdir(exist_ok=True)
        self.parts.notes.mkdir(exist_ok=True)
        return (self.folder / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    def write(self, name: str, text: str) -> None:
        write_file(self.folder / name, lambda file: file.write(text.encode()), self.folder)

    def write_errors(self) -> dict[str, int]:
        """errors.jsonl from what was noted beside the parts; what was left out, by reason."""
        left_out: Counter[str] = Counter()
        lines = []
        for number in range(len(self.parts.paths())):
            note = self.parts.note(number)
            left_out.update(note["left_out"])
            lines += [json.dumps(error) + "\n" for error in note["errors"]]
        self.write(ERRORS, "".join(lines))
        return dict(left_out.most_common())

    def largest_label(self) -> int:
        """The largest label; -1 where there is none."""
        labels = (parquet.read_table(p, columns=["label"])["label"] for p in self.parts.paths())
        return max((max(c.drop_null().to_pylist(), default=-1) for c in labels), default=-1)

    def write_array(self, rows: int, width: int, dtype: str, model: str) -> None:
        """The parts as one features.npy and a parquet file of everything else."""
        paths = self.parts.paths()

        def write_npy(file: BinaryIO) -> None:
            """Part after part: the whole table need not fit into memory."""
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            header = {"descr": descr, "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                features = parquet.read_table(path)["features"].combine_chunks().flatten()
                file.write(np.ascontiguousarray(features).data)

        write_file(self.folder / ARRAY, write_npy, self.folder)
        rest = [parquet.read_table(path, columns=["id", "label", "split"]) for path in paths]
        ids = pa.concat_tables(rest).replace_schema_metadata({MODEL_KEY: model})
        write_file(self.folder / IDS, lambda file: parquet.write_table(ids, file), self.folder)

    def finish(self, manifest: dict[str, Any], keep_parts: bool) -> None:
        """The manifest makes the table whole; what it no longer needs goes."""
        self.write(MANIFEST, json.dumps(manifest, indent=2) + "\n")
        self.clean(keep_parts)

    def clean(self, keep_parts: bool) -> None:
        """The plan goes last: parts without one would be taken for something foreign."""
        self._remove_unfinished()
        shutil.rmtree(self.parts.notes, ignore_errors=True)
        if not keep_parts:
            shutil.rmtree(self.parts.data, ignore_errors=True)
        (self.folder / _PLAN).unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise self._damaged(name) from error
        if not isinstance(found, dict):
            raise self._damaged(name)
        return found

    def _damaged(self, name: str) -> AugSelfError:
        return AugSelfError(f"{self.folder / name} is damaged: remove {self.folder}")

    def _remove_unfinished(self) -> None:
        """What a killed run was writing. Its writer may be alive, on a machine that was cut off."""
        for folder in (self.folder, self.parts.data, self.parts.notes):
            for path in folder.glob(".*.new"):
                path.unlink(missing_ok=True)
