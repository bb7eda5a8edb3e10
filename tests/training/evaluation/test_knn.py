"""Nearest neighbours: against scikit-learn's, and what cannot be answered."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation import knn as module
from training.evaluation.examples import Examples
from training.evaluation.knn import knn


def split(n, name, seed, classes=(3, 5, 9)):
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n)
    means = np.random.default_rng(0).standard_normal((10, 16))
    return Examples(means[labels] + 2 * random.standard_normal((n, 16)), labels, name)


@pytest.mark.parametrize("temperature", [0.07, math.inf])
def test_the_votes_are_scikit_learns(temperature):
    """The standard weights, and the plain majority."""
    train, test = split(200, "train", 1), split(150, "test", 2)
    reference = KNeighborsClassifier(
        21,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )
    expected = reference.fit(train.features, train.labels).predict(test.features)
    result = knn(train, test, neighbors=21, temperature=temperature)
    assert (result.predicted == expected).all()
    assert result.accuracy == pytest.approx(100 * (expected == test.labels).mean())
    assert (result.correct == (expected == test.labels)).all()
    assert 40 < result.accuracy < 100


def test_small_chunks_say_the_same(monkeypatch):
    train, test = split(200, "train", 1), split(150, "test", 2)
    whole = knn(train, test).predicted
    monkeypatch.setattr(module, "CHUNK", 7 * len(train))
    assert (knn(train, test).predicted == whole).all()


def test_every_class_counts_alike_where_the_metric_says_so():
    """One class of two is rare and always wrong."""
    train = Examples([[1, 0], [1, 0.1], [0, 1]], [0, 0, 1])
    test = Examples([[1, 0], [1, 0], [1, 0], [1, 0]], [0, 0, 0, 1])
    assert knn(train, test, 1).accuracy == 75
    assert knn(train, test, 1, metric="mean per class").accuracy == 50


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(
        UsageError, match=r"200 training images are fewer than the 201 neighbours .* leave knn out"
    ):
        knn(split(200, "train", 1), split(10, "test", 2), neighbors=201)


def test_a_class_that_training_lacks_is_named():
    with pytest.raises(AugSelfError, match=r"test: class 9 has no image in train"):
        knn(split(50, "train", 1, (3, 5)), split(50, "test", 2))
