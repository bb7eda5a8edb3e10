"""A labelled data set as a list: what each image is called, its class, its split, where it is.

Extraction takes the list as a source; images that a data set keeps in arrays become PNGs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import Inventory, Item, Listing, Source, read_file
from augself_hub.images.inventory import Tally
from augself_hub.images.structure import structure
from augself_hub.preprocess import decode

TRAIN, VALIDATION, TEST = "train", "val", "test"
SPLIT_SEED = 0  # fixed: a split is part of the protocol, not of a run


@dataclass(frozen=True)
class LabelledImages:
    """N labelled images in a fixed order.

    Args:
        name: of the data set.
        ids: N names, unique and the same on every machine; keyed splits depend on them.
        classes: N class names.
        splits: N of train, val and test.
        read: position -> the image's file, or its bytes.
        files: those whose size and time of change say whether the images changed.
        version: what else does.
        advice: what would give its images labels.
        boxes: (N, 4) left, top, width, height in pixels of the image; None: not known.
        tally: of what lay beside them; None: of a data set whose authors list its images.
    """

    name: str
    ids: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    read: Callable[[int], Path | bytes]
    files: Sequence[Path]
    version: str = ""
    advice: str = "sort the images into class sub-folders"
    boxes: np.ndarray | None = None
    tally: Tally | None = None

    def __post_init__(self) -> None:
        if missing := [i for i, name in zip(self.ids, self.classes, strict=True) if not name]:
            raise AugSelfError(
                f"{self.name}: {len(missing)} images have no label, the first is {missing[0]}: "
                f"{self.advice}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """RGB, upright. Raises ImageError or OSError for a damaged one."""
        found = self.read(index)
        return decode(found if isinstance(found, bytes) else read_file(found))

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the upright image, not decoded. Raises ImageError or OSError."""
        found = self.read(index)
        return structure(found if isinstance(found, bytes) else read_file(found)).upright_size

    def rows(self, *splits: str) -> np.ndarray:
        """The positions of the images in these splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def fingerprint(self) -> str:
        """sha256 of names, classes, splits and of every file's size and time of change.

        Raises AugSelfError: a file that is listed is not there.
        """
        seen = hashlib.sha256(repr((self.name, self.version)).encode())
        for row in zip(self.ids, self.classes, self.splits, strict=True):
            seen.update(repr(row).encode())
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                reason = error.strerror or "it cannot be read"
                raise AugSelfError(f"{self.name}: {path}: {reason}: mend or remove it") from error
            seen.update(repr((status.st_size, status.st_mtime_ns)).encode())
        return seen.hexdigest()

    @property
    def inventory(self) -> Inventory:
        """The images of each class and split as they are evaluated, and what was left out."""
        tally = self.tally
        if tally is None:
            tally = Tally()
            tally.found = len(self)
        classes = dict(Counter(self.classes).most_common())
        return tally.inventory(self.name, "data set", len(self), classes, self.splits)

    def source(self) -> LabelledSource:
        """For extraction."""
        classes = sorted(set(self.classes))
        return LabelledSource(self, classes, self.inventory, self.fingerprint())


@dataclass(frozen=True)
class LabelledSource:
    """A labelled data set as a source of `augself_hub.images`, all of it and in order."""

    data_set: LabelledImages
    classes: list[str]
    inventory: Inventory
    fingerprint: str

    @property
    def location(self) -> str:
        return self.data_set.name

    @property
    def advice(self) -> str:
        return self.data_set.advice

    def shards(self, rows: int) -> list[LabelledShard]:
        everything = range(len(self.data_set))
        starts = everything[::rows]
        return [LabelledShard(self, everything[start : start + rows]) for start in starts]

    def chosen(self, split: str) -> Source:
        raise UsageError(f"{self.location} is evaluated whole")

    def listing(self) -> Listing:
        raise UsageError(f"{self.location} is read in order")


@dataclass(frozen=True)
class LabelledShard:
    """Consecutive images."""

    source: LabelledSource
    rows: range

    @property
    def name(self) -> str:
        ids = self.source.data_set.ids
        return f"{ids[self.rows[0]]} ... {ids[self.rows[-1]]}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.source.fingerprint} {self.rows}".encode()).hexdigest()

    @property
    def images(self) -> int:
        return len(self.rows)

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        numbers = {name: number for number, name in enumerate(self.source.classes)}
        images = self.source.data_set
        for row in self.rows:
            names, label = (images.ids[row],), numbers[images.classes[row]]
            try:
                yield Item(names, (images.read(row),), label, images.splits[row])
            except ImageError as error:
                yield Item(names, (), label, images.splits[row], str(error))
            except OSError as error:
                reason = error.strerror or "cannot be read"
                yield Item(names, (), label, images.splits[row], reason)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) or (H, W) uint8 -> a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def keyed_share(ids: Sequence[str], classes: Sequence[str], count: int) -> np.ndarray:
    """(N,) bool: `count` of N images, of each class as many as its share of them.

    Which ones depends on their names and SPLIT_SEED alone. What rounding leaves over goes to the
    classes that lost most by it, in the order of their names.
    """
    names, number = np.unique(np.asarray(classes), return_inverse=True)
    exact = np.bincount(number) * (count / len(number))
    wanted = np.floor(exact + 1e-9).astype(int)
    lost = np.argsort(-(exact - wanted), kind="stable")
    wanted[lost[: count - wanted.sum()]] += 1
    chosen = np.zeros(len(number), bool)
    order = np.array([_key(name) for name in ids]).argsort()
    for label in range(len(names)):
        chosen[order[number[order] == label][: wanted[label]]] = True
    return chosen


def _key(name: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED}/{name}".encode()).hexdigest()


def with_validation(images: LabelledImages, share: float) -> LabelledImages:
    """The same with this share of the training images as validation images."""
    train = images.rows(TRAIN)
    ids, classes = ([names[i] for i in train] for names in (images.ids, images.classes))
    splits = np.array(images.splits, dtype=object)
    splits[train[keyed_share(ids, classes, round(share * len(train)))]] = VALIDATION
    return dataclasses.replace(images, splits=splits.tolist())
