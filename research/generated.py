"""Draws labelled image sets in which colour, place and size are known. Each is one command:

    python -m research.generated sprites OUTPUT
    python -m research.generated digits OUTPUT

`sprites` draws shapes; OUTPUT/shape and OUTPUT/color hold the same images under two labels, with
boxes. `digits` tints scikit-learn's. The same command makes the same images; the sha256 it prints,
of names and pixels, says so. Sets of found pictures: `research.corpora`.
"""

from __future__ import annotations

import colorsys
import csv
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError
from training.evaluation.listing import png

SIDE = 96  # of every image, in pixels
SPRITES = 2400
FINER = 4  # sprites are drawn so many times as large, for smooth edges
HUES = ("red", "orange", "green", "cyan", "blue", "magenta")
_AT = dict(zip(HUES, (0, 30, 120, 185, 230, 300), strict=True))  # degrees
Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) <= 0.7 + 0.3 * np.cos(5 * np.arctan2(u, -v))


SHAPES: dict[str, Mask] = {
    "disc": lambda u, v: np.hypot(u, v) <= 1,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.8) <= 0.2,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "triangle": lambda u, v: 2 * abs(u) <= v + 1,
    "cross": lambda u, v: np.minimum(abs(u), abs(v)) <= 0.3,
    "star": _star,
    "crescent": lambda u, v: (np.hypot(u, v) <= 1) & (np.hypot(u - 0.5, v) > 0.8),
}
"""Whether a point belongs to the shape; u to the right and v down, within [-1, 1]."""


def sprites(output: Path, count: int = SPRITES, seed: int = 0) -> str:
    """Draw `count` sprites into output/shape and output/color.

    Returns:
        sha256 of names and pixels.

    Raises:
        AugSelfError: the folder exists.
    """
    _begin(output)
    drawn: dict[str, np.ndarray] = {}
    boxes: dict[str, list[tuple[str, ...]]] = {"shape": [], "color": []}
    for number in range(count):
        labels = {"shape": [*SHAPES][number % len(SHAPES)]}
        labels["color"] = HUES[number // len(SHAPES) % len(HUES)]
        pixels, box = sprite(labels["shape"], labels["color"], (seed, number))
        for kind, label in labels.items():
            name = f"{label}/{number:05d}.png"
            drawn[f"{kind}/{name}"] = pixels
            boxes[kind].append((name, *(f"{value:.3f}" for value in box)))
    digest = _write(output, drawn)
    for kind, rows in boxes.items():
        with (output / kind / "boxes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "left", "top", "width", "height"), *rows])
    return digest


def sprite(
    shape: str, color: str, key: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """One sprite (SIDE, SIDE, 3) uint8 and its box: left, top, width, height in pixels.

    Place, size (30% to 70% of the side), shade, and the two dull colours between which the
    background runs are drawn from the key.
    """
    random = np.random.default_rng(key)
    radius = random.uniform(0.15, 0.35)
    x, y = random.uniform(radius, 1 - radius, 2)
    hue = (_AT[color] + random.uniform(-10, 10)) / 360
    paint = colorsys.hsv_to_rgb(hue % 1, random.uniform(0.7, 1), random.uniform(0.6, 1))
    first, second = random.uniform(0.4, 0.7, (2, 1)) + random.uniform(-0.08, 0.08, (2, 3))
    points = (np.arange(SIDE * FINER) + 0.5) / (SIDE * FINER)
    u, v = ((points - x) / radius)[None, :], ((points - y) / radius)[:, None]
    inside = SHAPES[shape](u, v) & (np.maximum(abs(u), abs(v)) <= 1)
    cover = inside.reshape(SIDE, FINER, SIDE, FINER).mean(axis=(1, 3))[..., None]
    slope = np.linspace(0, 1, SIDE)[:, None, None]
    background = (1 - slope) * first + slope * second + random.normal(0, 0.02, (SIDE, SIDE, 3))
    pixels = cover * np.array(paint) + (1 - cover) * background
    box = (x - radius, y - radius, 2 * radius, 2 * radius)
    return _bytes(pixels), tuple(SIDE * value for value in box)  # type: ignore[return-value]


def digits(output: Path, seed: int = 0) -> str:
    """scikit-learn's 1,797 handwritten digits, each in a random colour on another."""
    from sklearn.datasets import load_digits

    _begin(output)
    found = load_digits()
    drawn = {}
    for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        random = np.random.default_rng((seed, number))
        hue, apart = random.random(), random.uniform(0.25, 0.75)
        ink = colorsys.hsv_to_rgb(hue, random.uniform(0.6, 1), random.uniform(0.7, 1))
        paper = colorsys.hsv_to_rgb((hue + apart) % 1, random.uniform(0.2, 0.8), 0.4)
        large = Image.fromarray((image / 16).astype(np.float32))
        large = large.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cover = np.asarray(large).clip(0, 1)[..., None]
        pixels = cover * np.array(ink) + (1 - cover) * np.array(paper)
        drawn[f"{label}/{number:04d}.png"] = _bytes(pixels)
    return _write(output, drawn)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def _begin(output: Path) -> None:
    """Make the folder, or refuse one that exists before anything is drawn."""
    try:
        output.mkdir(parents=True)
    except FileExistsError:
        raise AugSelfError(f"{output} exists: choose another folder or remove it") from None


def _write(output: Path, pictures: dict[str, np.ndarray]) -> str:
    """Write PNGs below the folder -> sha256 of their names and pixels."""
    seen = hashlib.sha256()
    for name, pixels in pictures.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
        seen.update(name.encode() + b"\0" + pixels.tobytes())
    return seen.hexdigest()


_SETS: dict[str, Callable[..., str]] = {"sprites": sprites, "digits": digits}


def main(arguments: list[str]) -> None:
    """Draw a set, print the sha256 of its names and pixels."""
    if len(arguments) != 2 or arguments[0] not in _SETS:
        sys.exit(f"usage: python -m research.generated {'|'.join(_SETS)} OUTPUT")
    try:
        print(_SETS[arguments[0]](Path(arguments[1])))
    except (AugSelfError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
