"""k nearest neighbours, votes weighted by similarity (Wu et al., arXiv:1805.01978, section 3.4).

20 neighbours and T 0.07 are the standard of self-supervised learning (DINO, arXiv:2104.14294).

    s[i, j] = cos(y[i], y[j])
    the class of i = argmax over c of the sum over its k nearest j of class c of exp(s[i, j] / T)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from augself_hub.errors import UsageError
from training.evaluation.examples import METRICS, Examples, classes_of

CHUNK = 16_000_000  # similarities held at once: 64 MB


@dataclass(frozen=True)
class Knn:
    """accuracy in percent; predicted: (N_test,) class numbers; correct: (N_test,) bool."""

    accuracy: float
    predicted: np.ndarray
    correct: np.ndarray


def knn(
    train: Examples,
    test: Examples,
    neighbors: int = 20,
    temperature: float = 0.07,
    metric: str = "top-1",
) -> Knn:
    """Classify each test image by the training images its features are most similar to.

    Args:
        train, test: features (N, D); every class of test is in train.
        neighbors: 1 to N_train.
        temperature: of the weights. 0.07 is the standard; math.inf is the plain majority.
        metric: of METRICS.

    Raises:
        AugSelfError: one class only, or a class of test that train lacks.
        UsageError: fewer training images than neighbours, or different widths.
    """
    classes = classes_of(train, test)
    if not 1 <= neighbors <= len(train):
        raise UsageError(
            f"{len(train)} training images are fewer than the {neighbors} neighbours that are "
            "asked: give more images, or leave knn out of the tasks"
        )
    known = F.normalize(torch.from_numpy(train.features), dim=1)  # (M, D)
    numbers = torch.from_numpy(np.searchsorted(classes, train.labels))
    rows = max(1, CHUNK // len(train))
    answers = []
    for y in torch.from_numpy(test.features).split(rows):
        near = (F.normalize(y, dim=1) @ known.T).topk(neighbors)  # (rows, k)
        weights = (near.values / temperature).exp()
        votes = weights.new_zeros(len(weights), len(classes))
        answers.append(votes.scatter_add_(1, numbers[near.indices], weights).argmax(dim=1))
    predicted = classes[torch.cat(answers).numpy()]
    accuracy = METRICS[metric](test.labels, predicted)
    return Knn(accuracy, predicted, predicted == test.labels)
