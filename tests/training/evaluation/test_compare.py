"""Paired differences: intervals against other people's, the paper's figures, what cannot pair."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from augself_hub import hub
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import read_spec
from augself_hub.preprocess import Preprocessing
from training.evaluation.cache import Model
from training.evaluation.compare import bootstrap, check_sides, compare, paired_t
from training.evaluation.published import PUBLISHED
from training.evaluation.report import difference_chart, knowledge, tradeoff_chart
from training.evaluation.results import Result


def result(value: float, **fields) -> Result:
    usual = {"task": "linear probe", "dataset": "cifar10", "name": "cifar10, top-1",
             "metric": "accuracy", "protocol": "as told"}  # fmt: skip
    return Result(**{**usual, **fields}, value=value)


def test_the_bootstrap_equals_scipys():
    differences = np.random.default_rng(0).normal(1, 5, 400)
    found = bootstrap(differences)
    expected = stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    np.testing.assert_allclose(found, expected, atol=0.08)


def test_the_bootstrap_of_a_mean_per_class_weighs_classes_alike():
    """One rare class with another mean: the interval is around the mean of the classes' means."""
    differences = np.array([0.0, 0.1] * 200 + [10.0, 10.2] * 5)
    groups = np.repeat([0, 1], (400, 10))
    low, high = bootstrap(differences, groups)
    assert low < (0.05 + 10.1) / 2 < high
    assert high - low < 0.2


def test_the_interval_over_seeds_equals_scipys():
    a, b = np.array([45.0, 46.1, 44.2]), np.array([47.7, 47.0, 47.2])
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    np.testing.assert_allclose(paired_t(b - a), expected)


def test_a_difference_is_paired_and_carries_the_papers_figures():
    """Images are resampled together: the same image wrong on both sides adds no noise."""
    right = np.where(np.random.default_rng(0).random(500) < 0.5, 100.0, 0.0)
    better = right.copy()
    better[np.flatnonzero(right == 0)[:25]] = 100
    without = [[result(right.mean(), scores=right)]] * 3
    with_ = [[result(better.mean() + i, scores=better)] for i in (0, 0, 3)]
    (found,) = compare(without, with_)
    assert found.difference == pytest.approx(5 + 1)
    assert 2.5 < found.over_images[0] < 4.5 and 5.5 < found.over_images[1] < 7.5
    assert found.over_seeds == pytest.approx(paired_t([5, 5, 8]))
    assert found.published["SimSiam"] == (86.89, 88.80)
    assert json.loads(json.dumps(found.record()))["without"] == [right.mean()] * 3


def test_what_was_measured_on_one_side_only_is_left_out():
    only = result(1.0, dataset="pets", name="pets, mean per class")
    (found,) = compare([[result(1.0), only]], [[result(2.0)]])
    assert found.dataset == "cifar10" and found.over_seeds is None and found.over_images is None
    with pytest.raises(AugSelfError, match="no result in common"):
        compare([[only]], [[result(2.0)]])


def test_the_papers_figures_are_all_there():
    """Eleven linear probes and six few-shot results of two methods; means as the paper prints."""
    linear = [v["SimSiam"] for (task, _, _), v in PUBLISHED.items() if task == "linear probe"]
    assert len(linear) == 11 and len(PUBLISHED) == 17
    assert all(set(methods) == {"SimSiam", "MoCo v2"} for methods in PUBLISHED.values())
    assert PUBLISHED["linear probe", "cars", 0]["SimSiam"] == (48.20, 47.52)
    assert PUBLISHED["few-shot", "plant_disease", 5]["MoCo v2"] == (84.98, 87.81)


@pytest.mark.parametrize(("ways", "expected"), [(5, (45.56, 48.08)), (20, None)])
def test_the_paper_has_five_ways_only(ways, expected):
    one = result(40.0, task="few-shot", dataset="cub200", details={"ways": ways, "shots": 1})
    (found,) = compare([[one]], [[one]])
    assert found.published.get("SimSiam") == expected


def model(tmp_path, name: str, **provenance) -> Model:
    spec = dataclasses.replace(read_spec(hub.EMBEDDED), provenance=provenance)
    return Model(name, tmp_path, name * 8, spec, Preprocessing.from_folder(hub.EMBEDDED))


def test_sides_that_cannot_be_paired_are_refused_by_name(tmp_path):
    a, b = (model(tmp_path, n, method="simsiam", augself="none") for n in "ab")
    c = model(tmp_path, "c", method="byol", augself="none")
    check_sides([a, b], [b, a])
    with pytest.raises(UsageError, match="2 models on one side and 1 on the other"):
        check_sides([a, b], [c])
    with pytest.raises(UsageError, match="method is simsiam and byol"):
        check_sides([a, b], [a, c])


def test_charts_are_drawn_from_what_is_there(tmp_path):
    differences = compare([[result(40.0), result(0.3, name="e", unit="sides")]],
                          [[result(45.0), result(0.2, name="e", unit="sides")]])  # fmt: skip
    difference_chart(differences, tmp_path / "comparison")
    details = {"kind": "color", "dimension": "color hue", "strength": 0.05, "invariance": 0.7}
    known = result(0.5, task="awareness, two views", name="h", metric="r_squared", details=details)
    ignored = result(
        0.9, task="invariance", name="i", details={**details, "kind": "hue"}, metric="cosine"
    )
    tradeoff_chart({"one": [known, ignored]}, tmp_path / "awareness")
    for name in ("comparison", "awareness"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    svg = (tmp_path / "awareness.svg").read_text()
    assert "<!-- hue -->" in svg


def test_what_a_tiny_test_set_cannot_tell_is_left_out_of_the_chart():
    """All its pairs are alike: the commonest class is always right, and nothing is beyond it."""
    known = {
        kind: result(value, task="awareness, two views", metric=metric, baseline=baseline,
                     details={"kind": kind, "dimension": f"{kind} {dimension}"})
        for kind, dimension, value, metric, baseline in (
            ("flip", "mirrored", 100, "accuracy", 100),
            ("rot", "quarter_turns", 70, "accuracy", 40),
            ("blur", "sigma", 0.25, "r_squared", 0.0),
        )
    }  # fmt: skip
    assert knowledge(known.values()) == {"rot": 0.5, "blur": 0.25}
