"""Sources that hold the images' bytes: WebDataset tars, parquet files, Hugging Face datasets.

Tars and parquet files may be URLs of any protocol fsspec knows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from augself_hub.errors import AugSelfError, MissingExtra
from augself_hub.preprocess import SUFFIXES
from augself_hub.tars import StrictHeader, key_and_suffix
from serving.extraction.sources import Columns, Item, ShardError, stamp

_READ_ROWS = 16  # undecoded images of a table in memory at once
_DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, LZMAError, pa.ArrowException)


@dataclass(frozen=True)
class TarSource:
    """WebDataset shards: samples are neighbouring members with one key, `key.jpg`, `key.cls`.

    Each tar is one shard. Labels are the numbers in the .cls members.
    """

    location: str
    urls: Sequence[str]

    @property
    def label_names(self) -> list[str]:
        return []

    def shards(self, rows: int) -> list[TarShard]:
        return [TarShard(url) for url in self.urls]


@dataclass(frozen=True)
class TarShard:
    """One tar, read from its beginning to its end; compressed ones too.

    A sample is whole when the next one begins: damage takes the one before it along, which may have
    lost its label.
    """

    url: str

    @property
    def name(self) -> str:
        return _base(self.url)

    @cached_property
    def digest(self) -> str:
        return _digest(self.url)

    @property
    def images(self) -> None:
        return None

    def items(self) -> Iterator[Item]:
        try:
            with (
                _open(self.url) as file,
                tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictHeader) as tar,
            ):
                for key, members in groupby(_members(tar), lambda member: member[0]):
                    yield _sample(f"{self.name}/{key}", {kind: data for _, kind, data in members})
        except _DAMAGE as error:
            raise _damage(self.url, error) from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """(key, suffix, content) of the images and labels, in the archive's order."""
    for member in tar:
        key, suffix = key_and_suffix(member.name)
        if member.isfile() and key and (suffix in SUFFIXES or suffix == ".cls"):
            yield key, suffix, tar.extractfile(member).read()  # type: ignore[union-attr]
        tar.members = []  # else it remembers every member it has passed


def _sample(name: str, files: dict[str, bytes]) -> Item:
    image = next((data for suffix, data in files.items() if suffix in SUFFIXES), None)
    text = files.get(".cls", b"").strip()
    if image is None:
        return Item((name,), (), problem="the sample has no image")
    if text and not (text.isdigit() and int(text) < 2**31):
        return Item((name,), (), problem="the sample's .cls is not a class number")
    return Item((name,), (image,), int(text) if text else None)


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
        return f"{_base(self.url)}, row groups {self.groups}" if self.groups else _base(self.url)

    @cached_property
    def digest(self) -> str:
        return _digest(self.url, self.columns, self.label_names, self.groups)

    def items(self) -> Iterator[Item]:
        wanted = [c for c in (self.columns.image, self.columns.label, self.columns.split) if c]
        try:
            with _open(self.url) as file, parquet.ParquetFile(file) as table:
                start = sum(table.metadata.row_group(g).num_rows for g in range(self._first))
                for batch in table.iter_batches(_READ_ROWS, self.groups, wanted):
                    yield from self._items(batch.to_pylist(), start)
                    start += batch.num_rows
        except _DAMAGE as error:
            raise _damage(self.url, error) from error

    @property
    def _first(self) -> int:
        return self.groups[0] if self.groups else 0

    def _items(self, rows: list[dict[str, Any]], start: int) -> Iterator[Item]:
        for number, row in enumerate(rows, start):
            name, root = f"{_base(self.url)}/{number}", Path(self.url).parent
            yield row_item(name, row, self.columns, self.label_names, root)


def row_item(
    name: str, row: dict[str, Any], columns: Columns, label_names: Sequence[str], root: Path
) -> Item:
    """A table's row -> an item. The image's own path, where it has one, ends its name.

    Args:
        root: what the paths in the table start from.
    """
    image, label = row[columns.image or ""], row.get(columns.label or "")
    image = image if isinstance(image, dict) else {"bytes": image}
    data, path = image.get("bytes"), image.get("path")
    name = f"{name}/{Path(path).name}" if path else name
    images = (data,) if data is not None else (root / path,) if path else ()
    label = label_names.index(label) if isinstance(label, str) else label
    label = None if label is None or label < 0 else label  # -1 means unlabelled in datasets
    problem = None if images else "the row has no image"
    return Item((name,), images, label, row.get(columns.split or ""), problem)


def _schema(url: str) -> pa.Schema | None:
    try:
        with _open(url) as file:
            return parquet.read_schema(file)
    except _DAMAGE:
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
    with _open(url) as file:
        return parquet.read_table(file, columns=[name])[name]


def _gathered(url: str, rows: int) -> Iterator[tuple[tuple[int, ...] | None, int | None]]:
    """Row groups together until there are about so many rows. A group is never cut."""
    try:
        with _open(url) as file:
            footer = parquet.read_metadata(file)
    except _DAMAGE:
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


@dataclass(frozen=True)
class DatasetSource:
    """A Hugging Face dataset: every split, or one.

    Args:
        splits: split -> dataset; its image column yields bytes that are not decoded.
    """

    location: str
    splits: dict[str, Any]
    columns: Columns
    label_names: list[str]

    @classmethod
    def open(cls, location: str, columns: Columns, split: str | None = None) -> DatasetSource:
        """Load what `save_to_disk` wrote, or a dataset of the Hub (`org/name@revision`).

        Raises:
            MissingExtra: without datasets.
            AugSelfError: there is no such dataset, split or column.
        """
        splits = _datasets(location)
        if split is not None and split not in splits:
            raise AugSelfError(f"{location} has no split {split}, only {', '.join(splits)}")
        splits = {name: data for name, data in splits.items() if split in (None, name)}
        found = columns.found(next(iter(splits.values())).column_names, location)
        undecoded = {name: _undecoded(data, found) for name, data in splits.items()}
        return cls(location, undecoded, found, _class_names(undecoded, found.label))

    def shards(self, rows: int) -> list[DatasetShard]:
        return [
            DatasetShard(split, data, range(len(data))[start : start + rows], self.label_names)
            for split, data in self.splits.items()
            for start in range(0, len(data), rows)
        ]


@dataclass(frozen=True)
class DatasetShard:
    """Consecutive rows of one split, whose columns are called image and label.

    Pickled, a dataset goes as the names of its files.
    """

    split: str
    data: Any
    numbers: range
    label_names: list[str]

    @property
    def name(self) -> str:
        return f"{self.split}/{self.numbers[0]} ... {self.split}/{self.numbers[-1]}"

    @property
    def images(self) -> int:
        return len(self.numbers)

    @cached_property
    def digest(self) -> str:
        told = (self.data._fingerprint, self.split, self.numbers, self.label_names)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def items(self) -> Iterator[Item]:
        columns = Columns("image", "label", "split")
        try:
            for number, row in zip(self.numbers, self._rows(), strict=True):
                row["split"] = self.split
                yield row_item(f"{self.split}/{number}", row, columns, self.label_names, Path())
        except _DAMAGE as error:
            raise ShardError(f"the rest of the shard is damaged: {_line(error)}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        """A few at a time: undecoded images are large."""
        for at in range(0, len(self.numbers), _READ_ROWS):
            some = self.numbers[at : at + _READ_ROWS]
            columns = self.data[some.start : some.stop]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def _datasets(location: str) -> dict[str, Any]:
    """Split -> dataset."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "extract") from error
    name, _, revision = location.partition("@")
    try:
        if Path(location).is_dir():
            found = datasets.load_from_disk(location)
        else:
            found = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:  # datasets' exceptions share no base class
        raise AugSelfError(f"{location} cannot be loaded by datasets: {_line(error)}") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _undecoded(data: Any, columns: Columns) -> Any:
    """Only the images, as bytes or paths, and the labels, under names of our own."""
    from datasets import Image

    wanted = {columns.image: "image"} | ({columns.label: "label"} if columns.label else {})
    fingerprint = data._fingerprint  # of what was loaded: the steps below change it
    data = data.select_columns(list(wanted))
    data = data.rename_columns({old: new for old, new in wanted.items() if old != new})
    if isinstance(data.features["image"], Image):
        data = data.cast_column("image", Image(decode=False))
    data._fingerprint = fingerprint
    return data


def _class_names(splits: dict[str, Any], label: str | None) -> list[str]:
    """The names of a ClassLabel, or the distinct strings of a column of strings."""
    if label is None:
        return []
    feature = next(iter(splits.values())).features["label"]
    if feature.dtype == "string":
        values = (name for data in splits.values() for name in data.unique("label"))
        return sorted({name for name in values if name is not None})
    return list(getattr(feature, "names", ()))


def _open(url: str) -> BinaryIO:
    """A local file, or what fsspec opens."""
    if "://" not in url:
        return Path(url).open("rb")
    return file_system(url).open(url)


def file_system(url: str) -> Any:
    """fsspec's, for a URL's protocol.

    Raises:
        AugSelfError: there is no such protocol, or its package is missing.
    """
    try:
        import fsspec

        return fsspec.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise AugSelfError(f"{url} cannot be opened: {_line(error)}") from error


def _digest(url: str, *told: Any) -> str:
    """Of the file's size and time of change (or what its protocol tells), and what was told."""
    try:
        state = file_system(url).ukey(url) if "://" in url else stamp(Path(url))
    except OSError:  # reading it will say why
        state = None
    return hashlib.sha256(repr((_base(url), state, told)).encode()).hexdigest()


def _damage(url: str, error: Exception) -> Exception:
    """What a shard that cannot be read means: a network that fails is not a damaged shard."""
    if "://" in url and getattr(error, "errno", None) not in (None, errno.ENOENT):
        return AugSelfError(f"{url} cannot be reached: {_line(error)}; try again to go on")
    return ShardError(f"the rest of the shard is damaged: {_line(error)}")


def _base(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _line(error: Exception) -> str:
    """An exception in one line, without the address it may name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
