"""Image operations on batches of views, each sample with its own parameters.

Views are (N, 3, S, S) floats in [0, 1]. The code uses the subset numpy and torch share (the array
API), so the same lines run in the demo, in tests and on the training device. torchvision's
functions on single images are the reference; tests compare with them.

The crop is not here: ragged photographs cannot be batched. See `preprocess.crop_resized`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Policy

Array = Any
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, torchvision's digits


def augment(views: Array, parameters: Parameters, policy: Policy) -> Array:
    """Everything after the crop, in the paper's order.

    flip -> colour jitter -> [solarize] -> gray -> blur -> [rotation]

    Args:
        views: (N, 3, S, S) floats in [0, 1]; not modified.
        parameters: of the N views (see `sampling.Parameters`), same library and device.
        policy: tells the width of the blur kernel.
    """
    xp = array_namespace(views)
    p = {name: _cast(xp, value, views) for name, value in parameters.items()}
    views = xp.where(p["flip"][:, None, None, None], xp.flip(views, axis=-1), views)
    views = jitter(views, p["color"], p["order"])
    views = xp.where(views >= p["sol"][:, None, None, None], _inverted(views, p["sol"]), views)
    views = xp.where(p["gray"][:, None, None, None], gray(views), views)
    views = _where_needed(views, p["blur"] > 0, gaussian_blur, p["blur"], policy.blur_kernel)
    return rotate(views, p["rot"])


def _cast(xp: Any, values: Array, views: Array) -> Array:
    """Real parameters take the views' type; flags and counts stay as they are."""
    if xp.isdtype(values.dtype, "real floating"):
        return xp.astype(values, views.dtype)
    return values


def _inverted(views: Array, threshold: Array) -> Array:
    """A threshold of 1 leaves the view alone, pure white included."""
    xp = array_namespace(views)
    return xp.where((threshold < 1)[:, None, None, None], 1 - views, views)


def jitter(views: Array, color: Array, order: Array) -> Array:
    """Brightness, contrast, saturation and hue, in each sample's own order.

    Args:
        color: (N, 4) factors and hue shift in turns.
        order: (N, 4) permutations of 0..3.

    For each turn the samples whose turn it is are gathered, so each operation runs once a sample.
    """
    xp = array_namespace(views)
    applied = xp.any(color != _like(xp, (1.0, 1.0, 1.0, 0.0), color), axis=1)
    for turn in range(4):
        for operation, function in enumerate((brightness, contrast, saturation, hue)):
            wanted = applied & (order[:, turn] == operation)
            views = _where_needed(views, wanted, function, color[:, operation])
    return views


def _where_needed(views: Array, wanted: Array, function: Any, amount: Array, *rest: Any) -> Array:
    """Apply function(views, amount, *rest) to the samples where `wanted`, without copying twice."""
    xp = array_namespace(views)
    rows = xp.nonzero(wanted)[0]
    if rows.shape[0] == 0:
        return views
    changed = function(views[rows], amount[rows], *rest)
    views = xp.asarray(views, copy=True)
    views[rows] = changed
    return views


def brightness(views: Array, factor: Array) -> Array:
    xp = array_namespace(views)
    return xp.clip(views * factor[:, None, None, None], min=0, max=1)


def contrast(views: Array, factor: Array) -> Array:
    xp = array_namespace(views)
    mean = xp.mean(luma(views), axis=(1, 2, 3), keepdims=True)
    return _blend(views, mean, factor)


def saturation(views: Array, factor: Array) -> Array:
    return _blend(views, luma(views), factor)


def hue(views: Array, turns: Array) -> Array:
    """Shift the hue by `turns` of the colour circle, through HSV.

    The way back uses f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, for
    n = 5, 3, 1 (red, green, blue).
    """
    xp = array_namespace(views)
    red, green, blue = views[:, 0], views[:, 1], views[:, 2]
    value = xp.max(views, axis=1)
    chroma = value - xp.min(views, axis=1)
    safe = xp.where(chroma > 0, chroma, xp.ones_like(chroma))
    sixths = xp.where(
        value == red,
        (green - blue) / safe,
        xp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * turns[:, None, None]
    channels = []
    for n in (5, 3, 1):
        k = xp.remainder(n + sixths, xp.full_like(sixths, 6.0))
        channels.append(value - chroma * xp.clip(xp.minimum(k, 4 - k), min=0, max=1))
    return xp.stack(channels, axis=1)


def gray(views: Array) -> Array:
    """Luma in all three channels."""
    return array_namespace(views).broadcast_to(luma(views), views.shape)


def luma(views: Array) -> Array:
    """(N, 1, S, S) brightness as the eye weighs it."""
    red, green, blue = _LUMA
    return red * views[:, 0:1] + green * views[:, 1:2] + blue * views[:, 2:3]


def gaussian_blur(views: Array, sigma: Array, kernel: int) -> Array:
    """Separable Gaussian blur with reflected borders.

    Args:
        sigma: (N,) in pixels.
        kernel: number of taps, odd.
    """
    xp = array_namespace(views)
    half = kernel // 2
    offsets = _like(xp, range(-half, half + 1), sigma)
    weights = xp.exp(-0.5 * (offsets[None, :] / sigma[:, None]) ** 2)
    weights = weights / xp.sum(weights, axis=1, keepdims=True)
    for axis in (2, 3):
        padded = _reflected(views, half, axis)
        length = views.shape[axis]
        blurred = xp.zeros_like(views)
        for tap in range(kernel):
            window = padded[:, :, tap : tap + length] if axis == 2 else padded[..., tap:][..., :length]
            blurred = blurred + weights[:, tap, None, None, None] * window
        views = blurred
    return views


def rotate(views: Array, turns: Array) -> Array:
    """Counter-clockwise quarter turns, (N,) ints."""
    xp = array_namespace(views)
    transposed = xp.permute_dims(views, (0, 1, 3, 2))
    options = (
        (1, xp.flip(transposed, axis=2)),
        (2, xp.flip(views, axis=(2, 3))),
        (3, xp.flip(transposed, axis=3)),
    )
    if not bool(xp.any(turns != 0)):
        return views
    for k, turned in options:
        views = xp.where((turns == k)[:, None, None, None], turned, views)
    return views


def normalise(views: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(views - mean) / std per channel."""
    xp = array_namespace(views)
    mean, std = (_like(xp, values, views)[None, :, None, None] for values in (mean, std))
    return (views - mean) / std


def _blend(views: Array, other: Array, factor: Array) -> Array:
    xp = array_namespace(views)
    factor = factor[:, None, None, None]
    return xp.clip(factor * views + (1 - factor) * other, min=0, max=1)


def _reflected(views: Array, half: int, axis: int) -> Array:
    """Mirror `half` pixels at both ends of an axis, the edge pixel itself not repeated."""
    xp = array_namespace(views)
    length = views.shape[axis]
    index = np.abs(np.arange(-half, length + half))
    index = np.minimum(index, 2 * (length - 1) - index)
    return xp.take(views, xp.asarray(index, device=device(views)), axis=axis)


def _like(xp: Any, values: Any, like: Array) -> Array:
    return xp.asarray(list(values), dtype=like.dtype, device=device(like))
