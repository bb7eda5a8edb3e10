"""Image operations on batches of views, each sample with its own parameters.

Views are (N, 3, S, S) floats in [0, 1]. The code uses the subset numpy and torch share (the array
API), so the same lines run in the demo, in tests and on the training device. torchvision's
functions on single images are the reference; tests compare with them.

The crop is not here: ragged photographs cannot be batched. See `preprocess.crop_resized`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

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
    p = {  # flags and counts stay as they are
        name: xp.astype(value, views.dtype) if xp.isdtype(value.dtype, "real floating") else value
        for name, value in parameters.items()
    }
    views = xp.asarray(views, copy=True)
    _change(views, p["flip"], mirror)
    _jitter(views, p["color"], p["order"], policy)
    _change(views, p["sol"] < 1, solarize, p["sol"])
    _change(views, p["gray"], luma)
    _change(views, p["blur"] > 0, partial(gaussian_blur, kernel=policy.blur_kernel), p["blur"])
    _rotate(views, p["rot"])
    return views


def _change(views: Array, wanted: Array, function: Any, *amounts: Array) -> None:
    """views[wanted] = function(views[wanted], *amounts[wanted]), in place: a private copy's job.

    Each operation thus costs only the samples that need it.
    """
    rows = array_namespace(views).nonzero(wanted)[0]
    if rows.shape[0] > 0:
        views[rows] = function(views[rows], *(amount[rows] for amount in amounts))


def mirror(views: Array) -> Array:
    """Left and right exchanged."""
    return array_namespace(views).flip(views, axis=-1)


def _jitter(views: Array, color: Array, order: Array, policy: Policy) -> None:
    """Brightness, contrast, saturation and hue, in each sample's own order, in place.

    For each place in the order the samples that have an operation there are gathered, so that each
    operation runs once a sample.
    """
    xp = array_namespace(views)
    saturate = saturation_hsv if policy.saturate == "hsv" else saturation
    applied = xp.any(color != _like(xp, (1.0, 1.0, 1.0, 0.0), color), axis=1)
    for place in range(4):
        for operation, function in enumerate((brightness, contrast, saturate, hue)):
            wanted = applied & (order[:, place] == operation)
            _change(views, wanted, function, color[:, operation])


def brightness(views: Array, factor: Array) -> Array:
    xp = array_namespace(views)
    return xp.clip(views * factor[:, None, None, None], min=0, max=1)


def contrast(views: Array, factor: Array) -> Array:
    mean = luma(array_namespace(views).mean(views, axis=(2, 3), keepdims=True))
    return _blend(views, mean, factor)


def saturation(views: Array, factor: Array) -> Array:
    return _blend(views, luma(views), factor)


def saturation_hsv(views: Array, factor: Array) -> Array:
    """HSV's saturation times a factor, at most 1; its hue and value stay.

    With value v, the largest channel, and saturation s, a channel c becomes v - (v - c) * s' / s.
    """
    xp = array_namespace(views)
    highest = xp.max(views, axis=1, keepdims=True)
    chroma = highest - xp.min(views, axis=1, keepdims=True)
    most = highest / xp.clip(chroma, min=1e-6)  # 1 / s: no more than saturation 1
    return highest - (highest - views) * xp.minimum(factor[:, None, None, None], most)


def hue(views: Array, turns: Array) -> Array:
    """Shift the hue by `turns` of the colour circle, through HSV.

    With the hue h in sixths of the circle, the way back is lowest + chroma * share, the shares of
    red, green and blue being |h - 3| - 1, 2 - |h - 2| and 2 - |h - 4|, each clipped to [0, 1].
    """
    xp = array_namespace(views)
    red, green, blue = views[:, 0], views[:, 1], views[:, 2]
    highest = xp.maximum(xp.maximum(red, green), blue)
    lowest = xp.minimum(xp.minimum(red, green), blue)
    chroma = highest - lowest
    ahead = xp.where(
        highest == red,
        green - blue,
        xp.where(highest == green, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    h = ahead / xp.clip(chroma, min=1e-6)  # ahead is 0 where gray
    h += 6 * turns[:, None, None]
    h -= 6 * xp.floor(h / 6)
    shares = (xp.abs(h - 3) - 1, 2 - xp.abs(h - 2), 2 - xp.abs(h - 4))
    shifted = xp.stack([xp.clip(share, min=0, max=1) for share in shares], axis=1)
    shifted *= chroma[:, None]
    shifted += lowest[:, None]
    return shifted


def solarize(views: Array, threshold: Array) -> Array:
    """Invert what is not below the threshold, (N,) in [0, 1]."""
    xp = array_namespace(views)
    return xp.where(views >= threshold[:, None, None, None], 1 - views, views)


def luma(views: Array) -> Array:
    """(N, 1, S, S) brightness as the eye weighs it."""
    red, green, blue = _LUMA
    return red * views[:, 0:1] + green * views[:, 1:2] + blue * views[:, 2:3]


def gaussian_blur(views: Array, sigma: Array, kernel: int) -> Array:
    """Gaussian blur with mirrored borders, the edge pixel itself not repeated.

    Args:
        sigma: (N,) in pixels.
        kernel: number of taps, odd, less than twice the side.

    Blurring is linear and separable: one S x S matrix per sample, from the left and from the right.
    """
    xp = array_namespace(views)
    half, side = kernel // 2, views.shape[-1]
    offsets = _like(xp, range(-half, half + 1), sigma)
    weights = xp.exp(-0.5 * (offsets[None, :] / sigma[:, None]) ** 2)
    weights = weights / xp.sum(weights, axis=1, keepdims=True)  # (N, kernel)
    taps = _taps(xp, side, half, views)
    matrix = xp.reshape(xp.matmul(weights, xp.reshape(taps, (kernel, -1))), (-1, 1, side, side))
    return xp.matmul(xp.matmul(matrix, views), xp.permute_dims(matrix, (0, 1, 3, 2)))


def _taps(xp: Any, side: int, half: int, like: Array) -> Array:
    """(kernel, side, side) ones where pixel `row` reads pixel `column` through that tap."""
    pixels = xp.arange(side, device=device(like))
    offsets = xp.arange(-half, half + 1, device=device(like))
    read = xp.abs(pixels[None, :] + offsets[:, None])
    read = xp.minimum(read, 2 * (side - 1) - read)  # mirrored at both ends
    return xp.astype(read[:, :, None] == pixels, like.dtype)


def _rotate(views: Array, turns: Array) -> None:
    """Counter-clockwise quarter turns, in place."""
    xp = array_namespace(views)
    _change(views, turns == 1, lambda some: xp.flip(xp.permute_dims(some, (0, 1, 3, 2)), axis=2))
    _change(views, turns == 2, lambda some: xp.flip(some, axis=(2, 3)))
    _change(views, turns == 3, lambda some: xp.flip(xp.permute_dims(some, (0, 1, 3, 2)), axis=3))


def normalise(views: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(views - mean) / std per channel."""
    xp = array_namespace(views)
    mean, std = (_like(xp, values, views)[None, :, None, None] for values in (mean, std))
    return (views - mean) / std


def _blend(views: Array, other: Array, factor: Array) -> Array:
    xp = array_namespace(views)
    factor = factor[:, None, None, None]
    blended = factor * views
    blended += (1 - factor) * other
    return xp.clip(blended, min=0, max=1)


def _like(xp: Any, values: Any, like: Array) -> Array:
    return xp.asarray(list(values), dtype=like.dtype, device=device(like))
