"""What a matcher says of (a, b) and of (b, a), as one answer about (a, b).

A matcher looks at a pair in both orders and is wrong in different ways. What it says of (b, a) is
turned round, into a's frame and a's units, and both are averaged by how sure they are. What they
differ by is part of the stated error, and so is, for the place, what would be said if the pair were
mirrored and is taken not to be, or the reverse. Works on numpy and torch alike (the array API), on
N pairs at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from augself_hub.augmentations.difference import both_orders, row, standard_errors, to_physical
from augself_hub.augmentations.spec import LOG_VARIANCE, MatcherSpec, Spec

Array = Any
SURE = 1e-6  # probabilities are kept this far from 0 and 1 where their logit is taken
OUTPUTS = ("crop", "log_variance", "flip", "rot", "match")


@dataclass(frozen=True)
class Prediction:
    """What a model says of N ordered pairs (a, b), by whichever head answers (`Spec.answering`).

    Args:
        values: kind -> (N, outputs) in physical units; probabilities for flip and rot.
        errors: kind -> (N, n) standard errors of each pair; of regressions, where the head that
            answers states them.
        match: (N,) the matcher's logit that both show one picture; None: no matcher looked.
    """

    values: dict[str, Array]
    errors: dict[str, Array]
    match: Array | None = None


def prediction_of(
    spec: Spec,
    by_heads: tuple[Mapping[str, Array], Mapping[str, Array]],
    by_matcher: tuple[Mapping[str, Array], Mapping[str, Array]] | None = None,
) -> Prediction:
    """Raw outputs of both orders, (a, b) and (b, a) -> one answer about (a, b).

    Args:
        by_heads: of the heads on features, by the names of `Spec.head_outputs`; empty where there
            are none.
        by_matcher: of the matcher, by the names of OUTPUTS; None: there are no maps.
    """
    ab, ba = by_heads
    values = {
        kind: both_orders(head, to_physical(head, ab[kind]), to_physical(head, ba[kind]))
        for kind, (which, head) in spec.answering(by_matcher is not None).items()
        if which == "features"
    }
    stated = LOG_VARIANCE in ab
    errors = standard_errors(spec.heads, ab[LOG_VARIANCE], ba[LOG_VARIANCE]) if stated else {}
    errors = {kind: error for kind, error in errors.items() if kind in values}
    if by_matcher is None or spec.matcher is None:
        return Prediction(values, errors)
    matched = matcher_prediction(spec.matcher, *by_matcher)
    kinds = [kind for kind, (which, _) in spec.answering().items() if which == "matcher"]
    values |= {kind: matched[kind] for kind in kinds}
    if "crop" in kinds:
        errors["crop"] = matched["standard_error"]
    return Prediction(values, errors, logit(matched["match"])[:, 0])


def matcher_prediction(
    matcher: MatcherSpec, ab: Mapping[str, Array], ba: Mapping[str, Array]
) -> dict[str, Array]:
    """`combined`, of a matcher by its description."""
    std = row([d.std for d in matcher.heads["crop"].dimensions], like=ab["crop"])
    return combined(ab, ba, std, matcher.turns)


def logit(probability: Array) -> Array:
    xp = array_namespace(probability)
    p = xp.clip(probability, SURE, 1 - SURE)
    return xp.log(p / (1 - p))


def combined(
    ab: Mapping[str, Array], ba: Mapping[str, Array], std: Array, turns: bool
) -> dict[str, Array]:
    """Both orders -> one answer, in the units of convention `relative`.

    Args:
        ab, ba: what the matcher says of the two orders, by the names of OUTPUTS: (N, 4), (N, 4),
            (N, 1), (N, 4) or (N, 1), (N, 1).
        std: (4,) of crop's targets.
        turns: whether the matcher tells quarter turns.

    Returns:
        crop (N, 4) and its standard_error (N, 4), flip (N, 1) and rot (N, 4) as probabilities (rot
        is missing without turns), match (N, 1), the probability that both show one picture.
    """
    xp = array_namespace(ab["crop"])
    flip = (ab["flip"] + ba["flip"]) / 2
    mirrored = flip[:, 0] > 0
    rot = _log_softmax(xp, ab["rot"]) if turns else None
    if turns:
        back = _log_softmax(xp, ba["rot"])
        # Seen from b, r quarter turns are -r; where one view is mirrored, they are r again.
        reversed_ = xp.stack([back[:, 0], back[:, 3], back[:, 2], back[:, 1]], axis=1)
        # Their mean, as of flip and match: both are wrong alike.
        rot = (rot + xp.where(mirrored[:, None], back, reversed_)) / 2
    quarter = xp.argmax(rot, axis=1) if turns else None
    crop, variance = ab["crop"] * std, xp.exp(ab["log_variance"]) * std**2
    other, other_variance = ba["crop"] * std, xp.exp(ba["log_variance"]) * std**2
    sizes, sizes_variance = _as_seen_from_a(xp, other[:, 2:], other_variance[:, 2:], quarter)
    size, size_variance = _averaged(crop[:, 2:], variance[:, 2:], -sizes, sizes_variance)
    place, place_variance = _as_seen_from_a(xp, other[:, :2], other_variance[:, :2], quarter)
    ratio = xp.exp(size)  # b's sides in a's
    here, otherwise = (-_signs(xp, m, quarter) * place * ratio for m in (mirrored, ~mirrored))
    p = _probability(xp, flip)
    doubt = p * (1 - p) * (here - otherwise) ** 2  # the variance of either, by how likely it is
    place, place_variance = _averaged(
        crop[:, :2], variance[:, :2], here, place_variance * ratio**2 + doubt
    )
    answer = {
        "crop": xp.concat([place, size], axis=1),
        "standard_error": xp.sqrt(xp.concat([place_variance, size_variance], axis=1)),
        "flip": p,
        "match": _probability(xp, (ab["match"] + ba["match"]) / 2),
    }
    return answer if rot is None else {**answer, "rot": xp.exp(_log_softmax(xp, rot))}


def _averaged(u: Array, u_variance: Array, v: Array, v_variance: Array) -> tuple[Array, Array]:
    """Two answers weighed by their variances, as a mixture: its mean, and its variance.

    The errors are alike, so they do not cancel: the variance is their mean, and their difference's.
    """
    total = u_variance + v_variance
    of_u, of_v = v_variance / total, u_variance / total
    mean = of_u * u + of_v * v
    return mean, of_u * u_variance + of_v * v_variance + of_u * of_v * (u - v) ** 2


def _as_seen_from_a(xp: Any, values: Array, variance: Array, quarter: Array) -> tuple[Array, Array]:
    """(y, x) of b's frame -> of a's: an odd number of quarter turns exchanges the axes.

    quarter: (N,) of them; None: no pair is turned.
    """
    if quarter is None:
        return values, variance
    odd = (quarter % 2 == 1)[:, None]
    return (
        xp.where(odd, xp.flip(values, axis=1), values),
        xp.where(odd, xp.flip(variance, axis=1), variance),
    )


def _signs(xp: Any, mirrored: Array, quarter: Array) -> Array:
    """(N, 2): signs of (y, x) once the axes are a's.

    What takes b back to a is a turn by -r, or a mirror and then a turn by r (see `Matcher`). One
    counter-clockwise turn takes (y, x) to (-x, y).
    """
    if quarter is None:
        x = 1 - 2 * xp.astype(mirrored, xp.int64)
        return xp.stack([xp.ones_like(x), x], axis=1)
    turned = xp.where(mirrored, quarter, (4 - quarter) % 4)
    one = xp.ones_like(turned)
    y = xp.where((turned == 1) | (turned == 2), -one, one)
    x = xp.where((turned == 2) | (turned == 3), -one, one)
    # The mirror comes first: it turns the sign of what was x, which an odd turn makes y.
    odd = turned % 2 == 1
    y = xp.where(mirrored & odd, -y, y)
    x = xp.where(mirrored & ~odd, -x, x)
    return xp.stack([y, x], axis=1)


def _log_softmax(xp: Any, logits: Array) -> Array:
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))


def _probability(xp: Any, logit: Array) -> Array:
    return (1 + xp.tanh(logit / 2)) / 2
