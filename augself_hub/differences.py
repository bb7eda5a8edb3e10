"""Predicted differences as people read them: names, units, errors, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from augself_hub.augmentations.spec import Dimension, Head, Match, Spec

GRAY_TOLERANCE = 2  # levels: a gray picture that went through JPEG still counts as gray
GRAY_REASON = "not observable: at least one of the two pictures is gray"
NOT_LEARNED = "not learned"
BEYOND = "beyond what was trained on"
UNLIKE = "unlike pictures"
GUESSING = 0.95  # of guessing's error: where no mark says so, a head with more has learned nothing


def is_gray(image: np.ndarray) -> bool:
    """Do the channels of an (S, S, 3) uint8 image differ nowhere by more than about 2 levels?

    A gray picture has no saturation and no hue, so nothing can be said about their difference.
    """
    return int(np.ptp(image, axis=-1).max()) <= GRAY_TOLERANCE


def matching(
    spec: Spec, features_a: np.ndarray, features_b: np.ndarray, gray: Sequence[bool]
) -> list[tuple[float, bool] | None]:
    """Whether both pictures of each of N pairs show one thing, by `Spec.match`.

    Args:
        features_a, features_b: (N, D).
        gray: 2 N, whether each picture is gray: all first ones, then all second ones.

    Returns:
        N times the probability that they do, and whether they count as unlike pictures; None where
        the model cannot tell.
    """
    a, b = (np.asarray(side, np.float64) for side in (features_a, features_b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
    found: list[tuple[float, bool] | None] = []
    for cosine, first, second in zip(cosines, gray[: len(a)], gray[len(a) :], strict=True):
        match = spec.match or Match()
        cut = match.alike if first == second else match.one_gray
        if cut is None:
            found.append(None)
            continue
        probability = float(1 + np.tanh((cut.slope * cosine + cut.intercept) / 2)) / 2
        found.append((probability, probability < cut.least))
    return found


def reason(
    dimension: Dimension, value: float | None, gray: bool, unlike: bool = False
) -> str | None:
    """Why a dimension has no answer for a pair; None where it has one.

    Args:
        value: in the dimension's unit; None for a probability.
        gray: at least one of the two pictures is gray.
        unlike: the two pictures are not of one thing.
    """
    error = dimension.standard_error or 0.0
    if dimension.learned is False or (dimension.learned is None and error > _guessing(dimension)):
        return not_learned(dimension)
    if gray and dimension.needs_color:
        return GRAY_REASON
    if unlike:
        return f"{UNLIKE}: only differences between two views of one thing were learned"
    if value is not None and beyond(dimension, value):
        most = math.copysign(dimension.largest or 0.0, value)
        return f"{BEYOND}: about {most:+.2g} or more, the largest difference in training"
    return None


def _guessing(dimension: Dimension) -> float:
    """The error of an answer that is no better than none; of a probability there is none."""
    return math.inf if dimension.unit == "probability" else GUESSING * dimension.std


def beyond(dimension: Dimension, value: float) -> bool:
    """Whether an answer lies within its error of the largest difference trained on, or past it.

    Of such answers nothing says how much larger the truth is: heads draw what is large towards
    what they know.
    """
    error = dimension.standard_error or 0.0
    return dimension.largest is not None and abs(value) > dimension.largest - error


def not_learned(dimension: Dimension) -> str:
    """With what was measured, if it was."""
    if dimension.score is None or dimension.interval is None or dimension.baseline is None:
        return NOT_LEARNED
    low, high = dimension.interval
    name = "accuracy" if dimension.unit == "probability" else "R^2"
    return (
        f"{NOT_LEARNED}: {name} {dimension.score:.2f} ({low:.2f} to {high:.2f}) on held-out pairs, "
        f"{dimension.baseline:.2f} without looking"
    )


def describe(
    spec: Spec, differences: dict[str, np.ndarray], gray: bool, unlike: bool = False
) -> dict[str, Any]:
    """One pair's differences in the shape of the HTTP answer.

    Args:
        differences: kind -> (outputs,) in physical units.
        gray: at least one of the two pictures is gray.
        unlike: the two pictures are not of one thing (`matching`).

    Returns:
        kind -> a list of {name, value, unit, standard_error} for a regression head; kind -> {name:
        probability} for a binary head, {name: [probabilities]} for classes. What cannot be told is
        None and comes with a reason. The standard error is right on average, not for every pair.
    """
    return {kind: _head(head, differences[kind], gray, unlike) for kind, head in spec.heads.items()}


def _head(head: Head, values: np.ndarray, gray: bool, unlike: bool) -> Any:
    if head.type == "regression":
        return [
            _number(d, float(v), gray, unlike) for d, v in zip(head.dimensions, values, strict=True)
        ]
    dimension = head.dimensions[0]
    if why := reason(dimension, None, gray, unlike):
        return {dimension.name: None, "reason": why}
    return {dimension.name: float(values[0]) if head.type == "binary" else values.tolist()}


def _number(dimension: Dimension, value: float, gray: bool, unlike: bool) -> dict[str, Any]:
    why = reason(dimension, value, gray, unlike)
    record = {
        "name": dimension.name,
        "value": value if why is None else None,
        "unit": dimension.unit,
        "standard_error": dimension.standard_error,
    }
    return record if why is None else {**record, "reason": why}
