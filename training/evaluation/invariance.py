"""Invariance: how similar the features of an image and of its augmented view are.

A cosine near 1 says little by itself: features of any two images may be as similar. So it stands
beside the cosine of an image with the views of other images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.examples import refuse_not_finite


@dataclass(frozen=True)
class Invariance:
    """Of N images under one augmentation at one strength.

    Args:
        alignment: mean cosine of an image with its own view.
        baseline: mean cosine of an image with the views of the other images.
        invariance: (alignment - baseline) / (1 - baseline): 1 where the augmentation changes
            nothing, 0 where the view is no more similar than another image.
        cosines: (N,) of each image with its own view.
    """

    alignment: float
    baseline: float
    invariance: float
    cosines: np.ndarray


def invariance(images: np.ndarray, views: np.ndarray) -> Invariance:
    """Compare (N, D) features of images with (N, D) features of one view of each.

    Raises:
        AugSelfError: a value that is not finite, or all images have the same features.
        UsageError: the shapes differ, or there are fewer than two images.
    """
    if images.shape != views.shape or images.ndim != 2 or len(images) < 2:
        raise UsageError(
            f"images {images.shape} and views {views.shape} were given: two equal (N, D) with at "
            "least two images are needed"
        )
    refuse_not_finite(images, "images")
    refuse_not_finite(views, "views")
    a, b = _unit(images), _unit(views)
    cosines = (a * b).sum(axis=1)
    n = len(a)
    # The sum over all pairs is the product of the sums: no (N, N) is needed.
    baseline = float(a.sum(axis=0) @ b.sum(axis=0) - cosines.sum()) / (n * (n - 1))
    if baseline > 1 - 1e-9:
        raise AugSelfError("all images have the same features: the encoder collapsed")
    alignment = float(cosines.mean())
    return Invariance(alignment, baseline, (alignment - baseline) / (1 - baseline), cosines)


def _unit(y: np.ndarray) -> np.ndarray:
    y = y.astype(np.float64)
    unit: np.ndarray = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    return unit
