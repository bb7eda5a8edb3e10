"""Training images, read by their position: any source of augself_hub.images that can be listed, and

    stl10:DIR                   torchvision's STL-10, train and unlabeled images
    cifar10:DIR, cifar100:DIR   torchvision's CIFAR, training images
    imagenet:DIR                torchvision's ImageNet, training images (a class list: ImageNet-100)

Views of an image are keyed by its position, or by its name where others may come and go (tars).
What can only be read in order is a stream (see `streams`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images import AS_FOUND, Inventory, Options, Source, open_source, split_of
from augself_hub.images.inventory import Tally
from augself_hub.images.listed import read_text
from augself_hub.images.opening import STREAM
from augself_hub.images.source import UNLABELED
from augself_hub.images.structure import structure
from augself_hub.images.words import USUAL
from augself_hub.preprocess import damage_named, decode, to_rgb

log = logging.getLogger(__name__)
NO_INVENTORY = Inventory("", "list")


@dataclass(frozen=True)
class Images:
    """N images that are read one at a time.

    Args:
        names: N names for messages; for a folder the relative paths.
        labels: N indices into `classes`, UNLABELED where there is none.
        classes: label names.
        read: position -> RGB image, upright. Raises ImageError or OSError for a damaged one.
        keys: N 64-bit numbers that views are keyed by; None: the positions.
        groups: N numbers, equal for images of one origin (tiles of a photograph, frames of a film);
            None: each is its own.
        damaged: names of the shards whose rest cannot be read, of so many shards.
        inventory: of their source. advice: what would give it labels.
    """

    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    read: Callable[[int], Image.Image]
    keys: Sequence[int] | None = None
    damaged: tuple[str, ...] = ()
    shards: int = 1
    inventory: Inventory = NO_INVENTORY
    advice: str = "sort the images into class sub-folders"
    groups: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def only(self, classes: Sequence[str]) -> Images:
        """The images of these classes, in their order in the list.

        Raises:
            UsageError: a class this source does not have, or one that is named twice; none.
        """
        if not classes:
            raise UsageError("the class list is empty: name a class a line")
        if twice := [name for name, count in Counter(classes).items() if count > 1]:
            raise UsageError(f"class {twice[0]!r} is in the class list twice: name it once")
        if unknown := sorted(set(classes) - set(self.classes)):
            raise UsageError(f"no class {unknown[0]!r} in the data: mend the class list")
        new = {self.classes.index(name): label for label, name in enumerate(classes)}
        kept = [i for i, label in enumerate(self.labels) if label in new]
        labels = [new[self.labels[i]] for i in kept]
        return dataclasses.replace(self.at(kept), labels=labels, classes=list(classes))

    def grouped(self, pattern: str | None) -> Images:
        """The same, those of one group whose names have the same text where `pattern` matches.

        Args:
            pattern: a regular expression, looked for in each name; of one with groups the first one
                counts. Images whose names it does not match are each their own. None: as they are.

        Raises:
            UsageError: it is no regular expression, or all its matches are one text, or none.
        """
        if pattern is None:
            return self
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--group {pattern}: no regular expression ({error})") from error
        found = [expression.search(name) for name in self.names]
        texts = [None if m is None else m.group(min(1, expression.groups)) for m in found]
        number = {text: group for group, text in enumerate(dict.fromkeys(filter(None, texts)))}
        if len(number) < 2:
            raise UsageError(
                f"--group {pattern} finds {len(number)} groups in names like {self.names[0]}: give "
                "what images of one origin have in common"
            )
        groups = [number[t] if t else len(number) + row for row, t in enumerate(texts)]
        return dataclasses.replace(self, groups=groups)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, upright: of a file what its header says.

        Raises ImageError or OSError for a damaged one.
        """
        return _size(self.read, index)

    def decoded_smaller(self, least: int) -> Images:
        """The same, but large JPEGs are decoded at 1/2, 1/4 or 1/8, their sides `least` or more.

        What torchvision decodes comes as it is.
        """
        return dataclasses.replace(self, read=_smaller(self.read, least))

    def at(self, positions: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in positions],
            labels=array("i", (self.labels[i] for i in positions)),
            read=_Chosen(self.read, array("q", positions)),
            keys=None if self.keys is None else [self.keys[i] for i in positions],
            groups=None if self.groups is None else [self.groups[i] for i in positions],
        )


@dataclass(frozen=True)
class _Chosen:
    """`read` of a part. A class and not a closure, so that worker processes can receive it."""

    read: Callable[[int], Image.Image]
    positions: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.positions[index])


@dataclass(frozen=True)
class _Decoded:
    """`read` of what is listed as files' bytes."""

    bytes_at: Callable[[int], bytes]
    least: int | None = None

    def __call__(self, index: int) -> Image.Image:
        return decode(self.bytes_at(index), least=self.least)


def _size(read: Callable[[int], Image.Image], index: int) -> tuple[int, int]:
    if isinstance(read, _Chosen):
        return _size(read.read, read.positions[index])
    if isinstance(read, _Decoded):
        width, height = structure(read.bytes_at(index)).upright_size
        return height, width
    image = read(index)
    return image.height, image.width


def _smaller(read: Callable[[int], Image.Image], least: int) -> Callable[[int], Image.Image]:
    if isinstance(read, _Chosen):
        return dataclasses.replace(read, read=_smaller(read.read, least))
    return dataclasses.replace(read, least=least) if isinstance(read, _Decoded) else read


def open_images(
    source: str | Path, options: Options = AS_FOUND, wanted: Sequence[str] = ("train",)
) -> Images:
    """The images of one of the sources above.

    Args:
        wanted: where there are splits and none is chosen: the first of these that is there.

    Raises:
        UsageError: an unknown kind of source, or one that can only be read in order.
        AugSelfError: nothing is there, or no image in it.
    """
    kind, colon, place = str(source).partition(":")
    if colon and kind in _TORCHVISION and not Path(source).exists():
        if options != AS_FOUND:
            raise UsageError(f"--split, --read-as and --column have no effect on {source}")
        return _torchvision(kind, place, str(source))
    if options.stream or str(source).startswith(STREAM):
        raise UsageError(f"{source} can only be read in order: give a source without stream:")
    opened = one_split(open_source(source, options), options, wanted)
    listing = opened.listing()
    labels, classes = listing.labels, opened.classes
    if not classes:  # class numbers: those that occur
        present = sorted(set(labels) - {UNLABELED})
        index = {number: label for label, number in enumerate(present)} | {UNLABELED: UNLABELED}
        labels, classes = array("i", (index[n] for n in labels)), [str(n) for n in present]
    return Images(
        listing.names,
        labels,
        classes,
        _Decoded(listing.read),
        [key_of(name) for name in listing.names] if listing.keyed else None,
        listing.damaged,
        listing.shards,
        opened.inventory,
        opened.advice,
    )


def open_held_out(source: str | Path, options: Options = AS_FOUND) -> Images:
    """Images to measure on: of a source with splits its validation images, else its test images.

    They are read as those to train on, by the same columns and as the same layout, where they have
    them; else as they are found, which is said.

    Args:
        options: of the images to train on.

    Raises:
        UsageError, AugSelfError: as `open_images`.
    """
    refused: AugSelfError | None = None
    ways = itertools.product((options.columns, USUAL), (options.kind, None))
    for columns, kind in dict.fromkeys(ways):
        try:
            images = open_images(source, Options(columns, kind=kind), ("validation", "test"))
        except AugSelfError as error:
            if refused is None or (type(refused) is UsageError and type(error) is not UsageError):
                refused = error  # not that an option has no effect, if there is worse
            continue
        if refused is not None:
            log.info("--held-out is read otherwise than --data: %s", refused)
        return images
    assert refused is not None
    raise refused


def one_split(source: Source, options: Options, wanted: Sequence[str]) -> Source:
    """The first of the wanted splits that a source with splits has, unless one is chosen."""
    there = source.inventory.splits
    if options.split is None and len(there) > 1:
        for split in wanted:
            if any(split_of(name) == split for name in there):
                log.info("%s: of its splits, %s is read: --split chooses", source.location, split)
                return source.chosen(split)
    return source


def key_of(name: str) -> int:
    """64 bits of a sample's name, shard/key: what its views are keyed by."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


_TORCHVISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "stl10": ("STL10", "labels", {"split": "train+unlabeled"}),
    "cifar10": ("CIFAR10", "targets", {"train": True}),
    "cifar100": ("CIFAR100", "targets", {"train": True}),
    "imagenet": ("ImageNet", "targets", {"split": "train"}),
}
"""Prefix -> torchvision's class, the attribute that holds its labels, the training images."""


def _torchvision(kind: str, place: str, source: str) -> Images:
    """One of torchvision's data sets, which must lie in its folder already."""
    from torchvision import datasets

    name, attribute, options = _TORCHVISION[kind]
    try:
        dataset = getattr(datasets, name)(place, **options)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AugSelfError(
            f"no {name} in {place} ({reason}): torchvision's layout is expected"
        ) from error
    labels = array("i", (int(label) for label in getattr(dataset, attribute)))
    classes = getattr(dataset, "wnids", dataset.classes)  # ImageNet's names are ambiguous
    counts = Counter(classes[label] for label in labels if label != UNLABELED)
    tally = Tally()
    tally.found = len(dataset)
    inventory = tally.inventory(source, name, len(dataset), dict(counts.most_common()), ())
    names = [f"{name} {i}" for i in range(len(dataset))]
    return Images(names, labels, classes, _First(dataset), inventory=inventory)


@dataclass(frozen=True)
class _First:
    """Item i of a torchvision data set is (image, label)."""

    dataset: Any

    def __call__(self, index: int) -> Image.Image:
        with damage_named():  # torchvision opens a file of ImageNet by itself
            return to_rgb(self.dataset[index][0])


def lines_of(path: Path) -> list[str]:
    """The lines of a text that are not blank, without the space around them.

    Raises AugSelfError: it is no UTF-8.
    """
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]
