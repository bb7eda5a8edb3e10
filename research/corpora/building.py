"""Packages -> a folder of what is trained on and what is measured on, which share no picture."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from augself_hub.errors import ImageError
from augself_hub.folder import file_sha256, new_folder
from research.corpora.pictures import (
    Picture,
    alike,
    distinct,
    file_name,
    find,
    perceptual_hash,
    squared,
)
from research.corpora.sets import SIDE, Example, LabelledSet, splits, tiles
from research.corpora.table import (
    DEVELOPMENT,
    FINAL,
    KEPT_OUT,
    LEFT_OUT,
    PHOTOGRAPHS,
    PRETRAIN_SHORT_SIDES,
)

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
PRETRAIN, HELD_OUT = "pretrain", "held-out"
DEVELOPMENT_SETS, FINAL_SETS = "development", "final"
JPEG_QUALITY = 92
Entry = dict[str, Any]


@dataclass(frozen=True)
class Collection:
    """Pictures and their perceptual hashes."""

    pictures: list[Picture]
    hashes: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.pictures)

    def matching(self, patterns: Iterable[str]) -> Collection:
        return self.at(i for i, p in enumerate(self.pictures) if p.matches(patterns))

    def without(self, patterns: Iterable[str]) -> Collection:
        return self.at(i for i, p in enumerate(self.pictures) if not p.matches(patterns))

    def distinct(self) -> Collection:
        """Without those that look like one before them."""
        return self.at(distinct(self.hashes))

    def unlike(self, others: Collection) -> Collection:
        """Those that look like none of the others."""
        same = alike(self.hashes, others.hashes).any(axis=1)
        return self.at(np.flatnonzero(~same))

    def at(self, positions: Iterable[int]) -> Collection:
        rows = list(positions)
        return Collection([self.pictures[i] for i in rows], [self.hashes[i] for i in rows])

    def __add__(self, other: Collection) -> Collection:
        return Collection(self.pictures + other.pictures, self.hashes + other.hashes)


def build(packages: Path, output: Path) -> Counter[str]:
    """Write a new folder `output`, laid out as the package's docstring says.

    Args:
        packages: where the Debian packages were unpacked, together or one folder each.

    Returns:
        How many images there are by folder, e.g. final/flags.

    Raises:
        AugSelfError: no pictures there, or `output` exists.
    """
    everything = _collected(packages)
    final = _of_sets(everything, FINAL)
    development = {
        name: collection.unlike(_together(final.values()))
        for name, collection in _of_sets(everything, DEVELOPMENT).items()
    }
    measured = _together([*final.values(), *development.values()])
    trained = everything.without(KEPT_OUT).distinct().unlike(measured)
    with new_folder(output) as stage:
        entries = [
            *_write_sets(stage / FINAL_SETS, FINAL, final),
            *_write_sets(stage / DEVELOPMENT_SETS, DEVELOPMENT, development),
            *_write_pretraining(stage / PRETRAIN, trained),
            *_write_tiles(stage / HELD_OUT, measured.matching(PHOTOGRAPHS).distinct()),
        ]
        _write_manifest(stage, entries)
    return Counter(_part(entry["path"].relative_to(stage)) for entry in entries)


def _collected(packages: Path) -> Collection:
    """All pictures that can be read; of those that look alike the largest file comes first."""
    pictures, hashes = [], []
    for picture in sorted(find(packages), key=lambda p: (-p.path.stat().st_size, p.name)):
        if picture.matches(LEFT_OUT):
            continue
        try:
            hashes.append(perceptual_hash(squared(picture.image(), SIDE)))
        except ImageError as error:
            log.warning("left out %s: %s", picture.name, error)
            continue
        pictures.append(picture)
    return Collection(pictures, hashes)


def _of_sets(everything: Collection, sets: dict[str, LabelledSet]) -> dict[str, Collection]:
    return {name: _of_set(everything, which) for name, which in sets.items()}


def _of_set(everything: Collection, which: LabelledSet) -> Collection:
    """One picture of each look; none that looks like one of another class of the set."""
    parts = [everything.matching(patterns).distinct() for patterns in which.classes.values()]
    return _together(part.unlike(_together(p for p in parts if p is not part)) for part in parts)


def _together(collections: Iterable[Collection]) -> Collection:
    return sum(collections, Collection([], []))


def _write_sets(
    folder: Path, sets: dict[str, LabelledSet], collections: dict[str, Collection]
) -> Iterator[Entry]:
    for name, which in sets.items():
        examples = sorted(_examples(which, collections[name]), key=lambda e: e.name)
        for example, split in zip(examples, splits(examples), strict=True):
            path = folder / name / split / example.label / example.name
            yield _saved(example.image, path, example.source, which.tiles)


def _examples(which: LabelledSet, collection: Collection) -> Iterator[Example]:
    for picture in collection.pictures:
        yield from which.make(picture, which.class_of(picture))


def _write_pretraining(folder: Path, trained: Collection) -> Iterator[Entry]:
    photographs, drawings = trained.matching(PHOTOGRAPHS), trained.without(PHOTOGRAPHS)
    yield from _write_tiles(folder, photographs)
    for picture in drawings.pictures:
        path = folder / file_name(picture)
        yield _saved(squared(picture.image(), SIDE), path, picture.name, False)


def _write_tiles(folder: Path, photographs: Collection) -> Iterator[Entry]:
    for picture in photographs.pictures:
        image = picture.image()
        for side in (side for side in PRETRAIN_SHORT_SIDES if side <= min(image.size)):
            for row, column, _, tile in tiles(image, side):
                path = folder / f"{file_name(picture)}-{side}-{row}-{column}"
                yield _saved(tile, path, picture.name, True)


def _saved(image: Image.Image, path: Path, source: str, tile: bool) -> Entry:
    """Tiles of photographs become JPEGs; drawings PNGs, which have no ringing at their edges."""
    path = path.with_name(f"{path.name}.{'jpg' if tile else 'png'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": JPEG_QUALITY} if tile else {}))
    return {"path": path, "source": source}


def _write_manifest(stage: Path, entries: list[Entry]) -> None:
    """sha256 and source of each file; and of all lines `sha256  path`, sorted by path."""
    files = {}
    for entry in sorted(entries, key=lambda e: e["path"].relative_to(stage).as_posix()):
        name = entry["path"].relative_to(stage).as_posix()
        files[name] = {"sha256": file_sha256(entry["path"]), "source": entry["source"]}
    lines = "".join(f"{file['sha256']}  {name}\n" for name, file in files.items())
    manifest = {
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "pillow": PIL.__version__,
        "files": files,
    }
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _part(path: Path) -> str:
    """pretrain/photographs, held-out, final/flags ..."""
    return "/".join(path.parts[: min(2, len(path.parts) - 1)])
