"""Awareness: what frozen features still say about the augmentation that made a view.

One view: its absolute parameters from y. Two views: their difference from [y1, y2]. A linear model
is fitted on views of training images and scored on views of held-out images. Its penalty is chosen
on a fifth of the training images, never on views of images it was fitted on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.examples import Examples, classes_of, refuse_not_finite
from training.evaluation.softmax import SoftmaxRegression, Solution

RIDGES = np.logspace(-6, 6, 25)  # a view, on features of standard deviation 1
RIDGES_OF_CLASSES = np.logspace(-2, 5, 29)  # all views, likewise
SMALL = 0.01  # what features of standard deviation 1 are times, where classes are probed
HELD = 5  # one training image in so many chooses the penalty


@dataclass(frozen=True)
class Views:
    """Features of N views (or pairs) and what is to be read from them.

    Args:
        features: (N, D) of one view, (N, 2D) of pairs: [y1, y2].
        targets: (N, d) parameters or differences; of a class probe (N, 1) class numbers.
        mask: (N, d) bool; False where the picture cannot show it.
        images: (N,) the image each row was made from.
        name: of the split, for errors.

    Raises:
        AugSelfError: a feature, or a target that is not masked, is not finite.
        UsageError: the shapes do not belong together.
    """

    features: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    images: np.ndarray
    name: str = "views"

    def __post_init__(self) -> None:
        shapes = [a.shape for a in (self.features, self.targets, self.mask, self.images)]
        n, d = shapes[0][:1], shapes[1][1:]
        if [len(s) for s in shapes[:3]] != [2, 2, 2] or shapes[1:] != [n + d, n + d, n]:
            raise UsageError(
                f"{self.name}: features, targets, mask and images of shapes {shapes} were given; "
                "(N, D), (N, d), (N, d) and (N,) are needed"
            )
        refuse_not_finite(self.features, f"{self.name} features")
        refuse_not_finite(np.where(self.mask, self.targets, 0), f"{self.name} targets")

    def at(self, rows: np.ndarray) -> Views:
        features, targets = self.features[rows], self.targets[rows]
        return Views(features, targets, self.mask[rows], self.images[rows], self.name)

    def seen(self, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Features (M, D) and targets (M, n) of the rows that can show these n dimensions.

        Raises:
            AugSelfError: there are fewer than two.
        """
        rows: np.ndarray = np.all(self.mask[:, columns], axis=1)
        if rows.sum() < 2:
            raise AugSelfError(
                f"{self.name}: dimension {columns[0]} can be seen in {rows.sum()} of {len(rows)} "
                "views; at least two are needed"
            )
        return self.features[rows], self.targets[rows][:, columns]


@dataclass(frozen=True)
class Regression:
    """One dimension on the held-out views.

    Args:
        r_squared: 1 - squared error / squared error of the baseline, which always says the
            training views' mean and so has 0; 1 is perfect, below 0 is worse than the baseline.
        rmse, baseline_rmse: root mean square errors in the dimension's unit.
        ridge: the weight of the penalty that was chosen.
        views: how many held-out views show the dimension.
    """

    r_squared: float
    rmse: float
    baseline_rmse: float
    ridge: float
    views: int


@dataclass(frozen=True)
class Classification:
    """Percent right of the held-out views; the baseline answers the training views' commonest."""

    accuracy: float
    baseline: float
    penalty: float
    views: int


def regression_probe(train: Views, test: Views) -> list[Regression | None]:
    """Ridge regression with an intercept; one result for each of the d dimensions.

    None for a dimension that fewer than two views show, of those it is fitted on, its penalty is
    chosen by or it is tested on: saturation and hue of gray pictures.

    Raises:
        AugSelfError: an image is in both, there are fewer than HELD training images, or a dimension
            is the same in every held-out view.
    """
    parts = _prepared(train, test)
    found: dict[int, Regression] = {}
    together: dict[bytes, list[int]] = {}  # what the same views show shares one decomposition
    for column in range(train.mask.shape[1]):
        if min(part.mask[:, column].sum() for part in parts) >= 2:
            together.setdefault(train.mask[:, column].tobytes(), []).append(column)
    for columns in together.values():
        found.update(zip(columns, _regressions(*parts, columns), strict=True))
    return [found.get(column) for column in range(train.targets.shape[1])]


def class_probe(train: Views, test: Views) -> Classification:
    """Softmax regression, for flip and rotation; targets are (N, 1) class numbers.

    Unlike the linear probe of linear.py, which is the paper's, features that say nothing must give
    the baseline's answer, the commonest class. Its penalty takes the bias like the weights: here
    features are made small, so that the bias is nearly free. And the penalty is chosen by the
    cross-entropy, since by how many are right a weak one is often best by chance.

    Raises: as regression_probe does; also where fewer than two training views show the target, or
        all that do are of one class.
    """
    parts = []
    for views in _prepared(train, test):
        features, classes = views.seen([0])
        parts.append(Examples(features * np.float32(SMALL), classes[:, 0], views.name))
    fitted, held, both, asked = parts
    known = classes_of(fitted, held, asked)
    least, chosen = math.inf, None
    for solution in _problem(fitted, known).path(RIDGES_OF_CLASSES * SMALL**2):
        logits = _logits(solution, held)
        numbers = torch.from_numpy(np.searchsorted(known, held.labels))
        if (loss := float(F.cross_entropy(logits, numbers))) < least:
            least, chosen = loss, solution
    assert chosen is not None, "a loss is a number"
    (final,) = _problem(both, known).path([chosen.penalty], chosen.theta)
    predicted = known[_logits(final, asked).argmax(dim=1).numpy()]
    values, counts = np.unique(both.labels, return_counts=True)
    right, baseline = (
        100 * float((asked.labels == answer).mean())
        for answer in (predicted, values[counts.argmax()])
    )
    return Classification(right, baseline, chosen.penalty / SMALL**2, len(asked))


def _problem(examples: Examples, classes: np.ndarray) -> SoftmaxRegression:
    numbers = np.searchsorted(classes, examples.labels)
    return SoftmaxRegression(examples.features, numbers, len(classes))


def _logits(solution: Solution, examples: Examples) -> Tensor:
    features, theta = torch.from_numpy(examples.features).double(), solution.theta
    return torch.addmm(theta[-1], features, theta[:-1])


def _prepared(train: Views, test: Views) -> tuple[Views, Views, Views, Views]:
    """Training views to fit on and to choose on, all of them, test views; standardised."""
    images = np.unique(train.images)
    if len(both := np.intersect1d(images, test.images)):
        raise AugSelfError(
            f"image {both[0]} is in {train.name} and in {test.name}: awareness is measured on "
            "images the probe has not seen"
        )
    if len(images) < HELD:
        raise AugSelfError(
            f"{train.name}: {len(images)} images are too few; {HELD} are needed, one of which "
            "chooses the penalty"
        )
    held = np.isin(train.images, np.random.default_rng(0).permutation(images)[::HELD])
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)
    scale = np.where(std > 0, std, 1)
    train, test = (
        dataclasses.replace(views, features=(views.features - mean) / scale)
        for views in (train, test)
    )
    return train.at(~held), train.at(held), train, test


def _regressions(
    fitted: Views, held: Views, train: Views, test: Views, columns: list[int]
) -> list[Regression]:
    path, (x, t) = Ridge(*fitted.seen(columns)), held.seen(columns)
    errors = [((path.predict(x, ridge) - t) ** 2).mean(axis=0) for ridge in RIDGES]  # (25, n)
    ridges = RIDGES[np.argmin(errors, axis=0)]  # (n,)
    solver = Ridge(*train.seen(columns))
    results = []
    for number, column in enumerate(columns):
        x, t = test.seen([column])
        predicted, truth, mean = solver.predict(x, ridges)[:, number], t[:, 0], solver.mean[number]
        error, baseline = (float(((said - truth) ** 2).mean()) for said in (predicted, mean))
        if baseline == 0:
            raise AugSelfError(
                f"a dimension is {mean:.3g} in every training and held-out view: leave it out"
            )
        values = (1 - error / baseline, error**0.5, baseline**0.5, float(ridges[number]))
        results.append(Regression(*values, len(truth)))
    return results


class Ridge:
    """(N, D) features to (N, n) targets for any penalty, from one eigendecomposition.

    min over b of |X b - t|^2 / N + ridge |b|^2, X and t without their means; in float64.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        x = features.astype(np.float64)
        self.middle, self.mean = x.mean(axis=0), targets.mean(axis=0)
        x -= self.middle
        eigenvalues, self.axes = scipy.linalg.eigh(x.T @ x / len(x), driver="evd")
        self.eigenvalues = eigenvalues.clip(min=0)
        self.moments = self.axes.T @ (x.T @ (targets - self.mean)) / len(x)  # (D, n)

    def predict(self, features: np.ndarray, ridges: float | np.ndarray) -> np.ndarray:
        """(M, D) -> (M, n); one ridge, or one for each target."""
        weights = self.axes @ (self.moments / (self.eigenvalues[:, None] + ridges))
        predicted: np.ndarray = (features - self.middle) @ weights + self.mean
        return predicted
