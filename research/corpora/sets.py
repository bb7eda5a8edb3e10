"""The labelled sets: which pictures, which labels, and which of them stay on one side.

A set is made of whole sub-sets of the packages, and none of their pictures is trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from research.corpora.pictures import Picture, file_name, squared

SIDE = 160
TILES_SHORT_SIDE = 960
SHARES = {"train": 0.4, "val": 0.2, "test": 0.4}


@dataclass(frozen=True)
class Example:
    """One labelled image.

    Args:
        name: its file's name without suffix, unique in its set.
        label: its class.
        group: examples of one group go to one split.
        source: name of the picture it comes from.
    """

    name: str
    label: str
    group: str
    source: str
    image: Image.Image


Maker = Callable[[Picture, str], Iterator[Example]]
"""(picture, class it was found under) -> its examples."""


@dataclass(frozen=True)
class LabelledSet:
    """How one set is made.

    Args:
        decides: what tells its classes apart, for people.
        classes: class -> patterns of names below usr/share; a name is of the first that it fits.
        make: a picture -> examples.
        tiles: they are tiles of photographs.
        shares: of a class, by split.
        near: pictures of at most this root mean square difference of their hashes, in grey levels,
            are variants of one drawing and go to one split; None: names alone say what varies.
        most: so many pictures of a class at most, those whose names' hashes come first.
        apart: of tiles that look the same only the first is kept.
    """

    decides: str
    classes: dict[str, tuple[str, ...]]
    make: Maker
    tiles: bool = False
    shares: dict[str, float] = field(default_factory=lambda: SHARES)
    near: float | None = None
    most: int | None = None
    apart: bool = False

    def class_of(self, picture: Picture) -> str | None:
        """The first class whose patterns the name is of."""
        return next((c for c, some in self.classes.items() if picture.matches(some)), None)


def whole(picture: Picture, label: str) -> Iterator[Example]:
    """The picture itself, of the class it was found under."""
    image = squared(picture.image(), SIDE)
    yield Example(file_name(picture), label, drawing(picture), picture.name, image)


def of_card(picture: Picture, label: str) -> Iterator[Example]:
    """The picture itself; the decks draw the same cards, so white_c_10 and simple_c_10 are one."""
    group = picture.name.rpartition("/")[2].partition("_")[2]
    image = squared(picture.image(), SIDE)
    yield Example(file_name(picture), label, group, picture.name, image)


def turned(picture: Picture, label: str) -> Iterator[Example]:
    """The picture in one of four positions; the class says how far it was turned to the left."""
    quarters = int(key_of(picture.name)[:8], 16) % 4
    image = squared(picture.image(), SIDE).rotate(90 * quarters)
    yield Example(file_name(picture), TURNS[quarters], drawing(picture), picture.name, image)


def heights(picture: Picture, label: str) -> Iterator[Example]:
    """Tiles of a photograph; the class is the third of its height they were cut from."""
    for row, column, rows, tile in tiles(picture.image(), TILES_SHORT_SIDE):
        name = f"{file_name(picture)}-{row}-{column}"
        yield Example(name, THIRDS[3 * row // rows], picture.name, picture.name, tile)


def scenes(picture: Picture, label: str) -> Iterator[Example]:
    """Tiles of a photograph; the class is the photograph, a column of tiles is one group."""
    for row, column, _, tile in tiles(picture.image(), TILES_SHORT_SIDE):
        name = f"{file_name(picture)}-{row}-{column}"
        yield Example(name, file_name(picture), f"{picture.name} {column}", picture.name, tile)


TURNS = ("0-upright", "1-left", "2-upside-down", "3-right")
THIRDS = ("0-top", "1-middle", "2-bottom")


def tiles(image: Image.Image, short_side: int) -> Iterator[tuple[int, int, int, Image.Image]]:
    """(row, column, rows, tile): an image reduced to a short side and cut into squares of 160."""
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    reduced = image.resize(size, Image.Resampling.LANCZOS)
    rows, columns = reduced.height // SIDE, reduced.width // SIDE
    for row in range(rows):
        for column in range(columns):
            left, top = column * SIDE, row * SIDE
            yield row, column, rows, reduced.crop((left, top, left + SIDE, top + SIDE))


def drawing(picture: Picture) -> str:
    """Variants of one drawing, told apart by a number or `bw` in the name, are one group."""
    folder, _, file = picture.name.rpartition("/")
    stem = file.rpartition(".")[0]
    return f"{folder}/{re.sub(r'([-_ .]?(bw|[0-9]+))+r?$', '', stem) or stem}"


def splits(examples: Sequence[Example], shares: dict[str, float] = SHARES) -> list[str]:
    """train, val or test for each example: of each class their shares, whole groups at a time.

    The groups of a class come in the order of a hash of their names, so the split is the same on
    every machine and whatever else is in the set. A group of several classes counts for its first.
    """
    sizes = Counter(example.group for example in examples)
    firsts: dict[str, str] = {}
    for example in examples:
        firsts[example.group] = min(example.label, firsts.get(example.group, example.label))
    found: dict[str, str] = {}
    for label in set(firsts.values()):
        found |= _shared_out({g: n for g, n in sizes.items() if firsts[g] == label}, shares)
    return [found[example.group] for example in examples]


def _shared_out(sizes: dict[str, int], shares: dict[str, float]) -> dict[str, str]:
    """group -> split, by where the middle of the group lies in the order of all."""
    total, before, found = sum(sizes.values()), 0, {}
    for group in sorted(sizes, key=key_of):
        found[group] = _split_at((before + sizes[group] / 2) / total, shares)
        before += sizes[group]
    return found


def _split_at(share: float, shares: dict[str, float]) -> str:
    reached = 0.0
    for split, part in shares.items():
        reached += part
        if share < reached:
            return split
    return split


def key_of(name: str) -> str:
    """What names are put in order by, the same on every machine and in no relation to them."""
    return hashlib.sha256(name.encode()).hexdigest()
