"""Awareness probes on features whose knowledge is known, and invariance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.invariance import invariance
from training.evaluation.probes import Ridge, Views, class_probe, regression_probe


def views(images, seed, name, noise=0.5):
    """Four views an image. Features know the first parameter well, half of the second, not the
    third; and which image it is, which is useless on other images."""
    random = np.random.default_rng(seed)
    image = np.repeat(images, 4)
    n = len(image)
    targets = random.uniform((-1, 4, -1), (1, 6, 1), (n, 3))
    seen = (targets - [0, 5, 0]) * [1, 0.3, 0] + noise * 0.2 * random.standard_normal((n, 3))
    mixing = np.random.default_rng(0).standard_normal((3, 24))
    content = np.random.default_rng(1).standard_normal((1000, 24))[image]
    features = seen @ mixing + 0.02 * content
    return Views(features.astype(np.float32) * 7 + 3, targets, np.ones((n, 3), bool), image, name)


@pytest.fixture(scope="module")
def train():
    return views(np.arange(150), 2, "train")


@pytest.fixture(scope="module")
def test():
    return views(np.arange(500, 600), 3, "test")


def test_r_squared_says_what_the_features_know(train, test):
    first, second, third = regression_probe(train, test)
    assert first.r_squared == pytest.approx(1 - 0.01 / (1 / 3 + 0.01), abs=0.05)
    assert second.r_squared == pytest.approx(0.03 / (0.03 + 0.01), abs=0.1)
    assert third.r_squared == pytest.approx(0, abs=0.05)
    assert first.baseline_rmse == pytest.approx(3**-0.5, abs=0.04)
    assert first.rmse == pytest.approx(first.baseline_rmse * (1 - first.r_squared) ** 0.5)
    assert first.views == 400


def test_the_baseline_knows_the_training_mean_and_not_the_tests(train, test):
    """A shifted test set makes it worse, and so the probe better."""
    moved = dataclasses.replace(test, targets=test.targets + 10)
    result = regression_probe(train, moved)[2]
    mean = train.targets[:, 2].mean()
    expected = np.sqrt(((moved.targets[:, 2] - mean) ** 2).mean())
    assert result.baseline_rmse == pytest.approx(expected)


def test_what_cannot_be_seen_is_not_asked(train, test):
    """Wrong, even NaN, values behind the mask change nothing, in training or held out."""

    def hidden(split, value):
        targets, mask = split.targets.copy(), split.mask.copy()
        targets[::3, 0], mask[::3, 0] = value, False
        return dataclasses.replace(split, targets=targets, mask=mask)

    clean = regression_probe(hidden(train, 0.0), hidden(test, 0.0))
    assert regression_probe(hidden(train, np.nan), hidden(test, np.nan)) == clean
    assert clean[0].views == 400 - len(range(0, 400, 3))
    assert clean[1:] == regression_probe(train, test)[1:]


def test_the_ridge_is_scikit_learns(train):
    x, t = train.features[:200], train.targets[:200]
    solver = Ridge(x, t)
    for ridge in (1e-4, 1.0, 100.0):
        reference = SklearnRidge(alpha=ridge * 200).fit(x.astype(np.float64), t)
        expected = reference.predict(train.features[200:].astype(np.float64))
        assert solver.predict(train.features[200:], ridge) == pytest.approx(expected, abs=1e-6)


def test_the_penalty_is_chosen_on_other_images():
    """With more features than views only a strong ridge helps; rows of one image stay together."""
    random = np.random.default_rng(0)

    def noisy(images, name):
        image = np.repeat(images, 4)
        content = np.random.default_rng(1).standard_normal((300, 200))[image]
        t = np.random.default_rng(2).uniform(-1, 1, 300)[image][:, None]  # of the image alone
        t = t + 0.1 * random.standard_normal(t.shape)
        features = (content + 0.1 * random.standard_normal(content.shape)).astype(np.float32)
        return Views(features, t, np.ones_like(t, bool), image, name)

    result = regression_probe(noisy(np.arange(40), "train"), noisy(np.arange(200, 260), "test"))[0]
    assert result.r_squared > -0.2  # a view of a known image would have chosen a weak one: -1
    assert result.ridge > 10


def test_flips_are_classified_beside_the_commonest_answer(train, test):
    def flipped(split):
        """The first parameter's sign; positive in a third of the views."""
        return dataclasses.replace(
            split, targets=(split.targets[:, :1] > 1 / 3).astype(float), mask=split.mask[:, :1]
        )

    result = class_probe(flipped(train), flipped(test))
    assert result.accuracy > 85
    assert result.baseline == pytest.approx(100 * (test.targets[:, 0] <= 1 / 3).mean())
    assert result.views == 400


def test_what_one_split_does_not_show_has_no_result(train, test):
    """Of the second dimension nothing is seen where it is fitted; the others are as they were."""
    mask = train.mask.copy()
    mask[:, 1] = np.arange(len(mask)) == 7
    first, second, third = regression_probe(dataclasses.replace(train, mask=mask), test)
    assert second is None
    assert [first, third] == regression_probe(train, test)[::2]


@pytest.mark.parametrize("seed", range(4))
def test_features_that_say_nothing_score_the_baseline(seed):
    """Classes as quarter turns are drawn: 50, 17, 17 and 17%; a weak penalty is right in 25 to 40%.

    200 views to fit and 1,000 to test, of 64 features. A standard deviation is 1.6 points.
    """
    random = np.random.default_rng(seed)

    def noise(images, name):
        image = np.repeat(images, 4)
        classes = random.choice(4, (len(image), 1), p=[0.5, 1 / 6, 1 / 6, 1 / 6]).astype(float)
        features = (3 * random.standard_normal((len(image), 64)) + 1).astype(np.float32)
        return Views(features, classes, np.ones_like(classes, bool), image, name)

    found = class_probe(noise(np.arange(50), "train"), noise(np.arange(100, 350), "test"))
    assert found.baseline == pytest.approx(50, abs=5)
    assert found.accuracy == pytest.approx(found.baseline, abs=3.2)


def test_an_image_in_both_splits_is_named(train):
    with pytest.raises(AugSelfError, match="image 149 is in train and in test"):
        regression_probe(train, views(np.arange(149, 200), 3, "test"))


def test_what_cannot_be_probed_is_refused(train, test):
    few = train.at(train.images < 4)
    with pytest.raises(AugSelfError, match="train: 4 images are too few"):
        regression_probe(few, test)
    blind = dataclasses.replace(test, mask=np.zeros_like(test.mask))
    assert regression_probe(train, blind) == [None, None, None]
    with pytest.raises(AugSelfError, match="test: dimension 0 can be seen in 0 of 400 views"):
        class_probe(dataclasses.replace(train, targets=train.targets > 0), blind)
    with pytest.raises(UsageError, match="test: features, targets, mask and images of shapes"):
        dataclasses.replace(test, targets=test.targets[:, :2])
    broken = np.where(np.arange(400)[:, None] == 9, np.nan, test.features)
    with pytest.raises(
        AugSelfError, match="test features: 1 of 400 rows hold NaN or infinity, the first is row 9"
    ):
        dataclasses.replace(test, features=broken)


def test_invariance_stands_between_another_image_and_the_image_itself():
    random = np.random.default_rng(0)
    y = np.abs(random.standard_normal((200, 64)))
    assert invariance(y, 3 * y).invariance == pytest.approx(1)
    assert invariance(y, np.roll(y, 1, axis=0)).invariance == pytest.approx(0, abs=0.02)
    half = invariance(y, y + 0.5 * np.abs(random.standard_normal(y.shape)))
    assert 0.3 < half.invariance < 0.95
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    similarity = unit @ unit.T
    expected = similarity[~np.eye(200, dtype=bool)].mean()
    assert invariance(y, y).baseline == pytest.approx(expected)


def test_collapsed_features_have_no_invariance():
    with pytest.raises(AugSelfError, match="the encoder collapsed"):
        invariance(np.ones((5, 3)), np.ones((5, 3)))
    with pytest.raises(UsageError, match=r"images \(5, 3\) and views \(4, 3\)"):
        invariance(np.ones((5, 3)), np.ones((4, 3)))
