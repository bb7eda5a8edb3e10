"""Two sides of models, without and with AugSelf, on the same images: paired differences.

Over images: 95% of the bootstrapped differences, both sides resampled together. Over seeds: the
paired t-interval of the differences, where several models of one recipe are on each side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.cache import Model
from training.evaluation.published import LABEL, PUBLISHED
from training.evaluation.results import Result

RESAMPLES = 2000
_RECIPE = ("method", "encoder", "augself", "data", "images", "steps")


@dataclass(frozen=True)
class Difference:
    """One number on both sides.

    Args:
        task, dataset, name, unit: as of a `Result`.
        without, with_: the value of each model of a side, in the order given.
        difference: mean of with minus without.
        over_images: 95% interval by the bootstrap; None of what is no mean over images.
        over_seeds: 95% paired t-interval; None of one model a side.
        published: method -> the paper's (without, with).
        lower_is_better: an error.
    """

    task: str
    dataset: str
    name: str
    unit: str
    without: tuple[float, ...]
    with_: tuple[float, ...]
    difference: float
    over_images: tuple[float, float] | None
    over_seeds: tuple[float, float] | None
    published: dict[str, tuple[float, float]]
    lower_is_better: bool = False

    def record(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["with"] = found.pop("with_")
        found[f"published ({LABEL})"] = found.pop("published")
        return found


def check_sides(without: Sequence[Model], with_: Sequence[Model]) -> None:
    """Refuse sides that cannot be paired.

    Raises:
        UsageError: of different lengths, or with models of several recipes on one side.
    """
    if len(without) != len(with_):
        raise UsageError(
            f"--compare has {len(without)} models on one side and {len(with_)} on the other: give "
            "the same seeds on both, in the same order"
        )
    for first, *others in (without, with_):
        for other, name in product(others, _RECIPE):
            a, b = (model.spec.provenance.get(name) for model in (first, other))
            if a != b:
                raise UsageError(
                    f"{first.title} and {other.title} are of different recipes: {name} is {a} and "
                    f"{b}; a side of --compare holds seeds of one recipe"
                )


def compare(
    without: Sequence[Sequence[Result]], with_: Sequence[Sequence[Result]], seed: int = 0
) -> list[Difference]:
    """The results of each model of both sides -> the differences of what all have.

    Raises:
        AugSelfError: nothing was measured on both sides.
    """
    sides = [[{r.key: r for r in results} for results in side] for side in (without, with_)]
    keys = [key for key in sides[0][0] if all(key in one for side in sides for one in side)]
    if not keys:
        raise AugSelfError("the two sides have no result in common: ask for other tasks")
    pairs = [([one[key] for one in sides[0]], [one[key] for one in sides[1]]) for key in keys]
    return [_difference(plain, aware, seed) for plain, aware in pairs]


def _difference(without: list[Result], with_: list[Result], seed: int) -> Difference:
    first = without[0]
    a, b = ([r.scores for r in side if r.scores is not None] for side in (without, with_))
    over_images = None
    if len(a) == len(without) and len(b) == len(with_):  # all are means over images
        over_images = bootstrap(np.mean(b, axis=0) - np.mean(a, axis=0), first.groups, seed)
    pairs = [two.value - one.value for one, two in zip(without, with_, strict=True)]
    return Difference(
        *(first.task, first.dataset, first.name, first.unit),
        without=tuple(result.value for result in without),
        with_=tuple(result.value for result in with_),
        difference=float(np.mean(pairs)),
        over_images=over_images,
        over_seeds=paired_t(pairs) if len(pairs) > 1 else None,
        published=_published(first),
        lower_is_better=first.lower_is_better,
    )


def _published(result: Result) -> dict[str, tuple[float, float]]:
    """The paper's figures of the same number; its few-shot tasks have 5 ways."""
    if result.details.get("ways", 5) != 5:
        return {}
    return PUBLISHED.get((result.task, result.dataset, result.details.get("shots", 0)), {})


def paired_t(differences: Sequence[float]) -> tuple[float, float]:
    """The 95% t-interval of the mean of n >= 2 paired differences."""
    n, mean = len(differences), float(np.mean(differences))
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / n**0.5
    return mean - half, mean + half


def bootstrap(
    differences: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean of (N,) differences, resampled with replacement.

    Args:
        groups: (N,) of each image; the mean is then of the groups' means, each resampled alone.
    """
    groups = np.zeros(len(differences), int) if groups is None else groups
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    ordered = differences[np.argsort(number, kind="stable")]
    size = np.repeat(counts, counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    weights = 1 / (len(counts) * size)
    random = np.random.default_rng(seed)
    means = [
        float(weights @ ordered[start + (random.random(len(size)) * size).astype(int)])
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
