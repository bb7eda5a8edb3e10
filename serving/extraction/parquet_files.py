"""Parquet files as a source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from serving.extraction.files import DAMAGE, damaged, file_digest, last_name, open_file
from serving.extraction.rows import READ_ROWS, row_item
from serving.extraction.sources import Columns, Item


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with an image column: binary, or a struct of bytes and path.

    Args:
        label_names: of a column of strings, or as a Hugging Face dataset left them.
    """

    location: str
    urls: Sequence[str]
    columns: Columns
    label_names: list[str]

    @classmethod
    def open(cls, location: str, urls: Sequence[str], columns: Columns) -> ParquetSource:
        """Find the columns and the label names; of damaged files only the shard will speak.

        Raises:
            AugSelfError: no file can be read, or a column is missing.
        """
        schemas = [schema for url in urls if (schema := _schema(url)) is not None]
        if not schemas:
            raise AugSelfError(f"{location}: not one parquet file can be read")
        found = columns.found(schemas[0].names, location)
        return cls(location, urls, found, _label_names(schemas[0], found.label, urls))

    def shards(self, rows: int) -> list[ParquetShard]:
        return [
            ParquetShard(url, self.columns, self.label_names, groups, images)
            for url in self.urls
            for groups, images in _gathered(url, rows)
        ]


@dataclass(frozen=True)
class ParquetShard:
    """Neighbouring row groups of one file.

    Args:
        groups: their numbers; None of a file that cannot be read.
        images: rows in them.
    """

    url: str
    columns: Columns
    label_names: list[str]
    groups: tuple[int, ...] | None
    images: int | None

    @property
    def name(self) -> str:
        return (
            f"{last_name(self.url)}, row groups {self.groups}"
            if self.groups
            else last_name(self.url)
        )

    @cached_property
    def digest(self) -> str:
        return file_digest(self.url, self.columns, self.label_names, self.groups)

    def items(self) -> Iterator[Item]:
        wanted = [c for c in (self.columns.image, self.columns.label, self.columns.split) if c]
        try:
            with open_file(self.url) as file, parquet.ParquetFile(file) as table:
                start = sum(table.metadata.row_group(g).num_rows for g in range(self._first))
                for batch in table.iter_batches(READ_ROWS, self.groups, wanted):
                    yield from self._items(batch.to_pylist(), start)
                    start += batch.num_rows
        except DAMAGE as error:
            raise damaged(self.url, error) from error

    @property
    def _first(self) -> int:
        return self.groups[0] if self.groups else 0

    def _items(self, rows: list[dict[str, Any]], start: int) -> Iterator[Item]:
        for number, row in enumerate(rows, start):
            name, root = f"{last_name(self.url)}/{number}", Path(self.url).parent
            yield row_item(name, row, self.columns, self.label_names, root)


def _schema(url: str) -> pa.Schema | None:
    try:
        with open_file(url) as file:
            return parquet.read_schema(file)
    except DAMAGE:
        return None


def _label_names(schema: pa.Schema, label: str | None, urls: Iterable[str]) -> list[str]:
    """The names of a column of class numbers (if known) or of strings."""
    if label is None:
        return []
    kind = schema.field(label).type
    if pa.types.is_integer(kind):
        return _hugging_face_names(schema, label)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise AugSelfError(f"column {label} holds {kind}: labels are class numbers or strings")
    readable = (url for url in urls if _schema(url) is not None)
    values = (pc.unique(_column(url, label)).to_pylist() for url in readable)
    return sorted({value for some in values for value in some if value is not None})


def _hugging_face_names(schema: pa.Schema, label: str) -> list[str]:
    """What datasets notes in a parquet file's metadata about a ClassLabel column."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = noted.get("info", {}).get("features", {}).get(label, {})
    return list(feature.get("names", ()))


def _column(url: str, name: str) -> pa.ChunkedArray:
    with open_file(url) as file:
        return parquet.read_table(file, columns=[name])[name]


def _gathered(url: str, rows: int) -> Iterator[tuple[tuple[int, ...] | None, int | None]]:
    """Row groups together until there are about so many rows. A group is never cut."""
    try:
        with open_file(url) as file:
            footer = parquet.read_metadata(file)
    except DAMAGE:
        yield None, None
        return
    groups: list[int] = []
    images = 0
    for group in range(footer.num_row_groups):
        groups.append(group)
        images += footer.row_group(group).num_rows
        if images >= rows or group == footer.num_row_groups - 1:
            yield tuple(groups), images
            groups, images = [], 0
