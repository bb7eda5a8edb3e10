"""What the optimizer and its schedule do, and how a batch is shared out."""

from __future__ import annotations

import math

import pytest
import torch

from augself_hub.errors import UsageError
from training import pretraining, trainer
from training.data import KeyedSampler
from training.pretraining import pretrain
from training.settings import Settings
from training.trainer import training_arguments


@pytest.fixture
def settings(photo_folder, tmp_path):
    return Settings(
        data=str(photo_folder),
        output=tmp_path / "run",
        encoder="resnet18-w16",
        size=16,
        epochs=2,
        batch_size=8,
        base_lr=0.64,
        weight_decay=0.01,
        workers=0,
        arguments={"report_to": [], "logging_steps": 1, "save_strategy": "no"},
    )


@pytest.fixture
def trained(settings, monkeypatch):
    """A finished SimSiam run of 8 steps: its trainer and the learning rates of every step."""
    rates, done = [], []
    original = trainer._MethodSteps.on_pre_optimizer_step

    def note(self, args, state, control, **others):
        rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
        original(self, args, state, control, **others)

    monkeypatch.setattr(trainer._MethodSteps, "on_pre_optimizer_step", note)
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, _: done.append(t))
    pretrain(settings)
    return done[0], rates


def test_sgd_decays_every_weight_on_a_cosine_but_for_the_predictor_s_rate(trained):
    run, rates = trained
    lr = 0.64 * 8 / 256
    assert len(rates) == 8
    for step, (encoder, predictor) in enumerate(rates):
        assert encoder == pytest.approx(lr * (1 + math.cos(math.pi * step / 8)) / 2)
        assert predictor == pytest.approx(lr)
    groups = run.optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.9}
    assert {group["weight_decay"] for group in groups} == {0.01}
    model = run.model
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for p in model.method.predictor.parameters()
    }
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters()}


def test_the_log_has_every_part(trained):
    rows = [row for row in trained[0].state.log_history if "loss" in row]
    assert len(rows) == 8
    for row in rows:
        assert row["loss"] == pytest.approx(row["method"] + row["crop"] + row["color"], abs=1e-4)
        assert 0 < row["spread"] < 1.5


def test_a_batch_is_one_optimizer_step_however_it_is_accumulated(settings):
    settings.arguments["gradient_accumulation_steps"] = 4
    arguments = training_arguments(settings, settings.output, 38)
    assert arguments.per_device_train_batch_size == 2
    assert arguments.learning_rate == pytest.approx(0.64 * 8 / 256)


def test_a_batch_that_cannot_be_shared_out_is_refused(settings):
    settings.arguments["gradient_accumulation_steps"] = 3
    with pytest.raises(UsageError, match=r"--batch-size 8 cannot be shared .* multiple of 3"):
        training_arguments(settings, settings.output, 38)


def test_an_epoch_is_whole_batches_of_an_order_of_its_own():
    sampler = KeyedSampler(19, seed=0, batch=8)
    first = list(sampler)
    assert len(first) == len(sampler) == 16
    assert len({index for _, index in first}) == 16
    sampler.set_epoch(1)
    later = list(sampler)
    assert {epoch for epoch, _ in later} == {1}
    assert [i for _, i in later] != [i for _, i in first]
    assert {i for _, i in [*first, *later]} > {i for _, i in first}  # nothing is left out for ever
    assert torch.tensor(first).max() <= 18
