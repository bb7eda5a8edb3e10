"""Builds the image collections our own models are trained and measured on.

`photographs(packages, output)` cuts the pictures of the wallpaper packages of Debian into tiles.
The packages are unpacked first, without installing them:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 gnome-backgrounds \\
        plasma-workspace-wallpapers mate-backgrounds
    for f in *.deb; do dpkg -x $f packages; done
    python -m training.corpora packages corpus

Whole pictures are held out, never tiles of a picture that is trained on.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.preprocess import SUFFIXES, decode

log = logging.getLogger(__name__)
TILE = 160
SHORT_SIDES = (960, 480, 240)
HELD_OUT = 0.12


def photographs(packages: Path, output: Path) -> dict[str, int]:
    """Tiles of every picture under `packages` into output/train and output/held-out.

    Each picture is reduced to short sides of 960, 480 and 240 pixels and cut into tiles of 160.
    About one picture in eight is held out, decided by a hash of its name.

    Returns:
        The number of tiles by part.
    """
    counts = {"train": 0, "held-out": 0}
    for path in _pictures(packages):
        try:
            image = decode(path.read_bytes())
        except ImageError as error:
            log.warning("skipped %s: %s", path, error)
            continue
        name = path.relative_to(packages).with_suffix("").as_posix().replace("/", "-")
        part = "held-out" if _fraction(name) < HELD_OUT else "train"
        (output / part).mkdir(parents=True, exist_ok=True)
        for number, tile in enumerate(_tiles(image)):
            tile.save(output / part / f"{name}-{number:03d}.jpg", quality=92)
            counts[part] += 1
    if not sum(counts.values()):
        raise AugSelfError(f"no pictures under {packages}: unpack the Debian packages there")
    return counts


def _pictures(packages: Path) -> list[Path]:
    """The largest file of each picture: packages ship several sizes and a screenshot of it."""
    largest: dict[str, Path] = {}
    for path in sorted(packages.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or path.is_symlink():
            continue
        key = path.parts[-4] if "wallpapers" in path.parts else path.stem.split("_")[0]
        if key not in largest or path.stat().st_size > largest[key].stat().st_size:
            largest[key] = path
    return list(largest.values())


def _fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _tiles(image: Image.Image) -> Iterator[Image.Image]:
    for side in SHORT_SIDES:
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        reduced = image.resize(size, Image.Resampling.LANCZOS)
        for top in range(0, reduced.height - TILE + 1, TILE):
            for left in range(0, reduced.width - TILE + 1, TILE):
                yield reduced.crop((left, top, left + TILE, top + TILE))


if __name__ == "__main__":
    print(photographs(Path(sys.argv[1]), Path(sys.argv[2])))
