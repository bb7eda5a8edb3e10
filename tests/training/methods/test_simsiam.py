"""SimSiam: Algorithm 1 in float64, the stop-gradient, the published widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training.methods.layers import negative_cosine
from training.methods.simsiam import SimSiam


def test_negative_cosine_by_hand():
    p = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    z = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    # cosines 1 and 0
    assert negative_cosine(p, z).item() == pytest.approx(-0.5)


def test_the_loss_is_algorithm_1(encoder, views):
    method = SimSiam(encoder, width=6, bottleneck=4)
    method.projector = nn.Linear(6, 6)
    method.predictor = nn.Linear(6, 6)
    loss, y1, y2 = method(*views)

    x1, x2 = (x.double().numpy().reshape(5, 48) for x in views)
    f, g, h = (as_matrix(m) for m in (encoder, method.projector, method.predictor))
    z1, z2 = g(f(x1)), g(f(x2))
    p1, p2 = h(z1), h(z2)
    expected = -(cosine(p1, z2) / 2 + cosine(p2, z1) / 2).mean()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(y1.detach(), f(x1), atol=1e-5)
    np.testing.assert_allclose(y2.detach(), f(x2), atol=1e-5)


def test_the_gradient_stops_at_z():
    p, z = torch.randn(2, 4, 3, requires_grad=True).unbind()
    p.retain_grad(), z.retain_grad()
    negative_cosine(p, z).backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None


@pytest.mark.parametrize("layers", [2, 3])
def test_the_published_shapes(encoder, layers):
    """Projector of two layers on STL-10 and three on ImageNet-100, ending in a BN."""
    method = SimSiam(encoder, layers=layers)
    assert shapes(method.projector) == [(6, 2048), *[(2048, 2048)] * (layers - 1)]
    assert isinstance(method.projector[-1], nn.BatchNorm1d)
    assert shapes(method.predictor) == [(2048, 512), (512, 2048)]
    assert isinstance(method.predictor[-1], nn.Linear)
    assert method.predictor[-1].bias is not None
    assert method.constant_lr == ("predictor",)


def as_matrix(module):
    """The module as a function of float64 rows."""
    weight = module.weight.detach().double().numpy()
    if not isinstance(module, nn.Linear):
        return lambda x: x @ weight
    bias = module.bias.detach().double().numpy()
    return lambda x: x @ weight.T + bias


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def shapes(mlp):
    return [(m.in_features, m.out_features) for m in mlp if isinstance(m, nn.Linear)]
