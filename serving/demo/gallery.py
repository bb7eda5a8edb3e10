"""Pictures to search, and their features under one model or another, computed once.

The examples' gallery holds tiles of the example photographs, each in three colourings, so that a
search that ignores colour and one that does not have something to disagree about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.augmentations.functional import hue
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import FeatureTable, read_manifest
from augself_hub.images import Listing, Options, open_source
from augself_hub.preprocess import decode
from serving.demo.visitors import EXAMPLES
from serving.inference.client import Local

log = logging.getLogger(__name__)
ROWS = 3  # of tiles in a photograph
COLORINGS = {"": 0.0, ", hue turned a third": 1 / 3, ", hue turned two thirds": 2 / 3}
PICKS = 12  # pictures offered as queries
LARGEST = 500  # pictures of a table that are searched, evenly spaced


@dataclass
class Gallery:
    """N pictures.

    Args:
        names: of the pictures. open: a number -> the picture, RGB.
        about: what they are, one sentence. picks: the numbers offered as queries.
        known: sha256 of a model -> (N, D) features that need not be computed.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    about: str
    picks: Sequence[int]
    known: dict[str, np.ndarray] = field(default_factory=dict)
    _found: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def features(self, model: Local, colorless: bool) -> np.ndarray:
        """(N, D), of the pictures as they are or made gray first.

        Raises:
            AugSelfError: the server is full: nothing is kept, so the next one tries again.
        """
        if not colorless and model.sha256 in self.known:
            return self.known[model.sha256]
        key = (model.sha256, colorless)
        with self._busy:
            if key not in self._found:
                self._found[key] = np.concatenate(list(self._computed(model, colorless)))
        return self._found[key]

    def _computed(self, model: Local, colorless: bool) -> Iterator[np.ndarray]:
        """In requests within the server's limits, as everybody's."""
        numbers = range(len(self.names))
        for start in range(0, len(numbers), model.limits.items):
            some = (self.open(n) for n in numbers[start : start + model.limits.items])
            yield features_of(model, some, colorless)


def features_of(model: Local, pictures: Iterator[Image.Image], colorless: bool) -> np.ndarray:
    """Pictures -> (N, D); without colour each is made gray first."""
    shown = (p.convert("L").convert("RGB") if colorless else p for p in pictures)
    return model.features([model.prepare(picture) for picture in shown])


def nearest(query: np.ndarray, features: np.ndarray, but: int | None, count: int) -> np.ndarray:
    """Numbers of the `count` rows of (N, D) most like a query (D,), by cosine, best first.

    Args:
        but: a row that is left out: the query itself.
    """
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    cosine = rows @ query / np.maximum(lengths, 1e-12)
    if but is not None:
        cosine[but] = -np.inf
    return np.argsort(-cosine, kind="stable")[: min(count, len(rows) - (but is not None))]


def of_examples() -> Gallery:
    """Square tiles of the examples in three colourings."""
    tiles = [tile for path in EXAMPLES for tile in _tiles(Path(path))]
    pictures = [
        (f"{name}{suffix}", _recolored(tile, turns))
        for name, tile in tiles
        for suffix, turns in COLORINGS.items()
    ]
    names = [name for name, _ in pictures]
    about = (
        f"The gallery: {len(tiles)} tiles of the example photographs, each in {len(COLORINGS)} "
        "colourings."
    )
    return Gallery(names, [picture for _, picture in pictures].__getitem__, about, _picks(tiles))


def _picks(tiles: Sequence[tuple[str, Image.Image]]) -> list[int]:
    """The most colourful tile of every photograph, as it is and with another hue."""
    best: dict[str, tuple[float, int]] = {}
    for number, (name, tile) in enumerate(tiles):
        photograph, colors = name.split()[0], np.asarray(tile, np.int16)
        colorful = float(np.ptp(colors, axis=-1).mean())
        best[photograph] = max(best.get(photograph, (-1.0, 0)), (colorful, number))
    return [len(COLORINGS) * n + turned for _, n in best.values() for turned in (0, 1)]


def _tiles(path: Path) -> Iterator[tuple[str, Image.Image]]:
    image = Image.open(path).convert("RGB")
    side = image.height // ROWS
    corners = ((x, y) for y in range(ROWS) for x in range(image.width // side))
    for number, (x, y) in enumerate(corners, 1):
        yield f"{path.stem} {number}", image.crop((x * side, y * side, *_end(x, y, side)))


def _end(x: int, y: int, side: int) -> tuple[int, int]:
    return (x + 1) * side, (y + 1) * side


def _recolored(tile: Image.Image, turns: float) -> Image.Image:
    views = np.asarray(tile, np.float32).transpose(2, 0, 1)[None] / 255
    turned = hue(views, np.array([turns], np.float32))[0].transpose(1, 2, 0)
    return Image.fromarray(np.round(turned * 255).astype(np.uint8)) if turns else tile


def of_table(folder: Path, models: Sequence[Local]) -> Gallery:
    """The pictures of a table that `augself extract` has written, where they still are.

    Raises:
        UsageError: the table comes from no served model, or its pictures are not there.
        AugSelfError: it is no finished table of features.
    """
    table = FeatureTable.read(folder)
    if table.model not in {model.sha256 for model in models}:
        raise UsageError(
            f"{folder} comes from model {table.model[:12]}, which is not served: give it as --model"
        )
    step = -(-len(table.ids) // LARGEST)
    was, names = read_manifest(folder)["source"], table.ids[::step]
    try:
        source = open_source(was["location"], Options.of_record(was))
        log.info("%s", source.inventory.text())
        listing = source.listing()
    except AugSelfError as error:
        raise UsageError(
            f"{names[0]}, a picture of {folder}, is not there: extract again ({error})"
        ) from error
    places = {name: place for place, name in enumerate(listing.names)}
    if missing := [name for name in names if name not in places]:
        raise UsageError(f"{missing[0]}, a picture of {folder}, is not there: extract again")
    read = partial(_opened, listing, [places[name] for name in names])
    known = {table.model: np.asarray(table.features[::step])}
    about = f"The gallery: {len(names)} of the {len(table.ids)} pictures of the table given."
    picks = range(0, len(names), len(names) // PICKS + 1)
    return Gallery(names, read, about, picks, known)


def _opened(listing: Listing, places: Sequence[int], number: int) -> Image.Image:
    return decode(listing.read(places[number]))
