"""Pictures in unpacked packages, and which of them look the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError
from augself_hub.images import SUFFIXES
from augself_hub.preprocess import decode

SHARE = "usr/share/"
ICONS = "icons/"
HASH_SIDE = 12
ALIKE = 4.0  # grey levels
MAX_PIXELS = 8 * 10**7
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Picture:
    """A picture of a package.

    Args:
        path: where its file is.
        name: its path below usr/share, the same on every machine.
    """

    path: Path
    name: str

    def image(self) -> Image.Image:
        """RGB, upright, over white. Raises ImageError for a damaged one."""
        return decode(self.path.read_bytes(), max_pixels=MAX_PIXELS)

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether the name is of one of these shell patterns; `*` also spans folders."""
        return any(fnmatchcase(self.name, pattern) for pattern in patterns)


def find(packages: Path) -> list[Picture]:
    """Every picture below any usr/share under `packages`, sorted by name; links are left out.

    Raises:
        AugSelfError: there is none.
    """
    found = {}
    for path in packages.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink():
            _, share, name = path.as_posix().rpartition(SHARE)
            if share:
                found[name] = Picture(path, name)
    if not found:
        raise AugSelfError(f"no pictures under {packages}: unpack the Debian packages there")
    return [found[name] for name in sorted(found)]


def file_name(picture: Picture) -> str:
    """Its name as one word, without the suffix."""
    return re.sub(r"[^\w.-]+", "-", picture.name.rpartition(".")[0].replace("/", "-"))


def drawn(picture: Picture) -> str:
    """What names a drawing: of an icon, which lies in a folder for each size, all but the size."""
    if not picture.name.startswith(ICONS):
        return picture.name
    return re.sub(r"/[0-9]+(x[0-9]+)?(?=/)", "", picture.name.rpartition(".")[0])


def squared(image: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a white square of at most `side` pixels."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), WHITE)
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest <= side:
        return square
    return square.resize((side, side), Image.Resampling.LANCZOS)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(12, 12, 3) uint8: what is left of a picture's colours in a square of 12 x 12 pixels.

    Colours stay in it: many flags and buttons differ in nothing else.
    """
    small = image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small)


def alike(
    hashes: Sequence[np.ndarray], others: Sequence[np.ndarray], levels: float = ALIKE
) -> np.ndarray:
    """(N, M) bool: whether two pictures look the same, as they are or one of them mirrored.

    That is a root mean square difference of their hashes of at most so many of 255 grey levels.
    """
    a, b, mirrored = _rows(hashes), _rows(others), _rows([h[:, ::-1] for h in others])
    return (_distances(a, b) <= levels) | (_distances(a, mirrored) <= levels)


def distinct(hashes: Sequence[np.ndarray]) -> list[int]:
    """The positions of the pictures that look like none that was kept before them."""
    same = alike(hashes, hashes)
    kept: list[int] = []
    for position in range(len(hashes)):
        if not same[position, kept].any():
            kept.append(position)
    return kept


def _rows(hashes: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(hashes, dtype=np.float64).reshape(len(hashes), HASH_SIDE * HASH_SIDE * 3)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) root mean square differences of rows."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])
