"""Retrieval: do the images most similar to an image show the same class?

Every image is a query against all others, by cosine; the measures of metric learning (Musgrave et
al., arXiv:2003.08505, section 2) on the whole ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augself_hub.errors import AugSelfError
from training.evaluation.examples import Examples, classes_of

CHUNK = 4_000_000  # ranked similarities held at once; some 100 MB with their order
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Percentages over N queries.

    Args:
        precision: depth k -> share of the k nearest that are of the query's class.
        recall: depth k -> share of queries with at least one such image among the k nearest
            (recall@1 is precision@1).
        mean_average_precision: over the whole ranking.
        average_precision: (N,) of each query.
        baseline: precision of a random ranking at any depth.
    """

    precision: dict[int, float]
    recall: dict[int, float]
    mean_average_precision: float
    average_precision: np.ndarray
    baseline: float


def retrieve(examples: Examples) -> Retrieval:
    """Rank all other images by cosine for each of the N images.

    Raises:
        AugSelfError: one class only, a class of one image, or fewer images than the depth of 10.
    """
    _refuse_lonely(examples)
    y = F.normalize(torch.from_numpy(examples.features), dim=1)  # (N, D)
    labels = torch.from_numpy(examples.labels)
    rows = max(1, CHUNK // len(y))
    parts = [_scores(y, labels, start, start + rows) for start in range(0, len(y), rows)]
    precise, hit, average = (100 * torch.cat(p).double() for p in zip(*parts, strict=True))
    _, counts = np.unique(examples.labels, return_counts=True)
    baseline = 100 * float((counts * (counts - 1)).sum()) / (len(y) * (len(y) - 1))
    return Retrieval(
        precision=dict(zip(DEPTHS, precise.mean(dim=0).tolist(), strict=True)),
        recall=dict(zip(DEPTHS, hit.mean(dim=0).tolist(), strict=True)),
        mean_average_precision=float(average.mean()),
        average_precision=average.numpy(),
        baseline=baseline,
    )


def _refuse_lonely(examples: Examples) -> None:
    classes_of(examples)
    if len(examples) <= max(DEPTHS):
        raise AugSelfError(
            f"{examples.name}: {len(examples)} images are too few to rank; at least "
            f"{max(DEPTHS) + 1} are needed"
        )
    classes, counts = np.unique(examples.labels, return_counts=True)
    if counts.min() == 1:
        name = examples.class_name(classes[counts.argmin()])
        raise AugSelfError(
            f"{examples.name}: class {name} has one image, so nothing of it can be retrieved; "
            "leave it out"
        )


def _scores(y: Tensor, labels: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the queries start to stop: precision and recall at the depths, average precision."""
    similarity = y[start:stop] @ y.T  # (rows, N)
    similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2
    order = similarity.argsort(dim=1, descending=True)[:, :-1]  # the query itself came last
    right = labels[order] == labels[start:stop, None]
    found = right.cumsum(dim=1)  # (rows, N - 1)
    precision = found / torch.arange(1, right.shape[1] + 1)
    average = (precision * right).sum(dim=1) / found[:, -1]
    at = [depth - 1 for depth in DEPTHS]
    return precision[:, at], (found[:, at] > 0).float(), average
