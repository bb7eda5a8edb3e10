"""Few-shot classification: many small tasks of a few classes with a few images each.

A task draws `ways` classes and of each `shots` images to learn from and `queries` to classify. The
classifier is logistic regression with C = 1, one class against the rest, on raw features, as
liblinear solves it (the bias is regularised):

    min over theta_c of |theta_c|^2 / 2 + sum over i of log(1 + exp(-t_ic theta_c . [x_i, 1]))

A task has few images, so theta_c is sought as the sum of beta_ic [x_i, 1] over them: with the Gram
matrix K of the images the logits are K beta and the optimum is where beta = (1 + t) / 2 -
sigmoid(K beta). Newton's method with halved steps solves all classes of many tasks at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.examples import Examples

CHUNK = 50  # tasks solved at once: 5-way 5-shot on 2048 features holds 130 MB
EXACT = 1e-9  # a class's objective is this near its optimum
STEPS = 100  # of Newton's method; about 6 are needed


@dataclass(frozen=True)
class FewShot:
    """Percentages over the tasks.

    Args:
        mean: of the tasks' accuracies.
        margin_of_error: half the width of its 95% interval, 1.96 sigma / sqrt(tasks).
        accuracies: (tasks,); two models with the same labels and seed saw the same tasks, so their
            differences are paired.
    """

    mean: float
    margin_of_error: float
    accuracies: np.ndarray


def few_shot(
    examples: Examples,
    ways: int = 5,
    shots: int = 1,
    queries: int = 16,
    tasks: int = 2000,
    seed: int = 0,
) -> FewShot:
    """Mean accuracy over tasks drawn from `examples`.

    Raises:
        AugSelfError: fewer classes than ways, or a class with fewer images than shots + queries.
        UsageError: fewer than 2 ways or tasks, no shot or no query.
    """
    drawn = draw_tasks(examples, ways, shots, queries, tasks, seed)  # (tasks, ways, each)
    accuracies = np.concatenate(
        [
            _accuracies(examples.features[drawn[start : start + CHUNK]], shots)
            for start in range(0, tasks, CHUNK)
        ]
    )
    margin = 1.96 * float(accuracies.std(ddof=1)) / tasks**0.5
    return FewShot(float(accuracies.mean()), margin, accuracies)


def draw_tasks(
    examples: Examples, ways: int, shots: int, queries: int, tasks: int, seed: int
) -> np.ndarray:
    """Row numbers (tasks, ways, shots + queries), by the labels and the seed alone.

    Raises: as few_shot does.
    """
    if ways < 2 or shots < 1 or queries < 1 or tasks < 2:
        raise UsageError(
            f"{tasks} tasks of {ways} ways, {shots} shots and {queries} queries were asked for: at "
            "least 2 tasks, 2 ways, 1 shot and 1 query are needed"
        )
    classes, counts = np.unique(examples.labels, return_counts=True)
    if len(classes) < ways:
        raise AugSelfError(
            f"{examples.name}: {len(classes)} classes are too few for {ways} ways; use fewer ways"
        )
    if counts.min() < shots + queries:
        name = examples.class_name(classes[counts.argmin()])
        raise AugSelfError(
            f"{examples.name}: class {name} has {counts.min()} images, {shots} shots and {queries} "
            f"queries need {shots + queries}; leave it out or use fewer"
        )
    rows = np.split(np.argsort(examples.labels, kind="stable"), np.cumsum(counts)[:-1])
    random, each = np.random.default_rng(seed), shots + queries
    return np.stack(
        [
            [
                random.choice(rows[c], each, replace=False)
                for c in random.choice(len(rows), ways, replace=False)
            ]
            for _ in range(tasks)
        ]
    )


def _accuracies(x: np.ndarray, shots: int) -> np.ndarray:
    """(tasks, ways, shots + queries, D) -> (tasks,) percent of the queries classified right."""
    tasks, ways, _, width = x.shape
    known = x[:, :, :shots].reshape(tasks, ways * shots, width).astype(np.float64)
    asked = x[:, :, shots:].reshape(tasks, -1, width).astype(np.float64)
    gram = known @ known.swapaxes(1, 2) + 1  # the 1 is the bias
    member = np.repeat(np.eye(ways), shots, axis=1)  # (ways, ways * shots)
    beta = one_vs_rest(gram, member)
    logits = (asked @ known.swapaxes(1, 2) + 1) @ beta.swapaxes(1, 2)  # (tasks, asked, ways)
    truth = np.repeat(np.arange(ways), x.shape[2] - shots)
    percent: np.ndarray = 100 * (logits.argmax(axis=2) == truth).mean(axis=1)
    return percent


def one_vs_rest(gram: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Coefficients (tasks, ways, n) of the n images in each class's theta.

    Args:
        gram: (tasks, n, n) float64 inner products of the images with their 1.
        member: (ways, n) 1 where the image is of the class, else 0.

    Raises:
        AugSelfError: no optimum was found; the features are too large for float64.
    """
    k = gram[:, None]  # (tasks, 1, n, n)
    target = np.broadcast_to(member, (len(gram), *member.shape))
    beta = np.zeros_like(target)
    for _ in range(STEPS):
        f = _times(k, beta)
        p = expit(f)
        slack = beta + p - target  # the gradient is K slack
        curved = (p * (1 - p))[..., None] * k + np.eye(k.shape[-1])
        step = -np.linalg.solve(curved, slack[..., None])[..., 0]
        decrement = -(_times(k, slack) * step).sum(axis=-1)  # twice the gain still possible
        if decrement.max() < EXACT:
            return beta + step
        beta = beta + _step_length(k, beta, step, target, decrement)[..., None] * step
    raise AugSelfError(
        f"logistic regression found no optimum in {STEPS} steps: the features are as large as "
        f"{np.sqrt(gram.max()):.3g}"
    )


def _times(k: np.ndarray, v: np.ndarray) -> np.ndarray:
    product: np.ndarray = (k @ v[..., None])[..., 0]
    return product


def _step_length(
    k: np.ndarray, beta: np.ndarray, step: np.ndarray, target: np.ndarray, decrement: np.ndarray
) -> np.ndarray:
    """(tasks, ways) 1, halved until the objective falls by a fair share of what Newton promises."""
    length = np.ones(beta.shape[:-1])
    before = _objective(k, beta, target)
    for _ in range(STEPS):
        after = _objective(k, beta + length[..., None] * step, target)
        far = after > before - 1e-4 * length * decrement + 1e-12 * (1 + np.abs(before))
        if not far.any():
            break
        length = np.where(far, length / 2, length)
    return length


def _objective(k: np.ndarray, beta: np.ndarray, target: np.ndarray) -> np.ndarray:
    f = _times(k, beta)
    loss = np.logaddexp(0, f) - target * f
    total: np.ndarray = (beta * f).sum(axis=-1) / 2 + loss.sum(axis=-1)
    return total
