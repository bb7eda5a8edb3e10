"""The monitor: what it measures of a run, what stops one, and what must not."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from augself_hub import AugSelfLoss
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError
from augself_hub.images.source import UNLABELED
from training.data.sources import Images
from training.monitoring.awareness import scores
from training.monitoring.curves import curves
from training.monitoring.monitor import WINDOW, Alarm, feature_std, knn_accuracy, known_images
from training.run import pretraining
from training.run.objective import Pretraining
from training.run.pretraining import pretrain


def spec(convention="relative"):
    return AugSelfLoss(4, {"crop": 1, "color": 1, "flip": 1}, Policy(8), convention).spec


def alarm(convention="relative"):
    return Alarm(spec(convention))


def epoch(alarm, crop, color=0.9, flip=0.7, std=0.6):
    """An epoch of len(crop) batches."""
    for value in crop:
        parts = {"method": -0.3, "crop": value, "color": color, "flip": flip, "feature_std": std}
        alarm.note({name: torch.tensor(v) for name, v in parts.items()})
    alarm.judge()


def test_a_diverged_head_stops_the_run_and_is_named():
    with pytest.raises(AugSelfError, match=r"the crop head diverged: its error is 7.5 .*--base-lr"):
        epoch(alarm(), [1.0] * 40 + [7.5] * 40)


def test_the_first_half_of_an_epoch_is_forgiven():
    epoch(alarm(), [30.0] * 40 + [0.9] * 40)


def test_a_healthy_run_that_learns_crop_late_goes_on(caplog):
    """Measured: five epochs above 1 before crop falls."""
    watched = alarm()
    with caplog.at_level(logging.WARNING, logger="training"):
        for value in (1.14, 1.07, 1.11, 1.06, 1.11, 1.01, 0.95):
            epoch(watched, [value + 0.2 * math.sin(i) for i in range(40)])
    assert caplog.text.count("the crop head has learned nothing yet") == 1
    assert "color" not in caplog.text


def test_a_single_wild_batch_does_not_stop_a_run():
    epoch(alarm(), [0.9] * (2 * WINDOW - 1) + [15.0])


def test_a_run_too_short_to_judge_is_not_judged():
    watched = alarm()
    epoch(watched, [9.0] * (WINDOW - 1))


def test_short_epochs_are_judged_together():
    watched = alarm()
    for _ in range(WINDOW // 2 - 1):
        epoch(watched, [9.0] * 2)
    with pytest.raises(AugSelfError, match="crop head diverged"):
        epoch(watched, [9.0] * 2)


def test_the_window_does_not_reach_back_further_than_it_must():
    watched = alarm()
    epoch(watched, [1.5] * 100)
    with pytest.raises(AugSelfError, match="crop head diverged"):
        epoch(watched, [3.0] * WINDOW)


def test_only_standardised_regressions_are_measured_against_1():
    epoch(alarm("paper"), [5.0] * 40)
    epoch(alarm(), [0.9] * 40, flip=5.0)


def test_a_collapsed_encoder_stops_the_run():
    with pytest.raises(AugSelfError, match=r"encoder collapsed: .*_std 0.010 below 0.05\)"):
        epoch(alarm(), [0.9] * 40, std=0.01)


def test_of_a_frozen_encoder_no_rate_is_to_blame():
    with pytest.raises(AugSelfError, match=r"below 0.05\); use another encoder"):
        epoch(Alarm(spec(), frozen=True), [0.9] * 40, std=0.01)


def test_a_dimension_that_no_pair_shows_has_no_record():
    """Gray views only: nothing can be said of saturation and hue, not even NaN."""
    head = spec().heads["color"]
    mask = torch.tensor([[True, True, False, False]] * 3)
    found = scores("color", head, torch.zeros(3, 4), torch.full((3, 4), 0.05), mask)
    assert [result["dimension"] for result in found] == ["brightness", "contrast"]


def test_spread_by_hand():
    # unit vectors (1, 0), (-1, 0): standard deviations sqrt(2), 0; mean * sqrt(2) = 1
    assert feature_std(torch.tensor([[3.0, 0.0], [-0.1, 0.0]])).item() == pytest.approx(1.0)
    assert feature_std(torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])).item() < 1e-6
    torch.manual_seed(0)
    assert feature_std(torch.randn(2000, 64)).item() == pytest.approx(1.0, abs=0.02)


@pytest.fixture
def tiny(small_run):
    return small_run(epochs=3, batch_size=4, arguments={"logging_steps": 4, "save_steps": 2})


def spoiled(monkeypatch, change, after=3):
    """A run whose outputs go wrong after some batches."""
    original, seen = Pretraining.forward, []
    monkeypatch.setattr(pretraining, "_publish", lambda s, *_: (s.output / "model").mkdir())

    def forward(self, **batch):
        seen.append(1)
        outputs = original(self, **batch)
        return {**outputs, **change(outputs)} if len(seen) > after else outputs

    monkeypatch.setattr(Pretraining, "forward", forward)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: {"loss": o["loss"] * math.nan}, "the loss is not a number from step"),
        (lambda o: {"crop": o["crop"] + 50}, "the crop head diverged"),
        (lambda o: {"feature_std": o["feature_std"] * 0}, "the encoder collapsed"),
    ],
)
def test_a_bad_run_stops_and_publishes_nothing(tiny, monkeypatch, change, said):
    spoiled(monkeypatch, change)
    with pytest.raises(AugSelfError, match=said):
        pretrain(tiny)
    assert not (tiny.output / "model").exists()


def test_no_checkpoint_holds_a_loss_that_is_not_a_number(tiny, monkeypatch):
    """The loss is logged every 4 steps and would be saved before, at step 10."""
    spoiled(monkeypatch, lambda o: {"loss": o["loss"] * math.nan}, after=9)
    with pytest.raises(AugSelfError, match="not a number"):
        pretrain(tiny)
    assert sorted(p.name for p in tiny.output.glob("checkpoint-*")) == [
        "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip


# -- What it measures ------------------------------------------------------------------------------


def test_neighbours_by_hand():
    """Two classes on two axes; one of three held-out images lies on the wrong one."""
    known = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 5.0], [0.0, 2.0]])
    classes = np.array([0, 0, 1, 1, 1])
    y = torch.tensor([[3.0, 0.1], [0.2, 1.0], [1.0, 0.0], [1.0, 0.0]])
    result = knn_accuracy(known, classes, y, np.array([0, 1, 1, 7]))  # nobody knows class 7
    assert result["images"] == 3
    assert result["name"].endswith("among 5 training images, k = 5")  # there are no 20
    assert result["value"] == pytest.approx(2 / 3)
    assert result["baseline"] == pytest.approx(2 / 3)  # always class 1


def test_there_are_no_neighbours_without_labels():
    known = torch.eye(2)
    assert knn_accuracy(known, np.array([0, 0]), known, np.array([0, 0])) is None
    assert knn_accuracy(known, np.array([0, 1]), known, np.array([UNLABELED, UNLABELED])) is None


def some(labels, classes):
    return Images([str(i) for i in range(len(labels))], labels, classes, Image.open)


def test_known_images_are_labelled_ones_of_the_held_out_images_classes():
    images = some([0, UNLABELED, 1, UNLABELED, 1], ["a", "b"])
    known = known_images(images, some([0], ["a", "b"]), seed=0)
    assert sorted(known.labels) == [0, 1, 1]
    assert known_images(images, some([0], ["b", "a"]), seed=0) is None
    assert known_images(some([UNLABELED], []), some([], []), seed=0) is None


@pytest.fixture
def watched(tiny, monkeypatch):
    """A run of 27 steps that is looked at every third; its trainer."""
    done = []
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t))

    def run(**others):
        arguments = {"logging_steps": 1, "save_strategy": "no"}
        pretrain(dataclasses.replace(tiny, arguments=arguments, **others))
        return done[-1]

    return run


def test_a_run_that_is_watched_is_the_run_that_is_not(watched, tmp_path):
    """Bit for bit, and no loss is missing from the log."""
    open_, blind = watched(monitor_every=1 / 3), watched(monitor_every=0, output=tmp_path / "blind")
    for (name, a), (_, b) in zip(
        open_.model.state_dict().items(), blind.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    rows = [row for row in open_.state.log_history if "eval_feature_std" in row]
    assert [row["step"] for row in rows] == list(range(3, 28, 3))
    assert {"eval_knn", "eval_crop_x", "eval_color_hue"} <= set(rows[0])
    losses, unwatched = (
        [row["loss"] for row in run.state.log_history if "loss" in row] for run in (open_, blind)
    )
    assert losses == unwatched
    assert len(losses) == 27


def test_curves_have_a_panel_for_each_kind_of_figure(watched, tmp_path):
    """Loss; the heads' losses; awareness; features: 360 pixels for each that is there."""
    history = watched(monitor_every=1, epochs=2).state.log_history
    trained = [row for row in history if "loss" in row]
    losses = [{k: v for k, v in row.items() if k != "feature_std"} for row in trained]
    alone = [{k: row[k] for k in ("step", "loss", "method")} for row in losses]
    sizes = []
    for part in (alone, losses, trained, history):
        curves(part, tmp_path / "curves.png")
        sizes.append(Image.open(tmp_path / "curves.png").width)
    assert sizes == [360, 720, 1080, 1440]
