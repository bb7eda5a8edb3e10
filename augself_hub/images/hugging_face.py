"""Hugging Face data sets as a source: of the Hub, of save_to_disk, of any folder datasets reads."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError, MissingExtra
from augself_hub.images.files import DAMAGE, DATASET_FILES, one_line
from augself_hub.images.source import Item, ShardError
from augself_hub.images.tables import READ_ROWS, Rows, TableSource, ends_of, labels_of
from augself_hub.images.words import Columns, Labels, same_split

OURS = Columns("image", "label")  # what the columns are called once they are chosen
STREAM_ROWS = 2048  # of a shard of what was saved to disk, where it is read in order


@dataclass(frozen=True)
class Split:
    """One split: a data set of the columns image and perhaps label, images undecoded."""

    name: str
    data: Any
    roots: tuple[Path, ...]
    labels: Any = None
    splits = None
    reason = ""

    @property
    def split(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def ends(self) -> list[str] | None:
        """Of a struct only its paths are looked at."""
        import pyarrow as pa

        column = self.data.with_format("arrow").select_columns(["image"])[:]["image"]
        if not pa.types.is_struct(column.type):
            return ends_of(column) if pa.types.is_string(column.type) else None
        paths = [chunk.field("path") for chunk in column.chunks]
        return ends_of(pa.chunked_array([pa.StructArray.from_arrays([p], ["path"]) for p in paths]))

    def shards(self, rows: Rows, count: int) -> list[DatasetShard]:
        numbers = range(self.size)
        starts = range(0, self.size, count)
        return [DatasetShard(rows, self.data, numbers[start : start + count]) for start in starts]


@dataclass(frozen=True)
class DatasetShard:
    """Consecutive rows of one split. Pickled, a data set goes as the names of its files."""

    rows: Rows
    data: Any
    numbers: range

    @property
    def name(self) -> str:
        split = self.rows.split
        return f"{split}/{self.numbers[0]} ... {split}/{self.numbers[-1]}"

    @property
    def images(self) -> int:
        return len(self.numbers)

    @cached_property
    def digest(self) -> str:
        facts = (self.data._fingerprint, self.rows.split, self.numbers, self.rows.rule.classes)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        split = self.rows.split
        try:
            yield from self.rows.items(lambda n: f"{split}/{self.numbers[n]}", self._rows())
        except DAMAGE as error:
            raise ShardError(f"the rest of the shard is damaged: {one_line(error)}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        """A few at a time: undecoded images are large."""
        for at in range(0, len(self.numbers), READ_ROWS):
            some = self.numbers[at : at + READ_ROWS]
            columns = self.data[some.start : some.stop]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


@dataclass(frozen=True)
class StreamedSplit:
    """One split that is not downloaded first."""

    name: str
    location: str
    data: Any
    roots: tuple[Path, ...]
    size = labels = splits = ends = None
    reason = "read in order"

    @property
    def split(self) -> str:
        return self.name

    def shards(self, rows: Rows, count: int) -> list[StreamShard]:
        return [StreamShard(self.location, self.data, n, rows) for n in range(self.data.num_shards)]


@dataclass(frozen=True)
class StreamShard:
    """One shard of a streaming data set."""

    location: str
    data: Any
    number: int
    rows: Rows

    @property
    def name(self) -> str:
        return f"shard {self.number}"

    @property
    def digest(self) -> str:
        """A stream says of its content nothing but where it comes from."""
        facts = (self.location, self.data.num_shards, self.number, self.rows)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def images(self) -> None:
        return None

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        part = self.data.shard(num_shards=self.data.num_shards, index=self.number)
        try:
            for row, cells in enumerate(part.iter(1)):  # plain iteration deals out by itself
                values = {name: cell[0] for name, cell in cells.items()}
                name = f"{self.name}/{values.pop('__key__', row)}"  # the key of a WebDataset
                item = self.rows.item(name, values, self.rows.split)
                yield replace(item, names=(name,))
        except (ConnectionError, TimeoutError) as error:
            raise AugSelfError(f"{self.name} cannot be reached: {error}") from error
        except DAMAGE as error:
            raise ShardError(one_line(error)) from error


def dataset_source(
    location: str,
    columns: Columns,
    split: str | None = None,
    root: Path | None = None,
    stream: bool = False,
) -> TableSource:
    """Every split of a data set; of a stream one.

    Args:
        split: of a stream; None: train.
        root: a folder, other than the data set's own, that paths in it may lead into.

    Raises:
        MissingExtra: without datasets.
        AugSelfError: there is no such data set or column.
    """
    if stream:
        found = _load(location, split or "train", streaming=True)
        for name, data in found.items():
            found[name] = data if data.features else data._resolve_features()
    else:
        found = _load(location, None)
    asked = {name: data for name, data in found.items() if split and same_split(name, split)}
    chosen, names, notes = _columns(location, found, columns, list(asked or found))
    roots = (*([root] if root else []), *_own_folders(location))
    if stream:
        if names is None:
            notes.append(f"{chosen.label}: a stream knows class numbers alone, and no other labels")
        parts: list[Any] = [
            StreamedSplit(name, location, _undecoded(data, chosen, "__key__"), roots)
            for name, data in found.items()
        ]
        rule = Labels(names or [], strict=False)
    else:
        parts = []
        for name, data in found.items():
            data = _undecoded(data, chosen)
            labels = None
            if "label" in data.column_names:
                labels = data.select_columns(["label"]).with_format("arrow")[:]["label"]
            parts.append(Split(name, data, roots, labels))
        written = [part.labels for part in parts if part.labels is not None]
        rule = labels_of(written, chosen.label or "", location) if names is None else Labels(names)
    rows = Rows(OURS, rule)
    return TableSource(location, "dataset", parts, rows, _data_of, tuple(notes))


def _data_of(parts: Sequence[Split]) -> list[Any]:
    return [part.data for part in parts]


def _load(location: str, split: str | None, streaming: bool = False) -> dict[str, Any]:
    """Split -> data set, of `org/name[@revision]` or a folder."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "extract") from error
    place = Path(location)
    name, _, revision = location.partition("@")
    try:
        if any((place / file).is_file() for file in DATASET_FILES):
            found = datasets.load_from_disk(location)
            found = found if isinstance(found, Mapping) else {str(found.split or "all"): found}
            if streaming:
                kept = {n: data for n, data in found.items() if same_split(n, split or "")}
                found = {
                    n: data.to_iterable_dataset(max(1, len(data) // STREAM_ROWS))
                    for n, data in (kept or found).items()
                }
        else:
            known = {} if place.is_dir() else {"revision": revision or None}
            name = location if place.is_dir() else name
            found = datasets.load_dataset(name, split=split, streaming=streaming, **known)
    except Exception as error:  # datasets' exceptions share no base class
        raise AugSelfError(f"data set {location} cannot be opened: {one_line(error)}") from error
    return dict(found) if isinstance(found, Mapping) else {str(found.split or split): found}


def _columns(
    location: str, found: dict[str, Any], columns: Columns, asked: Sequence[str]
) -> tuple[Columns, list[str] | None, list[str]]:
    """The columns; the classes' names, or None where the values have to tell; notes.

    Args:
        asked: the splits that are wanted.

    Raises:
        AugSelfError: no column holds images, the one that was named does not hold labels, or the
            splits do not fit together.
    """
    from datasets import ClassLabel, Image, Value

    features: dict[str, Any] = {}
    for data in [found[split] for split in asked] + list(found.values()):
        features = {**data.features, **features}
    for split in asked:
        for name, feature in found[split].features.items():
            names = getattr(feature, "names", None)
            if names is not None and names != getattr(features[name], "names", names):
                raise AugSelfError(
                    f"split {split} of {location} names the classes of {name} otherwise than "
                    "another: make them one ClassLabel (cast_column), or name other labels with "
                    "--column label=NAME"
                )
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    chosen = columns.found(list(features), location, images, next(iter(classes), ""))
    if lacking := [name for name, data in found.items() if chosen.image not in data.features]:
        raise AugSelfError(
            f"split {lacking[0]} of {location} has no column {chosen.image}: name one of all with "
            "--column image=NAME"
        )
    image = features[chosen.image or ""]
    plain = isinstance(image, Value) and image.dtype.removeprefix("large_") in ("binary", "string")
    if not (plain or isinstance(image, (Image, dict))):
        raise AugSelfError(
            f"column {chosen.image} of {location} holds {_kind(image)} and no images: --column "
            "image=NAME names another"
        )
    if chosen.label is None:
        return chosen, [], []
    label = features[chosen.label]
    if isinstance(label, ClassLabel):
        return chosen, list(label.names), []
    if isinstance(label, Value) and label.dtype.rstrip("0123456789") in _LABELS:
        return chosen, None, []
    if columns.label is not None:
        raise AugSelfError(
            f"column {chosen.label} of {location} holds {_kind(label)}: labels are class numbers "
            "or names, one an image"
        )
    note = f"column {chosen.label} holds {_kind(label)} and is not read as labels"
    return replace(chosen, label=None), [], [note]


_LABELS = ("string", "large_string", "int", "uint", "bool", "float", "null")


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or feature)


def _undecoded(data: Any, columns: Columns, key: str = "") -> Any:
    """Only the images, as bytes or paths, and the labels, under names of our own."""
    from datasets import Image

    renamed = {columns.image: "image", columns.label: "label", key: key}
    wanted = {old: new for old, new in renamed.items() if old and old in data.column_names}
    fingerprint = getattr(data, "_fingerprint", None)
    data = data.select_columns(list(wanted))
    data = data.rename_columns({old: new for old, new in wanted.items() if old != new})
    if isinstance(data.features["image"], Image):
        data = data.cast_column("image", Image(decode=False))
    if fingerprint is not None:  # of what was loaded: the steps above change it
        data._fingerprint = fingerprint
    return data


def _own_folders(location: str) -> tuple[Path, ...]:
    """Where paths in the data set may lead: its folder, or where datasets keeps what it fetches."""
    if Path(location).is_dir():
        return (Path(location),)
    import datasets
    from huggingface_hub import constants

    return Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)


def arrow_of_parquet(paths: Sequence[str], image: str) -> Any:
    """Local parquet files as one data set of undecoded images, any row of which can be read."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "train") from error
    # datasets takes every name for a pattern, also one that a file has.
    files = [glob.escape(str(Path(path).resolve())) for path in paths]
    try:
        data = datasets.load_dataset("parquet", data_files=files, split="train", columns=[image])
    except Exception as error:  # datasets' exceptions share no base class
        raise AugSelfError(f"{paths[0]} cannot be opened by datasets: {one_line(error)}") from error
    return _undecoded(data, Columns(image))
