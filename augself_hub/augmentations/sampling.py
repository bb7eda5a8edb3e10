"""Keyed random parameters of views.

The parameters of view v of sample i in epoch e depend on (seed, e, i, v) alone, never on how many
were drawn before, so they do not depend on workers, processes, machines or interruptions. Every
number has its own column: switching one augmentation on leaves the others as they were.

The generator is SplitMix64's finaliser (Steele et al., OOPSLA 2014) over the key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from augself_hub.augmentations.spec import Policy

Parameters = dict[str, Any]
"""The augmentation parameters of N views: kind -> array, in physical units.

crop   (N, 4) float: top, left, height, width of the box as fractions of the source image
flip   (N,)   bool: mirrored
color  (N, 4) float: brightness, contrast, saturation factors and hue shift in turns; 1, 1, 1, 0
       where not applied
order  (N, 4) int: which of the four colour operations comes first, second, third and last
sol    (N,)   float: threshold in [0, 1]; 1 where not applied
gray   (N,)   bool
colorless (N,) bool: the crop is gray already, before anything is done to it; only where it was
       looked at (`modeling.views`), and nothing follows from it but what can be seen of the colour
blur   (N,)   float: sigma in pixels of the view; 0 where not applied
rot    (N,)   int: counter-clockwise quarter turns 0..3
"""

ATTEMPTS = 10  # of the random resized crop, as in torchvision
_COLUMNS = {
    "area": 0,
    "ratio": ATTEMPTS,
    **{name: 2 * ATTEMPTS + i for i, name in enumerate(("top", "left", "flip"))},
    **{name: 32 + i for i, name in enumerate(("color", "bright", "contr", "sat", "hue"))},
    "order": 40,  # four columns
    **{name: 48 + i for i, name in enumerate(("sol", "sol_p", "gray", "blur", "blur_p"))},
    **{name: 56 + i for i, name in enumerate(("rot", "rot_p"))},
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_OFFSETS = np.arange(1, 2 + max(_COLUMNS.values()), dtype=np.uint64) * _GOLDEN


def draw(
    policy: Policy,
    key: tuple[int, Any, Any, Any],
    height: Any,
    width: Any,
) -> Parameters:
    """Draw the parameters of one view of N samples.

    Args:
        policy: ranges and probabilities.
        key: (seed, epoch, index, view); index is an int or (N,) ints, epoch and view likewise.
        height, width: of the source images in pixels, an int or (N,) ints.

    Returns:
        `Parameters` as numpy arrays of N rows (N is 1 for an int index).
    """
    random = _Uniform(key)
    order = np.argsort(random("order", 4), axis=1)
    return {
        "crop": _crop(random, policy, np.atleast_1d(height), np.atleast_1d(width)),
        "flip": random("flip") < policy.flip,
        "color": _color(random, policy),
        "order": order,
        "sol": np.where(random("sol_p") < policy.sol, random("sol"), 1.0),
        "gray": random("gray") < policy.gray,
        "blur": np.where(random("blur_p") < policy.blur, _between(random("blur"), policy.sigma), 0),
        "rot": np.where(random("rot_p") < policy.rot, (random("rot") * 4).astype(np.int64), 0),
    }


def unchanged(n: int) -> Parameters:
    """The parameters of N views that are the whole image as it is."""
    return {
        "crop": np.tile([0.0, 0.0, 1.0, 1.0], (n, 1)),
        "flip": np.zeros(n, bool),
        "color": np.tile([1.0, 1.0, 1.0, 0.0], (n, 1)),
        "order": np.tile(np.arange(4), (n, 1)),
        "sol": np.ones(n),
        "gray": np.zeros(n, bool),
        "blur": np.zeros(n),
        "rot": np.zeros(n, np.int64),
    }


def pixel_box(crop: Any, height: int, width: int) -> tuple[int, int, int, int]:
    """(4,) fractions of a source of height x width -> left, top, right, bottom in pixels."""
    top, left, h, w = (round(float(v) * n) for v, n in zip(crop, (height, width) * 2, strict=True))
    return left, top, left + w, top + h


class _Uniform:
    """Uniform numbers in [0, 1) by column name, for one key; all are made at once, in one pass."""

    def __init__(self, key: tuple[int, Any, Any, Any]) -> None:
        seed, epoch, index, view = key
        state = np.zeros(np.atleast_1d(np.asarray(index)).shape[0], dtype=np.uint64)
        for part in (seed, epoch, np.atleast_1d(np.asarray(index)).astype(np.uint64), view):
            state = _mix(state ^ np.asarray(part).astype(np.uint64))
        self.numbers = (_mix(state[:, None] + _OFFSETS) >> np.uint64(11)) * 2.0**-53

    def __call__(self, name: str, columns: int = 0) -> np.ndarray:
        """(N,) numbers, or (N, columns) where columns are asked for."""
        start = _COLUMNS[name]
        return self.numbers[:, start : start + columns] if columns else self.numbers[:, start]


def _mix(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z, dtype=np.uint64) + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def _between(u: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _crop(random: _Uniform, policy: Policy, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """torchvision's random resized crop: the first of ten tries that fits, else the largest box."""
    height, width = height.astype(np.float64)[:, None], width.astype(np.float64)[:, None]
    area = height * width * _between(random("area", ATTEMPTS), policy.scale)
    ratio = np.exp(_between(random("ratio", ATTEMPTS), tuple(np.log(policy.ratio))))
    w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.argmax(fits, axis=1)[:, None]
    found = fits.any(axis=1)
    height, width = height[:, 0], width[:, 0]
    h, w = (np.take_along_axis(v, first, axis=1)[:, 0] for v in (h, w))
    top = np.floor(random("top") * (height - h + 1))
    left = np.floor(random("left") * (width - w + 1))
    clipped_w = np.minimum(width, np.maximum(1, np.round(height * policy.ratio[1])))
    clipped_h = np.minimum(height, np.maximum(1, np.round(width / policy.ratio[0])))
    h, w = np.where(found, h, clipped_h), np.where(found, w, clipped_w)
    top = np.where(found, top, (height - clipped_h) // 2)
    left = np.where(found, left, (width - clipped_w) // 2)
    return np.stack([top / height, left / width, h / height, w / width], axis=1)


def _color(random: _Uniform, policy: Policy) -> np.ndarray:
    """(N, 4) factors and hue shift; the identity where the jitter is not applied."""
    columns = {"bright": "brightness", "contr": "contrast", "sat": "saturation"}
    factors = [_between(random(c), policy.factors(name)) for c, name in columns.items()]
    hue = _between(random("hue"), (-policy.hue, policy.hue))
    applied = (random("color") < policy.color)[:, None]
    return np.where(applied, np.stack([*factors, hue], axis=1), np.array([1.0, 1.0, 1.0, 0.0]))
