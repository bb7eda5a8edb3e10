"""BYOL: the loss by hand, the target network and its momentum on a cosine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.methods.byol import BYOL


class Known(nn.Module):
    """The features of a view by its first pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, x):
        return torch.tensor(self.rows[x.flatten()[0].item()])


def test_the_loss_by_hand(encoder):
    """Two images whose cosines are known."""
    method = BYOL(encoder, hidden=3, width=2)
    rows = {1.0: [[3.0, 4.0], [1.0, 0.0]], 2.0: [[0.0, 5.0], [1.0, 1.0]]}
    method.encoder = method.target_encoder = Known(rows)
    method.projector = method.predictor = method.target_projector = nn.Identity()
    loss = method(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)).loss
    # cos(p1, t2) = cos(p2, t1): 20/25 and 1/sqrt(2); each order costs 2 - 2 cos
    expected = 2 * (2 - (0.8 + 1 / math.sqrt(2)))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_momentum_runs_from_0996_to_1_on_a_cosine(encoder):
    method = BYOL(encoder, hidden=3, width=2)
    for progress, m in ((0.0, 0.996), (0.5, 0.998), (1.0, 1.0), (1 / 3, 0.997)):
        with torch.no_grad():
            method.target_encoder.weight.fill_(1.0)
            encoder.weight.fill_(3.0)
            method.target_projector[0].weight.fill_(-1.0)
            method.projector[0].weight.fill_(0.0)
        method.after_step(progress)
        assert method.target_encoder.weight[0, 0].item() == pytest.approx(m * 1 + (1 - m) * 3)
        assert method.target_projector[0].weight[0, 0].item() == pytest.approx(-m)


def test_the_target_is_not_the_online_network_but_its_copy(encoder, views):
    method = BYOL(encoder, hidden=3, width=2)
    with torch.no_grad():
        method.target_encoder.weight.zero_()
        method.target_encoder.weight[0] = 1
    before = method(*views).y1
    assert torch.equal(before, encoder(views[0]))
    assert not torch.equal(method.target_encoder(views[0]), before)


def test_the_published_shapes(encoder):
    method = BYOL(encoder)
    for mlp, inner in ((method.projector, 6), (method.predictor, 256)):
        linears = [m for m in mlp if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in linears] == [(inner, 4096), (4096, 256)]
        assert sum(isinstance(m, nn.BatchNorm1d) for m in mlp) == 1
    assert method.momentum == 0.996
