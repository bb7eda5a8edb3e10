"""Localisation: linear regression from frozen features to the box of the object (CUB-200)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from augself_hub.errors import UsageError
from training.evaluation.examples import refuse_not_finite

ROUNDING = 1e-6  # of features in float32: a direction this much smaller than the largest is noise


@dataclass(frozen=True)
class Localization:
    """Errors on the test images, in the unit of the boxes; lower is better.

    Args:
        error: mean l2 distance between predicted and true box.
        squared_error: mean over images and coordinates of the squared difference.
        baseline_error, baseline_squared_error: of always predicting the training set's mean box.
        predicted: (N_test, d).
        errors: (N_test,) the l2 distance of each image.
    """

    error: float
    squared_error: float
    baseline_error: float
    baseline_squared_error: float
    predicted: np.ndarray
    errors: np.ndarray


def localize(
    features: np.ndarray, boxes: np.ndarray, test_features: np.ndarray, test_boxes: np.ndarray
) -> Localization:
    """Fit boxes by least squares with an intercept and no ridge, and test once.

    In float64 by a QR that finds the rank: of directions the training features do not have
    (constant or repeated columns, fewer images than D) nothing is learned, so that the solution is
    the smallest one.

    Args:
        features, test_features: (N, D) and (N_test, D).
        boxes, test_boxes: (N, 4) and (N_test, 4), e.g. centre, height and width as fractions of
            the image the encoder saw.

    Raises:
        AugSelfError: a value that is not finite.
        UsageError: the shapes do not belong together.
    """
    _refuse(features, boxes, "train")
    _refuse(test_features, test_boxes, "test")
    x, t = features.astype(np.float64), boxes.astype(np.float64)
    middle, mean = x.mean(axis=0), t.mean(axis=0)
    weights = scipy.linalg.lstsq(x - middle, t - mean, cond=ROUNDING, lapack_driver="gelsy")[0]
    predicted = (test_features - middle) @ weights + mean
    errors, squared = _errors(predicted, test_boxes)
    baseline, baseline_squared = _errors(np.broadcast_to(mean, predicted.shape), test_boxes)
    return Localization(
        float(errors.mean()), squared, float(baseline.mean()), baseline_squared, predicted, errors
    )


def _refuse(features: np.ndarray, boxes: np.ndarray, name: str) -> None:
    if features.ndim != 2 or boxes.ndim != 2 or len(features) != len(boxes):
        raise UsageError(
            f"{name}: features {features.shape} and boxes {boxes.shape} were given, (N, D) and "
            "(N, 4) are needed"
        )
    refuse_not_finite(features, f"{name} features")
    refuse_not_finite(boxes, f"{name} boxes")


def _errors(predicted: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, float]:
    difference = predicted - boxes
    return np.linalg.norm(difference, axis=1), float((difference**2).mean())
