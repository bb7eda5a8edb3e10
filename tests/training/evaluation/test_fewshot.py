"""Few-shot tasks: how they are drawn, and that liblinear would have answered the same."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from augself_hub.errors import AugSelfError, UsageError
from training.evaluation.examples import Examples
from training.evaluation.fewshot import draw_tasks, few_shot


@pytest.fixture(scope="module")
def examples():
    """12 classes of 30 images; features as an encoder's: not negative, of unequal scale."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 30)
    scale = np.linspace(0.2, 3, 64)
    y = (random.standard_normal((12, 64))[labels] + 1.5 * random.standard_normal((360, 64))) * scale
    order = random.permutation(360)
    return Examples(np.maximum(y, 0)[order], labels[order], "birds")


def liblinear(examples, task, shots, tolerance):
    """Percent right of one task (ways, shots + queries), by scikit-learn."""
    known, asked = task[:, :shots].ravel(), task[:, shots:].ravel()
    one = LogisticRegression(solver="liblinear", C=1.0, tol=tolerance, max_iter=10_000)
    model = OneVsRestClassifier(one).fit(examples.features[known], examples.labels[known])
    predicted = model.predict(examples.features[asked].astype(np.float64))
    return 100 * (predicted == examples.labels[asked]).mean()


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (5, 5), (2, 3)])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_every_task_is_answered_as_liblinear_answers_it(examples, ways, shots, scale):
    """Whatever the features' scale; scikit-learn works to 1e-10 here."""
    scaled = Examples(examples.features * scale, examples.labels)
    tasks = draw_tasks(scaled, ways, shots, 16, 25, seed=3)
    expected = [liblinear(scaled, task, shots, 1e-10) for task in tasks]
    found = few_shot(scaled, ways, shots, tasks=25, seed=3)
    assert found.accuracies == pytest.approx(expected)
    assert 100 / ways + 5 < found.mean < 99


def test_the_mean_is_within_scikit_learns_interval(examples):
    """At its own tolerance, on the same tasks."""
    tasks = draw_tasks(examples, 5, 1, 16, 200, seed=0)
    expected = np.array([liblinear(examples, task, 1, 1e-4) for task in tasks])
    found = few_shot(examples, tasks=200)
    interval = 1.96 * expected.std(ddof=1) / 200**0.5
    assert abs(found.mean - expected.mean()) < interval
    assert found.margin_of_error == pytest.approx(interval, rel=0.05)
    assert found.mean == found.accuracies.mean()


def test_a_task_has_distinct_classes_and_distinct_images_of_them(examples):
    tasks = draw_tasks(examples, 5, 2, 16, 300, seed=0)
    assert tasks.shape == (300, 5, 18)
    labels = examples.labels[tasks]
    assert (labels == labels[:, :, :1]).all()
    assert all(len(set(task[:, 0])) == 5 for task in labels)
    assert all(len(np.unique(task)) == 90 for task in tasks)
    assert len(np.unique(tasks)) == 360  # in the end every image has its turn


def test_the_tasks_are_the_seeds_and_not_the_features(examples):
    """So that the difference of two models is paired."""
    other = Examples(-examples.features, examples.labels)
    first, again = (draw_tasks(e, 5, 1, 16, 20, seed=1) for e in (examples, other))
    assert (first == again).all()
    assert (first != draw_tasks(examples, 5, 1, 16, 20, seed=2)).any()


def test_a_class_with_too_few_images_is_named(examples):
    """20 of class 4's 30 images are gone."""
    kept = np.delete(np.arange(360), np.flatnonzero(examples.labels == 4)[:20])
    few = Examples(examples.features[kept], examples.labels[kept], "birds", tuple("abcdefghijkl"))
    message = r"birds: class 'e' has 10 images, 1 shots and 16 queries need 17"
    with pytest.raises(AugSelfError, match=message):
        few_shot(few)
    assert few_shot(few, queries=9, tasks=10).mean > 20


def test_too_few_classes_and_impossible_tasks_are_refused(examples):
    with pytest.raises(AugSelfError, match="birds: 12 classes are too few for 13 ways"):
        few_shot(examples, ways=13)
    with pytest.raises(UsageError, match="0 shots"):
        few_shot(examples, shots=0)
