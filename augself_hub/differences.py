"""Predicted differences as people read them: names, units, errors, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from augself_hub.augmentations.matching import Prediction
from augself_hub.augmentations.spec import Dimension, Head, Match, MatchCalibration, Spec

GRAY_TOLERANCE = 2  # levels: a gray picture that went through JPEG still counts as gray
GRAY_REASON = "not observable: at least one of the two pictures is gray"
BLANK_REASON = "not observable: at least one of the two pictures is blank"
NOT_LEARNED = "not learned"
BEYOND = "beyond what was trained on"
UNLIKE = "unlike pictures"
GUESSING = 0.95  # of guessing's error: where no mark says so, a head with more has learned nothing


def is_gray(image: np.ndarray) -> bool:
    """Do the channels of an (S, S, 3) uint8 image differ nowhere by more than about 2 levels?

    A gray picture has no saturation and no hue, so nothing can be said about their difference.
    """
    for part in (image[::8, ::8], image):  # a coloured one is told by a few pixels
        r, g, b = (part[..., channel] for channel in range(3))
        low, high = np.minimum(np.minimum(r, g), b), np.maximum(np.maximum(r, g), b)
        if int((high - low).max()) > GRAY_TOLERANCE:
            return False
    return True


def is_blank(image: np.ndarray) -> bool:
    """Is an (S, S, 3) uint8 image of one colour, to about 2 levels? Then it shows nothing."""
    return int(np.ptp(image.reshape(-1, 3), axis=0).max()) <= GRAY_TOLERANCE


@dataclass(frozen=True)
class Answered:
    """What a model says of N pairs of pictures, and what of it may be passed on.

    Args:
        prediction: by whichever head answers.
        match: (N,) probability that both pictures show one thing; NaN where the model cannot tell.
        unlike: (N,) bool, they count as pictures of two things.
        gray, blank: (N,) bool, at least one of the pictures is.
    """

    prediction: Prediction
    match: np.ndarray
    unlike: np.ndarray
    gray: np.ndarray
    blank: np.ndarray

    @classmethod
    def of(
        cls, spec: Spec, images: Sequence[np.ndarray], features: np.ndarray, prediction: Prediction
    ) -> Answered:
        """From the pictures as the model sees them.

        Args:
            images: 2 N (S, S, 3) uint8, all first ones, then all second ones.
            features: theirs, (2 N, D). prediction: of the N pairs.
        """
        pairs = len(images) // 2
        gray, blank = (np.array([f(i) for i in images], bool) for f in (is_gray, is_blank))
        calibration = spec.matcher.match if spec.matcher else None
        logits = prediction.match
        found: list[tuple[float, bool] | None]
        if calibration is not None and logits is not None:
            found = [_matched(calibration, float(logit)) for logit in logits]
        else:
            found = matching(spec, features[:pairs], features[pairs:], gray.tolist())
        match = np.array([math.nan if one is None else one[0] for one in found])
        unlike = np.array([one is not None and one[1] for one in found], bool)
        of_pairs = (side[:pairs] | side[pairs:] for side in (gray, blank))
        return cls(prediction, match, unlike, *of_pairs)


def records(spec: Spec, answered: Answered) -> Iterator[dict[str, Any]]:
    """{match, differences} of each pair, in the shape of the HTTP answer."""
    maps = answered.prediction.match is not None
    for i, match in enumerate(answered.match):
        told = describe(
            spec,
            {kind: values[i] for kind, values in answered.prediction.values.items()},
            bool(answered.gray[i]),
            unlike=bool(answered.unlike[i]),
            blank=bool(answered.blank[i]),
            errors={kind: values[i] for kind, values in answered.prediction.errors.items()},
            maps=maps,
        )
        yield {"match": None if math.isnan(match) else float(match), "differences": told}


def _matched(calibration: MatchCalibration, score: float) -> tuple[float, bool]:
    """The probability that a pair is of one thing, and whether it counts as of two."""
    probability = float(1 + np.tanh((calibration.slope * score + calibration.intercept) / 2)) / 2
    return probability, probability < calibration.threshold


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
        calibration = match.alike if first == second else match.one_gray
        found.append(None if calibration is None else _matched(calibration, cosine))
    return found


def reason(
    dimension: Dimension,
    value: float | None,
    gray: bool,
    unlike: bool = False,
    blank: bool = False,
) -> str | None:
    """Why a dimension has no answer for a pair; None where it has one.

    Args:
        value: in the dimension's unit; None for a probability.
        gray: at least one of the two pictures is gray.
        unlike: the two pictures are not of one thing.
        blank: at least one of the two pictures is of one colour.
    """
    error = dimension.standard_error or 0.0
    guessing = math.inf if dimension.unit == "probability" else GUESSING * dimension.std
    if dimension.learned is False or (dimension.learned is None and error > guessing):
        return not_learned(dimension)
    if blank:
        return BLANK_REASON
    if gray and dimension.needs_color:
        return GRAY_REASON
    if unlike:
        return f"{UNLIKE}: only differences between two views of one thing were learned"
    if value is not None and beyond(dimension, value):
        most = math.copysign(dimension.largest or 0.0, value)
        return f"{BEYOND}: about {most:+.2g} or more, the largest difference in training"
    return None


def beyond(dimension: Dimension, value: float) -> bool:
    """Whether an answer lies within its error of the largest difference trained on, or past it.

    Of such answers nothing says how much larger the truth is: heads draw what is large towards
    what they know.
    """
    error = dimension.standard_error or 0.0
    return dimension.largest is not None and abs(value) > dimension.largest - error


def not_learned(dimension: Dimension) -> str:
    """With what was measured, if it was."""
    if (
        dimension.score is None
        or dimension.confidence_interval is None
        or dimension.baseline is None
    ):
        return NOT_LEARNED
    low, high = dimension.confidence_interval
    name = "accuracy" if dimension.unit == "probability" else "R^2"
    return (
        f"{NOT_LEARNED}: {name} {dimension.score:.2f} ({low:.2f} to {high:.2f}) on held-out pairs, "
        f"{dimension.baseline:.2f} without looking"
    )


def describe(
    spec: Spec,
    differences: dict[str, np.ndarray],
    gray: bool,
    unlike: bool = False,
    *,
    blank: bool = False,
    errors: dict[str, np.ndarray] | None = None,
    maps: bool = False,
) -> dict[str, Any]:
    """One pair's differences in the shape of the HTTP answer.

    Args:
        differences: kind -> (outputs,) in physical units.
        gray, blank: at least one of the two pictures is.
        unlike: the two pictures are not of one thing (`matching`).
        errors: kind -> (n,) standard errors of this very pair, where they are known.
        maps: the matcher has looked at the pair; else its features alone were seen.

    Returns:
        kind -> a list of {name, value, unit, standard_error, standard_error_of, head} for a
        regression head; kind -> {name: probability, head} for a binary head, {name:
        [probabilities], head} for classes. `head` says which answered, `matcher` or `features`.
        What cannot be told is None and comes with a reason. The standard error is of this `pair`,
        or right on `average` and not for every pair.
    """
    hidden = {"gray": gray, "unlike": unlike, "blank": blank}
    return {
        kind: _head(head, which, differences[kind], (errors or {}).get(kind), hidden)
        for kind, (which, head) in spec.answering(maps).items()
    }


def _head(
    head: Head,
    which: str,
    values: np.ndarray,
    errors: np.ndarray | None,
    hidden: dict[str, bool],
) -> Any:
    if head.type == "regression":
        of = "average" if errors is None else "pair"
        average = [d.standard_error for d in head.dimensions]
        known = average if errors is None else errors.tolist()
        numbers = []
        for d, v, error in zip(head.dimensions, values, known, strict=True):
            why = reason(d, float(v), **hidden)
            record = {
                "name": d.name,
                "value": float(v) if why is None else None,
                "unit": d.unit,
                "standard_error": error,
                "standard_error_of": of,
                "head": which,
            }
            numbers.append(record if why is None else {**record, "reason": why})
        return numbers
    dimension = head.dimensions[0]
    if why := reason(dimension, None, **hidden):
        return {dimension.name: None, "head": which, "reason": why}
    told = float(values[0]) if head.type == "binary" else values.tolist()
    return {dimension.name: told, "head": which}
