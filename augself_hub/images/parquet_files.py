"""Parquet files as a source: a column of images, perhaps of labels and splits. Imports pyarrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.images.files import (
    DAMAGE,
    file_digest,
    one_line,
    open_file,
    shard_names,
    unreachable,
)
from augself_hub.images.source import Item, ShardError
from augself_hub.images.tables import READ_ROWS, Rows, TableSource, ends_of, labels_of
from augself_hub.images.words import Columns, Labels, splits_in_names


@dataclass(frozen=True)
class ParquetFile:
    """One file, a part of the table.

    Args:
        groups: rows of each row group; None: the file cannot be read, and `reason` says why.
    """

    url: str
    name: str
    split: str | None
    groups: tuple[int, ...] | None
    reason: str = ""
    labels: Any = None
    splits: Any = None
    root: Path | None = None
    image: str = ""

    @property
    def size(self) -> int | None:
        return None if self.groups is None else sum(self.groups)

    @cached_property
    def ends(self) -> list[str] | None:
        """Of a struct only its paths are read."""
        with open_file(self.url) as file, parquet.ParquetFile(file) as opened:
            kind = opened.schema_arrow.field(self.image).type
            if _is_text(kind):
                return ends_of(opened.read(columns=[self.image])[self.image])
            if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
                return None
            return ends_of(opened.read(columns=[f"{self.image}.path"])[self.image])

    @property
    def roots(self) -> tuple[Path, ...]:
        own = () if "://" in self.url else (Path(self.url).parent,)
        return (*([self.root] if self.root else []), *own)

    @classmethod
    def open(cls, url: str, name: str, split: str | None, root: Path | None) -> ParquetFile:
        try:
            with open_file(url) as file:
                footer = parquet.read_metadata(file)
        except DAMAGE as error:
            return cls._damaged(url, name, split, error)
        sizes = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
        return cls(url, name, split, sizes, root=root)

    @classmethod
    def _damaged(cls, url: str, name: str, split: str | None, error: Exception) -> ParquetFile:
        if (failed := unreachable(url, error)) is not None:
            raise failed from error
        return cls(url, name, split, None, one_line(error))

    def with_columns(self, found: Columns) -> ParquetFile:
        """The columns of labels and splits, or why they cannot be read."""
        names = [name for name in (found.label, found.split) if name]
        if self.groups is None or not names:
            return replace(self, image=found.image or "")
        try:
            with open_file(self.url) as file, parquet.ParquetFile(file) as opened:
                there = set(opened.schema_arrow.names)
                read = opened.read(columns=[name for name in names if name in there])
        except DAMAGE as error:
            return self._damaged(self.url, self.name, self.split, error)
        columns = {name: read[name] for name in read.column_names}
        labels, splits = (columns.get(name or "") for name in (found.label, found.split))
        return replace(self, labels=labels, splits=splits, image=found.image or "")

    def shards(self, rows: Rows, count: int) -> list[ParquetShard]:
        """Row groups together until there are about so many rows. A group is never cut."""
        if self.groups is None:
            return [ParquetShard(self.url, self.name, rows, None, None, 0)]
        shards, groups, images, start = [], [], 0, 0
        for group, size in enumerate(self.groups):
            groups.append(group)
            images += size
            if images >= count or group == len(self.groups) - 1:
                known = images if rows.only is None else None
                shards.append(ParquetShard(self.url, self.name, rows, tuple(groups), known, start))
                start, groups, images = start + images, [], 0
        return shards


def parquet_source(
    location: str,
    urls: Sequence[str],
    columns: Columns,
    notes: Sequence[str] = (),
    root: Path | None = None,
) -> TableSource:
    """Find the columns and the labels; of damaged files only the shard will speak.

    Args:
        root: a folder, other than a file's own, that paths in it may lead into.

    Raises:
        AugSelfError: no file can be read, or a column is missing or holds no images.
    """
    names, told = shard_names(urls), list(notes)
    named = zip(urls, names, splits_in_names(names), strict=True)
    files = [ParquetFile.open(url, name, split, root) for url, name, split in named]
    first = next((file for file in files if file.groups is not None), None)
    if first is None:
        raise AugSelfError(f"{location}: not one parquet file can be read")
    with open_file(first.url) as opened:
        schema = parquet.read_schema(opened)
    noted, images = _noted(schema), [field.name for field in schema if _images(field.type)]
    found = columns.found(schema.names, location, images, next(iter(noted), ""))
    kind = schema.field(found.image).type
    if not (_images(kind) or _is_text(kind)):
        raise AugSelfError(
            f"column {found.image} of {location} holds {kind} and no images: bytes, paths below "
            "the table's folder and base64 are read; --column image=NAME names another"
        )
    if found.label is not None and (wrong := _no_class(schema.field(found.label).type)):
        if columns.label is not None:
            raise AugSelfError(
                f"column {found.label} of {location} holds {wrong}: labels are class numbers or "
                "names, one an image"
            )
        told.append(f"column {found.label} holds {wrong} and is not read as labels")
        found = replace(found, label=None)
    files = [file.with_columns(found) for file in files]
    if found.label in noted and pa.types.is_integer(schema.field(found.label).type):
        rule = Labels(noted[found.label])
    else:
        written = [file.labels for file in files if file.labels is not None]
        rule = labels_of(written, found.label or "", location)
    rows = Rows(found, rule)
    opener = partial(_opened, image=found.image or "")
    return TableSource(location, "parquet", files, rows, opener, tuple(told))


def _opened(files: Sequence[ParquetFile], image: str) -> list[Any]:
    """By way of datasets: rows of parquet cannot be drawn one by one."""
    from augself_hub.images.hugging_face import arrow_of_parquet

    data, start, parts = arrow_of_parquet([file.url for file in files], image), 0, []
    for file in files:
        parts.append(data.select(range(start, start + (file.size or 0))))
        start += file.size or 0
    return parts


@dataclass(frozen=True)
class ParquetShard:
    """Neighbouring row groups of one file.

    Args:
        groups: their numbers; None of a file that cannot be read.
        images: rows in them; None where only reading tells. start: number of the first row.
    """

    url: str
    file: str
    rows: Rows
    groups: tuple[int, ...] | None
    images: int | None
    start: int

    @property
    def name(self) -> str:
        return f"{self.file}, row groups {self.groups}" if self.groups else self.file

    @cached_property
    def digest(self) -> str:
        told = (self.rows.columns, self.rows.rule.classes, self.groups)
        return file_digest(self.url, *told, *([self.rows.only] if self.rows.only else []))

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        try:
            with open_file(self.url) as file, parquet.ParquetFile(file) as table:
                batches = table.iter_batches(READ_ROWS, self.groups, self.rows.wanted)
                rows = (row for batch in batches for row in batch.to_pylist())
                yield from self.rows.items(lambda n: f"{self.file}/{self.start + n}", rows)
        except DAMAGE as error:
            raise (
                unreachable(self.url, error)
                or ShardError(f"the rest of the shard is damaged: {one_line(error)}")
            ) from error


def _images(kind: pa.DataType) -> bool:
    """Bytes, or a struct with bytes or a path: an image column, whatever it is called."""
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return pa.types.is_fixed_size_binary(kind) or any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _no_class(kind: pa.DataType) -> str:
    """What a column holds that cannot be labels; nothing where it can."""
    if pa.types.is_dictionary(kind):
        return _no_class(kind.value_type)
    numbers = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_null)
    return "" if _is_text(kind) or any(test(kind) for test in numbers) else str(kind)


def _noted(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its classes, of the ClassLabel columns that datasets has noted."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"].items()
        found = {c: f["names"] for c, f in features if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        column: names
        for column, names in found.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }
