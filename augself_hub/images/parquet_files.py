"""Parquet files as a source: a column of images, perhaps of labels and splits. Imports pyarrow."""

from __future__ import annotations

import json
import os
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
from augself_hub.images.tables import MAX_TEXT, Rows, TableSource, ends_of, labels_of, values_of
from augself_hub.images.words import MAX_NAME, Columns, Labels, splits_in_names

MOST_ROWS = 2**20  # or as many as the file has bytes
MAX_UNPACKED, MOST_PACKED = 2**28, 100  # bytes of a column in a row group; times what is stored


@dataclass(frozen=True)
class ParquetFile:
    """One file, a part of the table.

    Args:
        groups: rows of each row group; None: the file cannot be read, and `reason` says why.
        schema: its columns, as Arrow has them.
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
    schema: Any = None

    @property
    def size(self) -> int | None:
        return None if self.groups is None else sum(self.groups)

    @cached_property
    def ends(self) -> list[str] | None:
        """Of a struct only its paths are read."""
        with open_file(self.url) as file:
            kind = parquet.read_schema(file).field(self.image).type
            if not _is_text(kind) and not (
                pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
            ):
                return None
            name = self.image if _is_text(kind) else f"{self.image}.path"
            column = _read(file, [name])[self.image]
        if pa.types.is_struct(column.type):
            paths = [chunk.field("path") for chunk in column.chunks]
            column = pa.chunked_array(paths, paths[0].type if paths else pa.string())
        return ends_of(column)

    @property
    def roots(self) -> tuple[Path, ...]:
        own = () if "://" in self.url else (Path(self.url).parent,)
        return (*([self.root] if self.root else []), *own)

    @classmethod
    def open(cls, url: str, name: str, split: str | None, root: Path | None) -> ParquetFile:
        try:
            with open_file(url) as file:
                size, footer = file.seek(0, os.SEEK_END), parquet.read_metadata(file)
                refuse_bomb(footer, size)
                schema = footer.schema.to_arrow_schema()
        except DAMAGE as error:
            return cls._damaged(url, name, split, error)
        sizes = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
        return cls(url, name, split, sizes, root=root, schema=schema)

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
            with open_file(self.url) as file:
                read = _read(file, [name for name in names if name in self.schema.names])
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
        AugSelfError: no file can be read, a column is missing or holds no images, or the files do
            not fit together. Labels and splits may be missing in some: their rows have none.
    """
    names, remarks = shard_names(urls), list(notes)
    named = zip(urls, names, splits_in_names(names), strict=True)
    files = [ParquetFile.open(url, name, split, root) for url, name, split in named]
    first = next((file for file in files if file.groups is not None), None)
    if first is None:
        raise AugSelfError(f"{location}: not one parquet file can be read: {files[0].reason}")
    readable = [file for file in files if file.groups is not None]
    fields = {f.name: f for file in reversed(readable) for f in file.schema}  # the first one's win
    names = list(dict.fromkeys(name for file in readable for name in file.schema.names))
    repeated = [n for file in readable for n in set(file.schema.names) if _twice(file.schema, n)]
    noted, images = _noted(readable, location), [n for n in names if _images(fields[n].type)]
    found = columns.found([*names, *repeated], location, images, next(iter(noted), ""))
    for file in readable:
        if found.image not in file.schema.names:
            raise AugSelfError(
                f"{file.url} has no column {found.image}, as other files of {location} have: "
                "extract it apart, or name a column of all with --column image=NAME"
            )
    kind = fields[found.image or ""].type
    if not (_images(kind) or _is_text(kind)):
        raise AugSelfError(
            f"column {found.image} of {location} holds {kind} and no images: bytes, paths below "
            "the table's folder and base64 are read; --column image=NAME names another"
        )
    kinds = [f.schema.field(found.label).type for f in readable if found.label in f.schema.names]
    if wrong := next(filter(None, map(_no_class, kinds)), ""):
        if columns.label is not None:
            raise AugSelfError(
                f"column {found.label} of {location} holds {wrong}: labels are class numbers or "
                "names, one an image"
            )
        remarks.append(f"column {found.label} holds {wrong} and is not read as labels")
        found = replace(found, label=None)
    files = [file.with_columns(found) for file in files]
    if found.label in noted and all(map(pa.types.is_integer, kinds)):
        rule = Labels(noted[found.label])
    else:
        written = [file.labels for file in files if file.labels is not None]
        rule = labels_of(written, found.label or "", location)
    rows = Rows(found, rule)
    opener = partial(_opened, image=found.image or "")
    return TableSource(location, "parquet", files, rows, opener, tuple(remarks))


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
        facts = (self.rows.columns, self.rows.rule.classes, self.groups)
        return file_digest(self.url, *facts, *([self.rows.only] if self.rows.only else []))

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        try:
            with open_file(self.url) as file:
                image, *names = self.rows.wanted
                there = parquet.read_schema(file).names
                names = [name for name in names if name in there]
                read = _read(file, names, self.groups)
                others = {name: list(values_of(read[name], _short)) for name in names}
                with parquet.ParquetFile(file) as table:
                    # One at a time: Arrow copies the value of a dictionary for each.
                    cells = (b.column(0)[0] for b in table.iter_batches(1, self.groups, [image]))
                    rows = (
                        {image: _cell(cell)} | {name: others[name][n] for name in names}
                        for n, cell in enumerate(cells)
                    )
                    yield from self.rows.items(lambda n: f"{self.file}/{self.start + n}", rows)
        except DAMAGE as error:
            raise (
                unreachable(self.url, error)
                or ShardError(f"the rest of the shard is damaged: {one_line(error)}")
            ) from error


def _short(value: Any) -> Any:
    """A label or a split, so long at most that it is still seen to be too long."""
    return value[: 2 * MAX_NAME] if isinstance(value, str | bytes) else value


def _read(file: Any, columns: list[str], groups: Sequence[int] | None = None) -> pa.Table:
    """Columns of numbers and texts whole, texts that repeat once.

    Args:
        groups: of rows; None: all.
    """
    with parquet.ParquetFile(file) as opened:
        schema = opened.schema
        leaves = [schema.column(n) for n in range(len(schema.names))]
    texts = [
        leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path in columns
    ]
    with parquet.ParquetFile(file, read_dictionary=texts) as opened:
        # Group by group: Arrow cannot join dictionaries of several of them inside a struct.
        numbers = range(opened.num_row_groups) if groups is None else groups
        parts = [opened.read_row_group(number, columns=columns) for number in numbers]
        return pa.concat_tables(parts) if parts else opened.read_row_groups([], columns=columns)


def refuse_bomb(footer: parquet.FileMetaData, size: int) -> None:
    """Rows and bytes that no file of this size has, but for one that was made to.

    Raises:
        ValueError: says which.
    """
    if footer.num_rows > max(MOST_ROWS, size):
        raise ValueError(f"{footer.num_rows} rows in {size} bytes")
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(group.num_columns):
            chunk = group.column(c)
            packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
            if unpacked > max(MAX_UNPACKED, MOST_PACKED * packed):
                raise ValueError(f"{packed} bytes that unpack to {unpacked}")


def _cell(scalar: pa.Scalar) -> Any:
    """A cell as Python has it; bytes, and texts of more than any image's, are not copied."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        return {name: _cell(scalar[name]) for name in ("bytes", "path") if name in scalar}
    if isinstance(scalar, pa.DictionaryScalar):
        return _cell(scalar.value)
    if hasattr(scalar, "as_buffer"):
        data = memoryview(scalar.as_buffer())
        if not _is_text(scalar.type) or len(data) > MAX_TEXT:
            return data
    return scalar.as_py()


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


def _twice(schema: pa.Schema, name: str) -> bool:
    return len(schema.get_all_field_indices(name)) > 1


def _noted(files: Sequence[ParquetFile], location: str) -> dict[str, list[str]]:
    """Column -> the names of its classes, of the ClassLabel columns that datasets has noted.

    Raises:
        AugSelfError: two files name the classes otherwise, so that a number means two things.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        for column, names in _noted_in(file.schema).items():
            if found.setdefault(column, names) != names:
                raise AugSelfError(
                    f"{file.url} names the classes of {column} otherwise than another file of "
                    f"{location}: extract it apart, or name other labels with --column label=NAME"
                )
    return found


def _noted_in(schema: pa.Schema) -> dict[str, list[str]]:
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
