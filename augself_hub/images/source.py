"""What every source is: shards that yield items, and, where it can, any image by its position.

    a source cuts itself into shards; a shard yields its items, in order
    a listing gives the image at any position of the same order

A shard is a plain record of where its items are. It can be pickled, so any shard may be read at any
time on any machine that sees the files, and its digest changes when what it holds does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from augself_hub.errors import ImageError, UsageError
from augself_hub.images.files import read_file
from augself_hub.images.inventory import Inventory

UNLABELED = -1


@dataclass(frozen=True)
class Item:
    """One image with its label and split, or the two images of a pair.

    Args:
        names: what the images are called: one, or two of a pair.
        images: their files or bytes; nothing where there is a `problem`.
        label: index into the source's classes, or a bare number where it has none.
        split: train, test ...; None where the source does not say.
        problem: why there is no image.
    """

    names: tuple[str, ...]
    images: tuple[Path | bytes, ...]
    label: int | None = None
    split: str | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        return " -> ".join(self.names)

    def read(self) -> list[bytes]:
        """The images' files, undecoded. Raises ImageError with the reason where there are none."""
        if self.problem is not None:
            raise ImageError(self.problem)
        return [image if isinstance(image, bytes) else read_file(image) for image in self.images]


class ShardError(Exception):
    """The rest of a shard cannot be read. The message is the reason."""


class Shard(Protocol):
    """A part of a source.

    Attributes:
        name: for messages. digest: changes when the shard's input does.
        images: how many items there will be; None where only reading tells.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def images(self) -> int | None: ...
    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        """Its items in order.

        Args:
            left_out: called with (reason, name) of what is passed over, unless the inventory
                knew it before.

        Raises:
            ShardError: the rest cannot be read. AugSelfError: it cannot be reached just now.
        """
        ...


@dataclass(frozen=True)
class Listing:
    """A source as columns of N rows: the same items, in the order of its shards.

    Args:
        names: their ids. labels: UNLABELED where there is none. splits: None where there are none.
        read: position -> the image's file, undecoded. Raises ImageError or OSError.
        keyed: the names, and not the positions, are what an image is known by: in tars, of which
            some may be added or missing.
        damaged: names of the shards whose rest cannot be read, of so many shards.
    """

    names: Sequence[str]
    labels: Sequence[int]
    splits: Sequence[str | None] | None
    read: Callable[[int], bytes]
    keyed: bool = False
    damaged: tuple[str, ...] = ()
    shards: int = 1


class Source(Protocol):
    """Images of one place.

    Attributes:
        location: as the user gave it.
        classes: the labels' names; empty where labels are bare numbers or there are none.
        inventory: what it holds, as far as is known before all of it is read.
        advice: what gives such a source labels, for the message of a task that needs them.
    """

    @property
    def location(self) -> str: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def inventory(self) -> Inventory: ...
    @property
    def advice(self) -> str: ...
    def chosen(self, split: str) -> Source:
        """The part in one split, however it is spelt. Raises UsageError: there is none."""
        ...

    def shards(self, rows: int) -> Sequence[Shard]:
        """Cut into shards of about so many rows; what has a cut of its own (a tar) keeps it."""
        ...

    def listing(self) -> Listing:
        """Raises UsageError where images can only be read in order; says what to do."""
        ...


def class_name(source: Source, label: int | None) -> str | None:
    """What a label is called: a bare number by its digits."""
    if label is None or label < 0:
        return None
    return source.classes[label] if source.classes else str(label)


def no_split(location: str, split: str, there: Sequence[str]) -> UsageError:
    if not there:
        return UsageError(f"--split has no effect: {location} has no splits")
    return UsageError(f"{location} has no split {split}, only {', '.join(there)}")
