"""The alarm: what stops a run, and what must not."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from augself_hub import AugSelfLoss
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError
from training import pretraining
from training.monitor import WINDOW, Alarm, feature_spread
from training.pretraining import Pretraining, pretrain
from training.settings import Settings


def alarm(convention="relative"):
    return Alarm(AugSelfLoss(4, {"crop": 1, "color": 1, "flip": 1}, Policy(8), convention).spec)


def epoch(alarm, crop, color=0.9, flip=0.7, spread=0.6):
    """An epoch of len(crop) batches."""
    for value in crop:
        parts = {"method": -0.3, "crop": value, "color": color, "flip": flip, "spread": spread}
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
    with pytest.raises(AugSelfError, match=r"encoder collapsed: .* \(spread 0.010 below 0.05\)"):
        epoch(alarm(), [0.9] * 40, spread=0.01)


def test_spread_by_hand():
    # unit vectors (1, 0), (-1, 0): standard deviations sqrt(2), 0; mean * sqrt(2) = 1
    assert feature_spread(torch.tensor([[3.0, 0.0], [-0.1, 0.0]])).item() == pytest.approx(1.0)
    assert feature_spread(torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])).item() < 1e-6
    torch.manual_seed(0)
    assert feature_spread(torch.randn(2000, 64)).item() == pytest.approx(1.0, abs=0.02)


@pytest.fixture
def tiny(photo_folder, tmp_path):
    return Settings(
        data=str(photo_folder),
        output=tmp_path / "run",
        encoder="resnet18-w16",
        size=16,
        epochs=3,
        batch_size=4,
        workers=0,
        arguments={"report_to": [], "logging_steps": 4, "save_steps": 2},
    )


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
        (lambda o: {"loss": o["loss"] * math.nan}, "the loss is not a number any more"),
        (lambda o: {"crop": o["crop"] + 50}, "the crop head diverged"),
        (lambda o: {"spread": o["spread"] * 0}, "the encoder collapsed"),
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
