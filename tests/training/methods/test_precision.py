"""Under bf16 autocast what is divided by a temperature stays float32: against float64 formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.methods.layers import negative_cosine
from training.methods.moco import MoCo
from training.methods.simclr import nt_xent
from training.methods.swav import SwAV

ALIKE = {"rtol": 1e-5, "atol": 1e-6}  # bf16 has three digits


@pytest.fixture(autouse=True)
def bf16():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def unit(x):
    return F.normalize(x.double(), dim=1)


def test_simclr():
    z1, z2 = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    z = unit(torch.cat([z1, z2]))
    with torch.autocast("cpu", enabled=False):
        s = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
        expected = F.cross_entropy(s, (torch.arange(32) + 16) % 32)
    torch.testing.assert_close(nt_xent(z1, z2, 0.2).double(), expected, **ALIKE)


def test_moco(encoder, views):
    method = MoCo(encoder, width=8, queue=50)
    queue = method.queue.double()
    q = unit(method.projector(encoder(views[0])))
    k = unit(method.target_projector(method.target_encoder(views[1])))
    loss = method(*views).loss
    with torch.autocast("cpu", enabled=False):
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1) / 0.2
        expected = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
    torch.testing.assert_close(loss.double(), expected, **ALIKE)


def test_swav(encoder, views):
    """The scores alone decide: codes and loss are computed from them without a matrix product."""
    method = SwAV(encoder, hidden=16, width=8, prototypes=6).eval()
    y = encoder(views[0])
    z = unit(method.projector(y))
    with torch.autocast("cpu", enabled=False):
        expected = z @ method.prototypes.weight.double().T
    scores = method._scores(y)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, **ALIKE)
    assert method(*views).loss.dtype == torch.float32


def test_cosines_of_bf16_vectors():
    p, z = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", enabled=False):
        expected = -(unit(p) * unit(z)).sum(dim=1).mean()
    torch.testing.assert_close(negative_cosine(p, z).double(), expected, **ALIKE)
