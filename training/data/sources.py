"""Where training images come from, behind one small interface.

    FOLDER                      images of any size; class sub-folders are labels
    stl10:DIR                   torchvision's STL-10, train and unlabeled images
    cifar10:DIR, cifar100:DIR   torchvision's CIFAR, training images
    imagenet:DIR                torchvision's ImageNet, training images (a class list: ImageNet-100)
    hf:NAME[:SPLIT]             a Hugging Face dataset with an image column, by Hub id or folder
    wds:TARS                    WebDataset tars: a glob, x-{000..099}.tar, URLs (see `tars`)

An image is read by its position. Its views are keyed by it, or by a key of its own. What can only
be read in order is a stream (see `streams`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.preprocess import SUFFIXES, decode, to_rgb

UNLABELED = -1


@dataclass(frozen=True)
class Images:
    """N images that are read one at a time.

    Args:
        names: N names for messages, unique; for a folder the relative paths.
        labels: N indices into `classes`, UNLABELED where there is none.
        classes: label names.
        read: position -> RGB image, upright. Raises ImageError or OSError for a damaged one.
        keys: N 64-bit numbers that views are keyed by; None: the positions.
        damaged: names of the shards whose rest cannot be read, of so many shards.
    """

    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    read: Callable[[int], Image.Image]
    keys: Sequence[int] | None = None
    damaged: tuple[str, ...] = ()
    shards: int = 1

    def __len__(self) -> int:
        return len(self.names)

    def only(self, classes: Sequence[str]) -> Images:
        """The images of these classes, in their order in the list.

        Raises:
            UsageError: a class this source does not have.
        """
        if unknown := sorted(set(classes) - set(self.classes)):
            raise UsageError(f"no class {unknown[0]!r} in the data: mend the class list")
        new = {self.classes.index(name): label for label, name in enumerate(classes)}
        kept = [i for i, label in enumerate(self.labels) if label in new]
        labels = [new[self.labels[i]] for i in kept]
        return dataclasses.replace(self.at(kept), labels=labels, classes=list(classes))

    def at(self, positions: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in positions],
            labels=[self.labels[i] for i in positions],
            read=_Chosen(self.read, list(positions)),
            keys=None if self.keys is None else [self.keys[i] for i in positions],
        )


@dataclass(frozen=True)
class _Chosen:
    """`read` of a part. A class and not a closure, so that worker processes can receive it."""

    read: Callable[[int], Image.Image]
    positions: list[int]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.positions[index])


def open_images(source: str) -> Images:
    """The images of one of the sources above.

    Raises:
        UsageError: an unknown kind of source.
        AugSelfError: nothing is there, or no image in it.
    """
    kind, colon, place = source.partition(":")
    if not colon or Path(source).is_dir():
        return folder_images(Path(source))
    if kind == "stream":
        raise UsageError(f"{source} can only be read in order: give a source without stream:")
    if kind not in _KINDS:
        raise UsageError(
            f"unknown source {kind!r}: use a folder, or {', '.join(_KINDS)} and a path"
        )
    return _KINDS[kind](place)


def folder_images(folder: Path) -> Images:
    """Every image file under a folder, sorted by its relative path; sub-folders are classes.

    Raises:
        AugSelfError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise AugSelfError(f"no folder {folder}: give a folder of images")
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    names = sorted(p.relative_to(folder).as_posix() for p in paths)
    if not names:
        raise AugSelfError(f"no images in {folder}: it needs {', '.join(SUFFIXES)} files")
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({name for name in folders if name is not None})
    labels = [UNLABELED if name is None else classes.index(name) for name in folders]
    return Images(names, labels, classes, _Files(folder, names))


@dataclass(frozen=True)
class _Files:
    folder: Path
    names: list[str]

    def __call__(self, index: int) -> Image.Image:
        return decode((self.folder / self.names[index]).read_bytes())


def _torchvision(name: str, labels: str, **options: Any) -> Callable[[str], Images]:
    """A source of one of torchvision's data sets, which must lie in its folder already."""

    def opened(place: str) -> Images:
        from torchvision import datasets

        try:
            dataset = getattr(datasets, name)(place, **options)
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AugSelfError(
                f"no {name} in {place} ({reason}): torchvision's layout is expected"
            ) from error
        numbers = [int(label) for label in getattr(dataset, labels)]
        names = [f"{name} {i}" for i in range(len(dataset))]
        classes = getattr(dataset, "wnids", dataset.classes)  # ImageNet's names are ambiguous
        return Images(names, numbers, classes, _First(dataset))

    return opened


@dataclass(frozen=True)
class _First:
    """Item i of a torchvision data set is (image, label)."""

    dataset: Any

    def __call__(self, index: int) -> Image.Image:
        return to_rgb(self.dataset[index][0])


def _hugging_face(place: str) -> Images:
    """The first image column and, if there is one, the first class label column."""
    rows = open_rows(place)
    count = len(rows.bare)
    labels = rows.bare[rows.label] if rows.label else [UNLABELED] * count
    names = [f"{place} {i}" for i in range(count)]
    return Images(names, list(labels), rows.classes, _Cells(rows.bare, rows.image))


@dataclass(frozen=True)
class Rows:
    """A Hugging Face data set: its images undecoded, the columns that count, the classes."""

    bare: Any
    image: str
    label: str | None
    classes: list[str]


def open_rows(place: str, streaming: bool = False) -> Rows:
    """NAME[:SPLIT] -> its rows.

    Raises:
        AugSelfError: it cannot be opened, or has no image column.
    """
    import datasets

    name, _, split = place.partition(":")
    try:
        dataset = datasets.load_dataset(name, split=split or "train", streaming=streaming)
        dataset = dataset if dataset.features else dataset._resolve_features()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AugSelfError(f"data set {place} cannot be opened: {reason}") from error
    image = first_column(dataset, datasets.Image)
    if image is None:
        raise AugSelfError(f"data set {place} has no image column")
    label = first_column(dataset, datasets.ClassLabel)
    classes = dataset.features[label].names if label else []
    return Rows(dataset.cast_column(image, datasets.Image(decode=False)), image, label, classes)


def first_column(dataset: Any, kind: type) -> str | None:
    """The first column of a Hugging Face data set that holds this kind of feature."""
    return next((n for n, feature in dataset.features.items() if isinstance(feature, kind)), None)


@dataclass(frozen=True)
class _Cells:
    """Undecoded images of a Hugging Face data set: {"bytes", "path"}."""

    dataset: Any
    column: str

    def __call__(self, index: int) -> Image.Image:
        return decode(cell_bytes(self.dataset[index][self.column]))


def cell_bytes(cell: dict[str, Any]) -> bytes:
    """An image's file from a cell that is in it or names it on this machine."""
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def lines_of(path: Path) -> list[str]:
    """The lines of a text that are not blank, without the space around them."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _tars(pattern: str) -> Images:
    from training.data.tars import tar_images  # which needs Images itself

    return tar_images(pattern)


_KINDS: dict[str, Callable[[str], Images]] = {
    "stl10": _torchvision("STL10", "labels", split="train+unlabeled"),
    "cifar10": _torchvision("CIFAR10", "targets", train=True),
    "cifar100": _torchvision("CIFAR100", "targets", train=True),
    "imagenet": _torchvision("ImageNet", "targets", split="train"),
    "hf": _hugging_face,
    "wds": _tars,
}
