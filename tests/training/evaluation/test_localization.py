"""Localisation: least squares that need no ridge, whatever the rank."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.localization import localize


@pytest.fixture
def birds():
    """Features that say two thirds of where the box is."""
    random = np.random.default_rng(0)
    features = random.standard_normal((300, 20)).astype(np.float32) + 5
    boxes = (features - 5) @ random.standard_normal((20, 4)) * 0.05 + 0.5
    return features, boxes + 0.1 * random.standard_normal(boxes.shape)


def test_the_boxes_are_those_of_scikit_learn(birds):
    features, boxes = birds
    reference = LinearRegression().fit(features[:200].astype(float), boxes[:200])
    expected = reference.predict(features[200:])
    found = localize(features[:200], boxes[:200], features[200:], boxes[200:])
    assert found.predicted == pytest.approx(expected, abs=1e-9)
    assert found.errors == pytest.approx(np.linalg.norm(expected - boxes[200:], axis=1))
    assert found.error == pytest.approx(found.errors.mean())
    assert found.squared_error == pytest.approx(((expected - boxes[200:]) ** 2).mean())
    mean = boxes[:200].mean(axis=0)
    distances = np.linalg.norm(mean - boxes[200:], axis=1)
    assert found.baseline_error == pytest.approx(distances.mean())
    assert found.error < 0.8 * found.baseline_error


def test_dead_and_repeated_features_change_nothing(birds):
    """Encoders have units that never fire; float32 does not repeat a column exactly."""
    features, boxes = birds
    twice = features[:, :5] * np.float32(1 + 1e-7)
    wide = np.concatenate([features, np.zeros((300, 3)), twice, np.ones((300, 2))], axis=1)
    narrow = localize(features[:200], boxes[:200], features[200:], boxes[200:])
    found = localize(wide[:200], boxes[:200], wide[200:], boxes[200:])
    assert found.predicted == pytest.approx(narrow.predicted, abs=1e-5)


def test_fewer_images_than_features_have_the_smallest_solution(birds):
    features, boxes = birds
    found = localize(features[:12], boxes[:12], features[12:], boxes[12:])
    x, t = features[:12].astype(float), boxes[:12]
    weights = np.linalg.pinv(x - x.mean(axis=0)) @ (t - t.mean(axis=0))
    expected = (features[12:] - x.mean(axis=0)) @ weights + t.mean(axis=0)
    assert found.predicted == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_fitted_is_named(birds):
    features, boxes = birds
    broken = boxes.copy()
    broken[7, 2] = np.nan
    with pytest.raises(
        AugSelfError, match="train boxes: 1 of 300 rows hold NaN or infinity, the first is row 7"
    ):
        localize(features, broken, features, boxes)
    with pytest.raises(UsageError, match=r"test: features \(300, 20\) and boxes \(299, 4\)"):
        localize(features, boxes, features, boxes[:-1])
