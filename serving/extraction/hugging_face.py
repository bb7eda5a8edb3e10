"""Hugging Face datasets as a source: from a folder or from the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError, MissingExtra
from serving.extraction.files import DAMAGE, one_line
from serving.extraction.rows import READ_ROWS, row_item
from serving.extraction.sources import Columns, Item, ShardError


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
        except DAMAGE as error:
            raise ShardError(f"the rest of the shard is damaged: {one_line(error)}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        """A few at a time: undecoded images are large."""
        for at in range(0, len(self.numbers), READ_ROWS):
            some = self.numbers[at : at + READ_ROWS]
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
        raise AugSelfError(f"{location} cannot be loaded by datasets: {one_line(error)}") from error
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
