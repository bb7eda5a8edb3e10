"""Retrieval by cosine: against scikit-learn's average precision, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from augself_hub.errors import AugSelfError
from training.evaluation import retrieval
from training.evaluation.examples import Examples
from training.evaluation.retrieval import retrieve


@pytest.fixture
def examples():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    return Examples(
        random.standard_normal((4, 8))[labels] + random.standard_normal((60, 8)), labels
    )


def test_every_measure_is_what_its_definition_says(examples):
    """One query at a time, with the query taken out of the gallery."""
    y = examples.features / np.linalg.norm(examples.features, axis=1, keepdims=True)
    average, at_1, at_5, any_5 = [], [], [], []
    for query, label in enumerate(examples.labels):
        others = np.delete(np.arange(len(y)), query)
        similarity, right = y[others] @ y[query], examples.labels[others] == label
        best = right[np.argsort(-similarity)]
        average.append(average_precision_score(right, similarity))
        at_1.append(best[0])
        at_5.append(best[:5].mean())
        any_5.append(best[:5].any())
    found = retrieve(examples)
    assert found.average_precision == pytest.approx(100 * np.array(average), abs=1e-3)
    assert found.mean_average_precision == pytest.approx(100 * np.mean(average), abs=1e-3)
    assert found.precision[1] == found.recall[1] == pytest.approx(100 * np.mean(at_1))
    assert found.precision[5] == pytest.approx(100 * np.mean(at_5))
    assert found.recall[5] == pytest.approx(100 * np.mean(any_5))


def test_features_that_say_nothing_are_trivial():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (100, 200, 300))
    found = retrieve(Examples(random.standard_normal((600, 20)), labels))
    assert found.precision[10] == pytest.approx(found.baseline, abs=2)
    assert found.baseline == pytest.approx(100 * (99 * 100 + 199 * 200 + 299 * 300) / (600 * 599))


def test_small_chunks_say_the_same(examples, monkeypatch):
    whole = retrieve(examples)
    monkeypatch.setattr(retrieval, "CHUNK", 7 * len(examples))
    parts = retrieve(examples)
    assert (parts.average_precision == whole.average_precision).all()
    assert parts.precision == whole.precision


def test_a_class_of_one_image_is_named(examples):
    labels = examples.labels.copy()
    labels[3] = 7
    names = tuple("abcdefgh")
    with pytest.raises(AugSelfError, match=r"examples: class 'h' has one image"):
        retrieve(Examples(examples.features, labels, label_names=names))


def test_too_few_images_are_refused(examples):
    with pytest.raises(AugSelfError, match="10 images are too few to rank"):
        retrieve(examples.at(slice(10)))
