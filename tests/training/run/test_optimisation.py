"""Optimizers and schedules, against transformers' schedules and lightly's LARS."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from lightly.utils.lars import LARS
from torch import nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from training.run.optimisation import optimizer_of, scheduler_of, warmup_steps

STEPS, WARMUP = 20, 6


@pytest.fixture
def model():
    """Weights, biases and a norm, of which a part keeps its rate."""
    torch.manual_seed(0)
    method = nn.ModuleDict({"encoder": nn.Linear(4, 3), "predictor": nn.Linear(3, 2)})
    method["norm"] = nn.LayerNorm(3)
    method.constant_lr = ("predictor",)
    return nn.ModuleDict({"method": method})


def arguments(**changes):
    given = {"learning_rate": 0.5, "weight_decay": 0.01}
    betas = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    return SimpleNamespace(**{**given, **betas, **changes})


@pytest.fixture
def made(model, small_run):
    """An optimizer by its name, with its schedule."""

    def make(optimizer="sgd", warmup=0, **changes):
        settings = small_run(optimizer=optimizer, **changes)
        optimizer = optimizer_of(settings, arguments(), model, model["method"])
        return optimizer, scheduler_of(settings, optimizer, STEPS, warmup)

    return make


def rates(scheduler, steps=STEPS + 1):
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return torch.tensor(found)  # (steps, groups)


def single(schedule, *numbers):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    return rates(schedule(optimizer, *numbers))


def test_the_papers_schedule_is_a_cosine_without_warm_up(made):
    found = rates(made()[1])
    torch.testing.assert_close(found[:, :1], single(get_cosine_schedule_with_warmup, 0, STEPS))
    assert (found[:, 1] == 0.5).all()  # the predictor's


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("cosine", lambda o: get_cosine_schedule_with_warmup(o, WARMUP, STEPS)),
        ("constant", lambda o: get_constant_schedule_with_warmup(o, WARMUP)),
    ],
)
def test_warm_up_and_schedules_are_those_of_transformers(made, schedule, reference):
    found = rates(made(warmup=WARMUP, schedule=schedule)[1])
    torch.testing.assert_close(found[:, :1], single(reference))
    kept = single(lambda o: get_constant_schedule_with_warmup(o, WARMUP))
    torch.testing.assert_close(found[:, 1:], kept)  # the predictor rises with the others


def test_epochs_of_warm_up_are_whole_steps(small_run):
    settings = small_run(warmup_epochs=2.5, epochs=9)
    assert warmup_steps(settings, images=38) == 10  # of 4 batches of 8 an epoch


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_biases_and_norms_do_not_decay_but_with_sgd(made, model, optimizer):
    groups = made(optimizer)[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01, 0.0]
    method = model["method"]
    names = {id(p): name for name, p in method.named_parameters()}
    assert [{names[id(p)] for p in group["params"]} for group in groups] == [
        {"encoder.weight"},
        {"encoder.bias", "norm.weight", "norm.bias"},
        {"predictor.weight"},
        {"predictor.bias"},
    ]
    assert [group["weight_decay"] for group in made("sgd")[0].param_groups] == [0.01, 0.01]


def test_adamw_is_torch_s_with_what_was_asked_for(model, small_run):
    asked = arguments(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3)
    optimizer = optimizer_of(small_run(optimizer="adamw"), asked, model, model["method"])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-3)


def test_lars_moves_weights_as_lightly_s_does(made, model):
    """Of weights the rate is adapted to their norm; biases and norms are moved as by SGD."""
    twin = copy.deepcopy(model)
    ours, _ = made("lars")
    wide = [p for p in twin.parameters() if p.ndim > 1]
    flat = [p for p in twin.parameters() if p.ndim == 1]
    theirs = LARS(
        [{"params": wide}, {"params": flat, "weight_decay": 0.0}],
        lr=0.5,
        momentum=0.9,
        weight_decay=0.01,
        trust_coefficient=0.001,
    )
    x = torch.randn(8, 4)
    for _ in range(5):
        for network, optimizer in ((model, ours), (twin, theirs)):
            method = network["method"]
            optimizer.zero_grad()
            y = method["predictor"](method["norm"](method["encoder"](x)))
            y.square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_lars_adapts_the_rate_of_weights_that_do_not_decay(model, small_run):
    """lr * 0.001 * |w| / |g| of each weight; biases and norms are moved by lr."""
    optimizer = optimizer_of(
        small_run(optimizer="lars"), arguments(weight_decay=0.0), model, model["method"]
    )
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    for p, w in zip(model.parameters(), before, strict=True):
        adapted = 0.001 * w.norm() / p.grad.norm() if p.ndim > 1 else 1
        torch.testing.assert_close(p.detach(), w - 0.5 * adapted * p.grad)
