"""The parts of a table, one a shard of the source, and what is noted of each.

    data/part-00000.parquet    the rows of shard 0
    .errors/00000.json         what of it was not read or left out

Any process may write them, on any machine that sees the folder, and two may write the same one:
each under a name of its own until it is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from augself_hub.atomic import whole_file
from augself_hub.errors import AugSelfError
from augself_hub.features import MODEL_KEY, PARTS

SHARD_KEY = b"augself.shard"
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


class Parts:
    """The parts of the table in a folder, by their numbers.

    Attributes:
        data, notes: where they are, and what is noted of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.notes = folder, folder / "data", folder / ".errors"

    def read(self, number: int, shard: str) -> Counts | None:
        """What is in a part, or None where it is missing, damaged or of another shard."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                rows = sum(batch.num_rows for batch in file.iter_batches())
                if (file.schema_arrow.metadata or {})[SHARD_KEY].decode() == shard:
                    errors = len(self.note(number)["errors"])
                    return Counts(rows + errors, rows, errors)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            logger.warning("%s is damaged and is made again: %s", path, str(error).splitlines()[0])
        return None

    def write(self, number: int, part: Part, shard: str, model: str) -> Counts:
        """Add one part; its metadata says what it is of. What could not be read is there first."""
        note = json.dumps({"errors": part.errors, "left_out": part.left_out}).encode()
        writer = uuid.uuid4().hex
        write_file(self._note_path(number), lambda file: file.write(note), self.folder, writer)
        table = part.table.replace_schema_metadata({MODEL_KEY: model, SHARD_KEY: shard})
        texts = [f.name for f in table.schema if f.type == pa.string()]  # numbers do not repeat
        write_file(
            self._path(number),
            lambda file: parquet.write_table(
                table, file, use_dictionary=texts, write_page_checksum=True
            ),
            self.folder,
            writer,
        )
        rows, errors = table.num_rows, len(part.errors)
        return Counts(rows + errors, rows, errors)

    def has(self, number: int) -> bool:
        """Whether a part is there; not whether it is whole."""
        return self._path(number).is_file()

    def note(self, number: int) -> dict[str, Any]:
        """`errors` and `left_out` of a part.

        Raises:
            ValueError: it is damaged. OSError: it cannot be read.
        """
        note = json.loads(self._note_path(number).read_bytes())
        errors, left_out = (
            (note.get("errors"), note.get("left_out")) if isinstance(note, dict) else (None, None)
        )
        if not isinstance(errors, list) or not all(isinstance(error, dict) for error in errors):
            raise ValueError("what could not be read of it is no list")
        if not isinstance(left_out, dict) or not all(type(n) is int for n in left_out.values()):
            raise ValueError("what was left out of it is no count")
        return {"errors": errors, "left_out": left_out}

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob(PARTS))

    def _path(self, number: int) -> Path:
        return self.data / f"part-{number:05}.parquet"

    def _note_path(self, number: int) -> Path:
        return self.notes / f"{number:05}.json"


def write_file(
    path: Path, write: Callable[[BinaryIO], Any], folder: Path, writer: str = ""
) -> None:
    """A file that is there whole or not at all, also after a power cut.

    Args:
        folder: of the table. writer: names what is written until it is whole, where several may
            write it at once.

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
            f"the disk of {folder} is full ({error.strerror}): the parts written so far are kept; "
            "make room and give the same command again"
        ) from error
