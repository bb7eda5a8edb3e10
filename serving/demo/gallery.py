"""Pictures to search, and their features under one model or another, computed once.

The shipped gallery has 160-pixel pictures of known licences, and comes with their features under
two models that were trained alike but for AugSelf: `docs/making/gallery.py` makes both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import FeatureTable, read_manifest
from augself_hub.images import Listing, open_recorded
from augself_hub.preprocess import decode
from serving.inference.client import ModelClient

log = logging.getLogger(__name__)
PICTURES = Path(__file__).parent / "pictures"
FEATURES = PICTURES / "features.npz"
PICKS = 24  # pictures offered as queries
OPENING = "transportation-roadsigns-07"  # the one that is shown first, chosen by eye
LARGEST = 500  # pictures of a table that are searched, evenly spaced


@dataclass(frozen=True)
class Twins:
    """Features (N, D) of a gallery under two models trained alike, with AugSelf and without.

    Args:
        about: the command that computed them; of each model its sha256 and how it was trained.
    """

    augself: np.ndarray
    plain: np.ndarray
    about: dict[str, Any]


@dataclass
class Gallery:
    """N pictures.

    Args:
        names: of the pictures. open: a number -> the picture, RGB.
        about: what they are, one sentence. picks: the numbers offered as queries.
        known: sha256 of a model -> (N, D) features that need not be computed.
        twins: what two models say that are not served.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    about: str
    picks: Sequence[int]
    known: dict[str, np.ndarray] = field(default_factory=dict)
    twins: Twins | None = None
    _found: dict[str, np.ndarray] = field(default_factory=dict)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def features(self, model: ModelClient) -> np.ndarray:
        """(N, D) under a served model.

        Raises:
            AugSelfError: the server is full: nothing is kept, so the next one tries again.
        """
        if model.sha256 in self.known:
            return self.known[model.sha256]
        with self._busy:
            if model.sha256 not in self._found:
                self._found[model.sha256] = np.concatenate(list(self._computed(model)))
        return self._found[model.sha256]

    def _computed(self, model: ModelClient) -> Iterator[np.ndarray]:
        """In requests within the server's limits, as everybody's."""
        numbers = range(len(self.names))
        for start in range(0, len(numbers), model.limits.items):
            some = numbers[start : start + model.limits.items]
            yield model.features([model.prepare(self.open(number)) for number in some])


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


def shipped() -> Gallery:
    """The pictures that come with the demo.

    Raises:
        AugSelfError: the stored features are not of these pictures.
    """
    with np.load(FEATURES, allow_pickle=False) as stored:
        names, about = stored["names"].tolist(), json.loads(str(stored["about"]))
        twins = Twins(stored["augself"], stored["plain"], about)
    if digest(names) != about["pictures"]:
        raise AugSelfError(f"{FEATURES} is not of the pictures beside it: install again")
    pictures = [decode((PICTURES / name).read_bytes()) for name in names]
    stems = [Path(name).stem for name in names]
    colors = np.stack([palette(picture) for picture in pictures])
    gaps = shared(colors, twins.augself) - shared(colors, twins.plain)
    seen = gaps * (1 - colors[:, -1])  # of gray pictures one sees little
    seen[stems.index(OPENING)] = np.inf
    picks = _different(stems, np.argsort(-seen, kind="stable"))
    about = f"{len(names)} photographs and drawings"
    return Gallery(stems, pictures.__getitem__, about, picks, twins=twins)


def palette(picture: Image.Image) -> np.ndarray:
    """(13,) shares of twelve hues, each pixel as far as it is coloured, and of what has no colour.

    What has none counts a quarter: white paper says little about a drawing.
    """
    hue, saturation, value = (
        np.asarray(picture.resize((48, 48)).convert("HSV"), int).reshape(-1, 3).T
    )
    colored = saturation * value / 255**2
    hues = np.bincount(hue * 12 // 256, weights=colored, minlength=12)
    shares: np.ndarray = np.append(hues, (len(hue) - colored.sum()) / 4)
    shares /= shares.sum()
    return shares


def shared(colors: np.ndarray, features: np.ndarray, count: int = 8) -> np.ndarray:
    """(N, 13) palettes and (N, D) features -> (N,) how much of its colours a picture shares with
    its `count` nearest ones on average, in [0, 1]."""
    near = [nearest(query, features, number, count) for number, query in enumerate(features)]
    shares = (np.minimum(own, colors[n]).sum(axis=1) for own, n in zip(colors, near, strict=True))
    return np.array([float(share.mean()) for share in shares])


def _different(names: Sequence[str], ordered: np.ndarray) -> list[int]:
    """The first PICKS numbers, at most two of pictures whose names begin alike."""
    taken: Counter[str] = Counter()
    found: list[int] = []
    for number in map(int, ordered):
        family = names[number].rsplit("-", 1)[0].rsplit("-", 1)[0]
        if len(found) < PICKS and taken[family] < 2:
            found.append(number)
            taken[family] += 1
    return found


def digest(names: Sequence[str]) -> str:
    """sha256 of the shipped pictures of these names, in this order."""
    known = hashlib.sha256()
    for name in names:
        known.update((PICTURES / name).read_bytes())
    return known.hexdigest()


def of_table(folder: Path, models: Sequence[ModelClient]) -> Gallery:
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
        source = open_recorded(was)
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
