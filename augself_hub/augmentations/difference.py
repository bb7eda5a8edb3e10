"""From the parameters of two views to what a head learns, and from a head's output back.

`targets` holds both conventions of docs/method.md:

- `relative`: what takes view a to view b, as seen in view a's displayed frame. It is defined by
  the two pictures alone. A displacement is in heights and widths of a, sizes and colour factors
  are log ratios.
- `paper`: view 1 minus view 2 exactly as the official checkpoints learned it. Both centres are
  mirrored where view 1 is, so that x is the displacement in view 1's frame.

Everything works on numpy and torch alike (the array API), on N pairs at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from augself_hub.augmentations.sampling import Parameters, draw
from augself_hub.augmentations.spec import Head, Policy, Spec
from augself_hub.errors import UsageError

Array = Any
Sizes = Sequence[tuple[int, int]]


def targets(
    kind: str, a: Parameters, b: Parameters, policy: Policy, convention: str
) -> tuple[Array, Array]:
    """What the head of `kind` should say about the ordered pairs (a, b), in physical units.

    Returns:
        (N, n) targets and an (N, n) bool mask of what the two pictures can show; n is the number of
        the head's dimensions. Binary targets are 0 or 1, classes are class numbers.
    """
    target = _CONVENTIONS[convention][kind](a, b, policy)
    xp = array_namespace(target)
    if convention == "relative" and kind == "color":
        colored = ~(xp.asarray(shows_gray(a)) | xp.asarray(shows_gray(b)))
        seen = xp.ones_like(colored)
        return target, xp.stack([seen, seen, colored, colored], axis=1)
    return target, xp.ones_like(target, dtype=xp.bool)


def shows_gray(view: Parameters) -> Array:
    """(N,) bool: whether views are gray, made so or of a picture that is."""
    xp = array_namespace(view["gray"])
    return functools.reduce(
        xp.logical_or,
        (xp.asarray(view[n], dtype=xp.bool) for n in ("gray", "colorless") if n in view),
    )


def standardised(
    heads: dict[str, Head], policy: Policy, convention: str, sizes: Sizes = ((1024, 1024),)
) -> dict[str, Head]:
    """The heads with each regression dimension's standard deviation and largest value.

    Both are of 100,000 keyed pairs, of what the pictures can show: the root mean square, so that
    predicting zero costs 1 for every dimension, and what 99.9% stay within. Convention `paper` is
    not divided by its standard deviation.

    Args:
        sizes: (height, width) of source images in pixels, each as frequent as in the data: on long
            ones boxes move further along the long side and less along the short one.

    Raises:
        UsageError: a dimension that never differs under this policy.
    """
    a, b = _random_pairs(policy, 100_000, sizes)
    return {kind: _measured(kind, head, a, b, policy, convention) for kind, head in heads.items()}


def deviations(spec: Spec, kind: str) -> list[float]:
    """Standard deviation of each dimension of a regression's targets, in physical units.

    That of convention `paper`, whose targets are not divided by it, is of square images.
    """
    head = spec.heads[kind]
    if spec.convention != "paper":
        return [d.std for d in head.dimensions]
    a, b = _random_pairs(spec.policy, 10_000)
    target = targets(kind, a, b, spec.policy, spec.convention)[0]
    return [float(s) for s in np.sqrt(np.mean(target**2, axis=0))]


def _random_pairs(
    policy: Policy, pairs: int, sizes: Sizes = ((1024, 1024),)
) -> tuple[Parameters, Parameters]:
    index = np.arange(pairs)
    heights, widths = np.asarray(sizes)[index % len(sizes)].T
    a, b = (draw(policy, (0, 0, index, view), heights, widths) for view in (0, 1))
    return a, b


def _measured(
    kind: str, head: Head, a: Parameters, b: Parameters, policy: Policy, convention: str
) -> Head:
    if head.type != "regression":
        return head
    with np.errstate(invalid="ignore"):  # `paper` divides by a range, which may be 0
        target, mask = targets(kind, a, b, policy, convention)
    dimensions = []
    for dimension, column, seen in zip(head.dimensions, target.T, mask.T, strict=True):
        shown = column[seen]
        rms = np.sqrt(np.mean(shown**2)) if len(shown) else 0.0
        if not rms > 0:
            raise UsageError(
                f"{kind} {dimension.name} never differs between views under this policy: "
                f"widen its range or do not ask for {kind!r}"
            )
        std = 1.0 if convention == "paper" else float(np.round(rms, 6))
        largest = float(np.round(np.quantile(np.abs(shown), 0.999), 6))
        dimensions.append(dataclasses.replace(dimension, std=std, largest=largest))
    return dataclasses.replace(head, dimensions=tuple(dimensions))


def to_physical(head: Head, raw: Array) -> Array:
    """Raw head outputs (N, outputs) -> physical units, same shape.

    Regression: multiplied by the standard deviation (`paper`: tanh). Binary: a probability.
    Classes: probabilities that sum to 1.
    """
    xp = array_namespace(raw)
    if head.type == "binary":
        return (1 + xp.tanh(raw / 2)) / 2
    if head.type == "classes":
        shifted = xp.exp(raw - xp.max(raw, axis=1, keepdims=True))
        return shifted / xp.sum(shifted, axis=1, keepdims=True)
    value = xp.tanh(raw) if head.tanh else raw
    return value * row([d.std for d in head.dimensions], like=raw)


def both_orders(head: Head, ab: Array, ba: Array) -> Array:
    """Average the predictions of (a, b) and (b, a), for antisymmetric dimensions only.

    Args:
        ab, ba: (N, outputs) in physical units.
    """
    if head.type != "regression":
        return ab
    xp = array_namespace(ab)
    antisymmetric = row([float(d.antisymmetric) for d in head.dimensions], like=ab)
    return xp.where(antisymmetric == 1, (ab - ba) / 2, ab)


def standard_errors(heads: Mapping[str, Head], ab: Array, ba: Array) -> dict[str, Array]:
    """Stated log variances of both orders -> kind -> (N, n) standard errors in physical units.

    They are averaged where the answer is (`both_orders`).

    Args:
        heads: kind -> head. ab, ba: (N, n) of all regressions' numbers, one after the other, each
            of its error divided by its std.
    """
    xp, start = array_namespace(ab), 0
    errors = {}
    for kind, head in heads.items():
        if head.type != "regression":
            continue
        columns = slice(start, start := start + head.outputs)
        mean, own = (ab[:, columns] + ba[:, columns]) / 2, ab[:, columns]
        antisymmetric = row([float(d.antisymmetric) for d in head.dimensions], like=ab)
        std = row([d.std for d in head.dimensions], like=ab)
        errors[kind] = std * xp.exp(xp.where(antisymmetric == 1, mean, own) / 2)
    return errors


def _centres(parameters: Parameters) -> tuple[Array, Array, Array, Array]:
    crop = parameters["crop"]
    height, width = crop[:, 2], crop[:, 3]
    return crop[:, 0] + height / 2, crop[:, 1] + width / 2, height, width


def _relative_crop(a: Parameters, b: Parameters, policy: Policy) -> Array:
    ya, xa, ha, wa = _centres(a)
    yb, xb, hb, wb = _centres(b)
    xp = array_namespace(ya)
    side = xp.where(xp.asarray(a["flip"], dtype=xp.bool), -1.0, 1.0)
    dy, dx = (yb - ya) / ha, side * (xb - xa) / wa
    dh, dw = xp.log(hb / ha), xp.log(wb / wa)
    turns = a["rot"]
    # One counter-clockwise quarter turn takes right to up: (dy, dx) -> (-dx, dy).
    turned_y = _choose(xp, turns, (dy, -dx, -dy, dx))
    turned_x = _choose(xp, turns, (dx, dy, -dx, -dy))
    return xp.stack(
        [
            turned_y,
            turned_x,
            _choose(xp, turns, (dh, dw, dh, dw)),
            _choose(xp, turns, (dw, dh, dw, dh)),
        ],
        axis=1,
    )


def _choose(xp: Any, turns: Array, options: tuple[Array, ...]) -> Array:
    chosen = options[0]
    for k in (1, 2, 3):
        chosen = xp.where(turns == k, options[k], chosen)
    return chosen


def _relative_color(a: Parameters, b: Parameters, policy: Policy) -> Array:
    xp = array_namespace(a["color"])
    # A factor of 0 exists only for strengths of 1 and more; its logarithm is bounded here.
    factors_a, factors_b = (xp.clip(p["color"][:, :3], min=1e-3) for p in (a, b))
    turned = (b["color"] - a["color"])[:, 3:]
    hue = turned - xp.round(turned)  # 0.6 of a turn is -0.4: the pictures are the same
    return xp.concat([xp.log(factors_b / factors_a), hue], axis=1)


def _relative_flip(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return _column(a["flip"] != b["flip"], like=a["crop"])


def _relative_rot(a: Parameters, b: Parameters, policy: Policy) -> Array:
    """Quarter turns after mirroring: where exactly one view is mirrored, a's turns add up."""
    xp = array_namespace(a["rot"])
    return _column(
        xp.where(a["flip"] == b["flip"], b["rot"] - a["rot"], b["rot"] + a["rot"]) % 4,
        like=a["crop"],
    )


def _relative_blur(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return (b["blur"] - a["blur"])[:, None]


def _relative_sol(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return (a["sol"] - b["sol"])[:, None]  # (1 - threshold)_b - (1 - threshold)_a


def _paper_crop(a: Parameters, b: Parameters, policy: Policy) -> Array:
    ya, xa, ha, wa = _centres(a)
    yb, xb, hb, wb = _centres(b)
    xp = array_namespace(ya)
    side = xp.where(xp.asarray(a["flip"], dtype=xp.bool), -1.0, 1.0)  # (1 - xa) - (1 - xb)
    return xp.stack([ya - yb, side * (xa - xb), ha - hb, wa - wb], axis=1)


def _paper_color(a: Parameters, b: Parameters, policy: Policy) -> Array:
    ranges = [policy.factors(name) for name in ("brightness", "contrast", "saturation")]
    spans = [*(high - low for low, high in ranges), 2 * policy.hue]
    return (a["color"] - b["color"]) / row(spans, like=a["color"])


def _paper_flip(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return _column(a["flip"] == b["flip"], like=a["crop"])


def _paper_blur(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return (a["blur"] - b["blur"])[:, None]


def _paper_rot(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return _column((a["rot"] - b["rot"] + 4) % 4, like=a["crop"])


def _paper_sol(a: Parameters, b: Parameters, policy: Policy) -> Array:
    return (a["sol"] - b["sol"])[:, None]


def _column(values: Array, like: Array) -> Array:
    return array_namespace(like).asarray(values, dtype=like.dtype)[:, None]


def row(values: list[float], like: Array) -> Array:
    """(n,) an array of the same library, type and device as another."""
    return array_namespace(like).asarray(values, dtype=like.dtype, device=device(like))


_CONVENTIONS = {
    "relative": {
        "crop": _relative_crop,
        "color": _relative_color,
        "flip": _relative_flip,
        "blur": _relative_blur,
        "rot": _relative_rot,
        "sol": _relative_sol,
    },
    "paper": {
        "crop": _paper_crop,
        "color": _paper_color,
        "flip": _paper_flip,
        "blur": _paper_blur,
        "rot": _paper_rot,
        "sol": _paper_sol,
    },
}
