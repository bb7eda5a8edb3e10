"""What holds for every method: who gets a gradient, and AugSelf with every kind and convention."""

from __future__ import annotations

import math

import pytest
import torch

from augself_hub import AugSelfLoss
from augself_hub.augmentations.spec import KINDS, Policy
from augself_hub.modeling.encoders import build_encoder
from augself_hub.preprocess import Preprocessing
from training.methods import METHODS
from training.run.objective import Pretraining


@pytest.fixture(scope="module")
def batch(eight):
    """Eight photographs, all augmentations on."""
    return eight(Policy(size=32).with_kinds(KINDS))


@pytest.fixture
def build(small_options):
    def made(name, kinds=(), convention="relative"):
        torch.manual_seed(0)
        encoder = build_encoder("resnet18-w16", 32)
        policy = Policy(size=32).with_kinds(KINDS)
        augself = AugSelfLoss(encoder.dim, dict.fromkeys(kinds, 1.0), policy, convention)
        preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        classes = {"classes": 2} if METHODS[name].needs_labels else {}
        method = METHODS[name](encoder, **small_options[name], **classes)
        return Pretraining(method, augself, preprocessing).train()

    return made


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_only_what_it_should(build, small_options, method, batch):
    """A gradient for every online weight, none for a target network."""
    model = build(method, ["crop"])
    assert set(small_options) == set(METHODS)
    model(**batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        target = "target_" in name
        assert (parameter.grad is None) == target, name
        assert parameter.requires_grad != target, name
    assert any("target_" in n for n, _ in model.named_parameters()) == (method in ("moco", "byol"))


@pytest.mark.parametrize("convention", ["relative", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_is_learned_beside_every_method(build, method, convention, batch):
    """A few steps on one batch: the heads' errors fall together (paper's sol cannot)."""
    model = build(method, KINDS, convention)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9
    )
    history = []
    for step in range(8):
        optimizer.zero_grad()
        outputs = model(**batch)
        outputs["loss"].backward()
        model.method.before_step(step / 4, step)
        optimizer.step()
        model.method.after_step(step / 8)
        history.append({name: value.item() for name, value in outputs.items()})
    assert all(math.isfinite(value) for value in history[-1].values())
    expected = {"loss", "method", "feature_std", *KINDS}
    assert set(history[0]) == expected
    falling = [k for k in KINDS if (convention, k) != ("paper", "sol")]
    assert sum(history[-1][k] for k in falling) < 0.8 * sum(history[0][k] for k in falling)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_without_augself(build, method, batch):
    outputs = build(method)(**batch)
    assert set(outputs) == {"loss", "method", "feature_std"}
    torch.testing.assert_close(outputs["loss"].detach(), outputs["method"])
