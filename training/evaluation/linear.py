"""The linear probe, as the paper evaluates frozen features.

On raw features: cross-entropy SUM + w * |theta|^2, the bias included. w is one of 45 penalties,
chosen on validation by the metric of the data set; then the classifier is fitted again on train and
validation together, and the test images are answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.evaluation.examples import METRICS, Examples, classes_of
from training.evaluation.softmax import SoftmaxRegression, Solution

PENALTIES = np.logspace(-6, 5, 45)  # w


@dataclass(frozen=True)
class LinearProbe:
    """What the classifier of the chosen penalty does on the test images.

    Args:
        accuracy: percent, by the set's metric.
        penalty: w, chosen on validation; the weakest of equals.
        validation: (penalties,) percent on validation, in the order of the penalties.
        predicted: (N_test,) class numbers.
        correct: (N_test,) bool.
    """

    accuracy: float
    penalty: float
    validation: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray


def linear_probe(
    train: Examples,
    validation: Examples,
    test: Examples,
    metric: str = "top-1",
    penalties: Sequence[float] | np.ndarray = PENALTIES,
) -> LinearProbe:
    """Fit on train for every penalty, choose on validation, refit on both, test once.

    Args:
        train, validation, test: raw frozen features (N, D); train has every class.
        metric: of METRICS.
        penalties: increasing.

    Raises:
        AugSelfError: one class only, a class that train lacks, or a solution that cannot be
            certified (see softmax.py).
        UsageError: different widths.
    """
    classes = classes_of(train, validation, test)
    scores, chosen = _choose(train, validation, classes, metric, penalties)
    both = Examples.concatenate(train, validation, "train and validation")
    (final,) = _problem(both, classes).path([chosen.penalty], chosen.theta)
    predicted = _answers(final.theta, test, classes)
    accuracy = METRICS[metric](test.labels, predicted)
    return LinearProbe(accuracy, chosen.penalty, scores, predicted, predicted == test.labels)


def _choose(
    train: Examples,
    validation: Examples,
    classes: np.ndarray,
    metric: str,
    penalties: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, Solution]:
    """Validation scores, weak to strong, and the weakest of the best solutions."""
    scores: list[float] = []
    for solution in _problem(train, classes).path(penalties):
        predicted = _answers(solution.theta, validation, classes)
        scores.append(METRICS[metric](validation.labels, predicted))
        if scores[-1] == max(scores):
            chosen = solution
    return np.array(scores[::-1]), chosen


def _problem(examples: Examples, classes: np.ndarray) -> SoftmaxRegression:
    numbers = np.searchsorted(classes, examples.labels)
    return SoftmaxRegression(examples.features, numbers, len(classes))


def _answers(theta: Tensor, examples: Examples, classes: np.ndarray) -> np.ndarray:
    logits = torch.addmm(theta[-1], torch.from_numpy(examples.features).double(), theta[:-1])
    predicted: np.ndarray = classes[logits.argmax(dim=1).numpy()]
    return predicted
