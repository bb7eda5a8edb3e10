"""SimCLR: NT-Xent against loops in float64, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.methods.simclr import SimCLR, nt_xent


def test_nt_xent_by_hand():
    """Two images, orthogonal; each image's views agree. T = 1: -log(e / (e + 1 + 1))."""
    z = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    assert nt_xent(z, 3 * z, 1.0).item() == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_nt_xent_is_the_double_loop_of_algorithm_1():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 4, 3)
    views = [row.double().tolist() for pair in zip(z1, z2, strict=True) for row in pair]

    def similarity(a, b):
        dot = sum(i * j for i, j in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b) / 0.2

    total = 0.0
    for i, view in enumerate(views):
        others = [math.exp(similarity(view, views[j])) for j in range(8) if j != i]
        total -= math.log(math.exp(similarity(view, views[i ^ 1])) / sum(others))
    assert nt_xent(z1, z2, 0.2).item() == pytest.approx(total / 8, rel=1e-5)


def test_the_published_shapes(encoder):
    method = SimCLR(encoder)
    linears = [m for m in method.projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(6, 6), (6, 128)]
    assert method.temperature == 0.2


def test_the_loss_is_of_the_projections(encoder, views):
    method = SimCLR(encoder).eval()
    loss, y1, y2 = method(*views)
    expected = nt_xent(method.projector(y1), method.projector(y2), 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(y2, encoder(views[1]))
