"""Every loss that lightly has, too: the same tensors, values and gradients within 1e-6.

Only the losses are lightly's; each method's own heads are run, so that what they hand to the loss
is compared as well. lightly has no counterpart of supervised learning, AugSelf and Frozen.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from torch import Tensor, nn

from training.methods import BYOL, METHODS, MoCo, SimCLR, SimSiam, SwAV
from training.methods.method import Method

N, D = 12, 16


class Flat(nn.Module):
    """An encoder of images of one pixel: a linear map to D features."""

    dim = D

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def simsiam(m: SimSiam, x1: Tensor, x2: Tensor) -> Tensor:
    (z1, p1), (z2, p2) = (
        (z, m.predictor(z)) for z in (m.projector(m.encoder(x)) for x in (x1, x2))
    )
    loss = NegativeCosineSimilarity()
    return (loss(p1, z2.detach()) + loss(p2, z1.detach())) / 2


def byol(m: BYOL, x1: Tensor, x2: Tensor) -> Tensor:
    """2 - 2 cos for each order; lightly's documentation trains on the mean of the two -cos."""
    p1, p2 = (m.predictor(m.projector(m.encoder(x))) for x in (x1, x2))
    with torch.no_grad():
        t1, t2 = (m.target_projector(m.target_encoder(x)) for x in (x1, x2))
    loss = NegativeCosineSimilarity()
    return 4 + 4 * (loss(p1, t2) + loss(p2, t1)) / 2


def simclr(m: SimCLR, x1: Tensor, x2: Tensor) -> Tensor:
    z1, z2 = m.projector(m.encoder(x1)), m.projector(m.encoder(x2))
    return NTXentLoss(temperature=m.temperature)(z1, z2)


def moco(m: MoCo, x1: Tensor, x2: Tensor) -> Tensor:
    """lightly's memory bank, filled with our queue as it was before the step."""
    q = m.projector(m.encoder(x1))
    with torch.no_grad():
        k = m.target_projector(m.target_encoder(x2))
    size, width = m.queue.shape
    loss = NTXentLoss(temperature=m.temperature, memory_bank_size=(size, width))
    loss.memory_bank.bank = m.queue.clone()
    return loss(q, k)


def swav(m: SwAV, x1: Tensor, x2: Tensor) -> Tensor:
    scores = [
        F.normalize(m.projector(m.encoder(x)), dim=1) @ m.prototypes.weight.T for x in (x1, x2)
    ]
    loss = SwaVLoss(
        temperature=m.temperature, sinkhorn_iterations=m.iterations, sinkhorn_epsilon=m.epsilon
    )
    return loss(scores, []).squeeze()


Reference = Callable[[Method, Tensor, Tensor], Tensor]
REFERENCES: dict[str, Reference] = {
    "simsiam": simsiam,
    "byol": byol,
    "simclr": simclr,
    "moco": moco,
    "swav": swav,
}


def gradients(method: Method, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", REFERENCES)
def test_losses_and_gradients_are_lightly_s(name, seed, small_options):
    torch.manual_seed(seed)
    method = METHODS[name](Flat(), **small_options[name])
    x1, x2 = torch.randn(N, 3, 1, 1), torch.randn(N, 3, 1, 1)
    theirs = REFERENCES[name](method, x1, x2)
    expected = gradients(method, theirs)
    ours = method(x1, x2).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found = gradients(method, ours)
    assert found.keys() == expected.keys()
    assert sum(float(g.abs().sum()) for g in found.values()) > 0.01
    for parameter, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[parameter], rtol=1e-5, atol=1e-6, msg=parameter
        )


def test_every_method_with_a_counterpart_is_compared():
    assert set(METHODS) - set(REFERENCES) == {"supervised"}
