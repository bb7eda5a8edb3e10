"""Predicted differences as people read them: names, units, errors, and what cannot be seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from augself_hub.augmentations.spec import Dimension, Head, Spec

GRAY_TOLERANCE = 2  # levels: a gray picture that went through JPEG still counts as gray
GRAY_REASON = "not observable: at least one of the two pictures is gray"


def is_gray(image: np.ndarray) -> bool:
    """Do the channels of an (S, S, 3) uint8 image differ nowhere by more than about 2 levels?

    A gray picture has no saturation and no hue, so nothing can be said about their difference.
    """
    return int(np.ptp(image, axis=-1).max()) <= GRAY_TOLERANCE


def describe(spec: Spec, differences: dict[str, np.ndarray], gray: bool) -> dict[str, Any]:
    """One pair's differences in the shape of the HTTP answer.

    Args:
        differences: kind -> (outputs,) in physical units.
        gray: at least one of the two pictures is gray.

    Returns:
        kind -> a list of {name, value, unit, standard_error} for a regression head, where a value
        that cannot be seen is None and comes with a reason; kind -> {name: probability} for a
        binary head, {name: [probabilities]} for classes.
    """
    return {kind: _head(head, differences[kind], gray) for kind, head in spec.heads.items()}


def _head(head: Head, values: np.ndarray, gray: bool) -> Any:
    name = head.dimensions[0].name
    if head.type == "binary":
        return {name: float(values[0])}
    if head.type == "classes":
        return {name: values.tolist()}
    return [_dimension(d, float(v), gray) for d, v in zip(head.dimensions, values, strict=True)]


def _dimension(dimension: Dimension, value: float, gray: bool) -> dict[str, Any]:
    hidden = gray and dimension.needs_color
    record = {
        "name": dimension.name,
        "value": None if hidden else value,
        "unit": dimension.unit,
        "standard_error": dimension.standard_error,
    }
    return {**record, "reason": GRAY_REASON} if hidden else record
