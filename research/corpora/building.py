"""Packages -> a folder of what is trained on and what is measured on, which share no picture."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from scipy.sparse.csgraph import connected_components

from augself_hub.errors import ImageError
from augself_hub.folder import file_sha256, new_folder
from research.corpora.pictures import (
    Picture,
    alike,
    distinct,
    drawn,
    file_name,
    find,
    perceptual_hash,
    squared,
)
from research.corpora.sets import SIDE, Example, LabelledSet, key_of, splits, tiles
from research.corpora.table import PRETRAIN_SHORT_SIDES, Table

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
PRETRAIN, HELD_OUT, DEVELOPMENT = "pretrain", "held-out", "development"
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


def build(packages: Path, output: Path, table: Table) -> Counter[str]:
    """Write a new folder `output`, laid out as the package's docstring says.

    Args:
        packages: where the Debian packages were unpacked, together or one folder each.

    Returns:
        How many images there are by folder, e.g. final/flags.

    Raises:
        AugSelfError: no pictures there, or `output` exists.
    """
    everything = _collected(packages, table)
    chosen = {
        role: {name: _of_set(everything, which) for name, which in sets.items()}
        for role, sets in table.sets.items()
    }
    judged = _together(c for role in chosen if role != DEVELOPMENT for c in chosen[role].values())
    chosen[DEVELOPMENT] = {name: c.unlike(judged) for name, c in chosen[DEVELOPMENT].items()}
    measured = judged + _together(chosen[DEVELOPMENT].values())
    trained = everything.without(table.kept_out).distinct().unlike(measured)
    with new_folder(output) as stage:
        entries = []
        for role, sets in table.sets.items():
            entries += _write_sets(stage / role, sets, chosen[role])
        apart = [entry["hash"] for entry in entries] if table.tiles_apart else []
        entries += _write_pretraining(stage / PRETRAIN, trained, table, apart)
        photographs = measured.matching(_photographs(table)).distinct()
        entries += _write_tiles(stage / HELD_OUT, photographs, [])
        _write_manifest(stage, entries)
    # Two tiles may have one name, of which the last is kept.
    return Counter(_part(path.relative_to(stage)) for path in {e["path"] for e in entries})


def _photographs(table: Table) -> tuple[str, ...]:
    """What tiles are cut from, to be trained on or to be measured on."""
    sets = [which for some in table.sets.values() for which in some.values() if which.tiles]
    return (*table.photographs, *(p for s in sets for some in s.classes.values() for p in some))


def _collected(packages: Path, table: Table) -> Collection:
    """All pictures that can be read, each drawing once.

    Of the sizes of a drawing, and of those that look alike, the largest file comes first.
    """
    pictures: dict[str, Picture] = {}
    hashes = []
    for picture in sorted(find(packages), key=lambda p: (-p.path.stat().st_size, p.name)):
        if not picture.matches(table.packages) or picture.matches(table.left_out):
            continue
        if drawn(picture) in pictures:
            continue
        try:
            hashes.append(perceptual_hash(squared(picture.image(), SIDE)))
        except ImageError as error:
            log.warning("left out %s: %s", picture.name, error)
            continue
        pictures[drawn(picture)] = picture
    return Collection(list(pictures.values()), hashes)


def _of_set(everything: Collection, which: LabelledSet) -> Collection:
    """One picture of each look; none that looks like one of another class of the set."""
    labels = [which.class_of(picture) for picture in everything.pictures]
    parts = [
        everything.at(i for i, label in enumerate(labels) if label == name).distinct()
        for name in which.classes
    ]
    apart = [part.unlike(_together(p for p in parts if p is not part)) for part in parts]
    return _together(part.at(_first(part, which.most)) for part in apart)


def _first(part: Collection, most: int | None) -> list[int]:
    """The positions of `most` pictures, by the keys of their drawings; in their old order."""
    keys = [key_of(drawn(picture)) for picture in part.pictures]
    return sorted(sorted(range(len(part)), key=keys.__getitem__)[:most])


def _together(collections: Iterable[Collection]) -> Collection:
    return sum(collections, Collection([], []))


def _write_sets(
    folder: Path, sets: dict[str, LabelledSet], collections: dict[str, Collection]
) -> Iterator[Entry]:
    for name, which in sets.items():
        examples = sorted(_examples(which, collections[name]), key=lambda e: e.name)
        for example, split in zip(examples, splits(examples, which.shares), strict=True):
            path = folder / name / split / example.label / example.name
            yield _saved(example.image, path, example.source, which.tiles)


def _examples(which: LabelledSet, collection: Collection) -> list[Example]:
    found = [
        example
        for picture in collection.pictures
        for example in which.make(picture, which.class_of(picture))
    ]
    if which.apart:
        found = [found[i] for i in distinct([perceptual_hash(e.image) for e in found])]
    return found if which.near is None else _near_in_one_group(found, collection, which.near)


def _near_in_one_group(
    examples: Sequence[Example], collection: Collection, near: float
) -> list[Example]:
    """Examples whose groups are joined where their pictures are that close, or were one before."""
    names = [picture.name for picture in collection.pictures]
    rows = np.array([names.index(example.source) for example in examples])
    close = alike(collection.hashes, collection.hashes, near)[np.ix_(rows, rows)]
    groups = np.array([example.group for example in examples])
    joined = connected_components(close | (groups[:, None] == groups), directed=False)[1]
    firsts = {j: min(groups[joined == j].tolist()) for j in set(joined)}
    return [replace(e, group=firsts[j]) for e, j in zip(examples, joined, strict=True)]


def _write_pretraining(
    folder: Path, trained: Collection, table: Table, apart: Sequence[np.ndarray]
) -> Iterator[Entry]:
    photographs, drawings = trained.matching(table.photographs), trained.without(table.photographs)
    yield from _write_tiles(folder, photographs, apart)
    for picture in drawings.pictures:
        path = folder / file_name(picture)
        yield _saved(squared(picture.image(), SIDE), path, picture.name, False)


def _write_tiles(
    folder: Path, photographs: Collection, apart: Sequence[np.ndarray]
) -> Iterator[Entry]:
    """Tiles of several sizes, but those that look like one of `apart`."""
    for picture in photographs.pictures:
        image = picture.image()
        for side in (side for side in PRETRAIN_SHORT_SIDES if side <= min(image.size)):
            cut = list(tiles(image, side))
            same = alike([perceptual_hash(tile) for *_, tile in cut], apart).any(axis=1)
            for (row, column, _, tile), left_out in zip(cut, same, strict=True):
                if not left_out:
                    path = folder / f"{file_name(picture)}-{side}-{row}-{column}"
                    yield _saved(tile, path, picture.name, True)


def _saved(image: Image.Image, path: Path, source: str, tile: bool) -> Entry:
    """Tiles of photographs become JPEGs; drawings PNGs, which have no ringing at their edges."""
    path = path.with_name(f"{path.name}.{'jpg' if tile else 'png'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": JPEG_QUALITY} if tile else {}))
    return {"path": path, "source": source, "hash": perceptual_hash(image)}


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
