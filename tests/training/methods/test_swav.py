"""SwAV: Sinkhorn's properties and its paper form in float64, the loss, the prototypes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from training.methods.swav import SwAV, sinkhorn


def paper_sinkhorn(scores, epsilon, iterations):
    """Listing 1 of the paper's appendix, on (K, B) with masses 1/K and 1/B."""
    q = np.exp(np.asarray(scores, dtype=np.float64) / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


def test_codes_are_those_of_the_paper():
    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) / 3
    codes = sinkhorn(scores, 0.05, 3)
    np.testing.assert_allclose(codes, paper_sinkhorn(scores, 0.05, 3), rtol=1e-4, atol=1e-7)


def test_codes_are_distributions_that_use_every_prototype_alike():
    scores = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) / 2
    scores[:, 0] += 0.5  # every sample prefers the first prototype
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3).sum(dim=1), torch.ones(40))
    codes = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 10.0), rtol=1e-3, atol=0)


def test_scores_at_the_ends_of_the_cosine_do_not_overflow():
    codes = sinkhorn(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), 0.05, 3)
    torch.testing.assert_close(codes, torch.eye(2))


def test_the_loss_is_algorithm_1(encoder, views):
    method = SwAV(encoder, hidden=4, width=3, prototypes=4).eval()
    loss, y1, y2 = method(*views)
    z1, z2 = (method.projector(y).detach().double().numpy() for y in (y1, y2))
    c = method.prototypes.weight.detach().double().numpy()
    s1, s2 = (z / np.linalg.norm(z, axis=1, keepdims=True) @ c.T for z in (z1, z2))
    q1, q2 = (paper_sinkhorn(s, 0.05, 3) for s in (s1, s2))
    log1, log2 = (np.log(e / e.sum(1, keepdims=True)) for e in (np.exp(s / 0.1) for s in (s1, s2)))
    expected = -((q1 * log2).sum(1) + (q2 * log1).sum(1)).mean() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def optimiser(method):
    return torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def step(method, views, optimizer, epoch, steps_before=0):
    optimizer.zero_grad()
    method(*views).loss.backward()
    method.before_step(epoch, steps_before)
    optimizer.step()
    method.after_step(0.5)


def test_nothing_moves_the_prototypes_in_the_first_epoch(encoder, views):
    """Neither gradient nor weight decay nor momentum."""
    method = SwAV(encoder, hidden=4, width=3, prototypes=4)
    optimizer, before = optimiser(method), method.prototypes.weight.clone()
    encoder_before = encoder.weight.clone()
    for epoch in (0.0, 0.3, 0.99):
        step(method, views, optimizer, epoch)
    torch.testing.assert_close(method.prototypes.weight, before, rtol=0, atol=1e-6)
    assert not torch.equal(encoder.weight, encoder_before)
    step(method, views, optimizer, 1.0)
    assert not torch.allclose(method.prototypes.weight, before, atol=1e-4)


def test_prototypes_have_unit_length_after_a_step(encoder, views):
    method = SwAV(encoder, hidden=4, width=3, prototypes=4)
    step(method, views, optimiser(method), 1.0)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(4))


def test_the_published_defaults(encoder):
    method = SwAV(encoder)
    linears = [m for m in method.projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(6, 2048), (2048, 128)]
    assert method.prototypes.weight.shape == (100, 128)
    assert method.prototypes.bias is None
    assert (method.temperature, method.epsilon, method.iterations) == (0.1, 0.05, 3)


def test_epsilon_and_iterations_reach_sinkhorn(encoder, views):
    """The loss with codes of another epsilon, by the paper's form."""
    method = SwAV(encoder, hidden=4, width=3, prototypes=4, epsilon=0.3, iterations=7).eval()
    loss, y1, y2 = method(*views)
    s1, s2 = (method._scores(y).detach() for y in (y1, y2))
    q1, q2 = (torch.from_numpy(paper_sinkhorn(s, 0.3, 7)) for s in (s1, s2))
    log1, log2 = ((s.double() / 0.1).log_softmax(dim=1) for s in (s1, s2))
    expected = -((q1 * log2).sum(dim=1) + (q2 * log1).sum(dim=1)).mean() / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_official_runs_took_the_sum_of_both_directions(encoder, views):
    torch.manual_seed(0)
    mean = SwAV(encoder, hidden=4, width=3, prototypes=4)
    total = copy.deepcopy(mean)
    total.scale = 1.0
    assert SwAV(encoder, hidden=4, width=3, prototypes=4, scale=1.0).scale == 1.0
    losses = [method(*views).loss.item() for method in (mean, total)]
    assert losses[1] == pytest.approx(2 * losses[0])


@pytest.mark.parametrize(("epoch", "before", "moves"), [(5.0, 409, False), (0.1, 410, True)])
def test_official_prototypes_are_frozen_for_410_steps(encoder, views, epoch, before, moves):
    method = SwAV(encoder, hidden=4, width=3, prototypes=4, frozen_steps=410)
    optimizer, weight = optimiser(method), method.prototypes.weight.clone()
    step(method, views, optimizer, epoch, before)
    assert (not torch.allclose(weight, method.prototypes.weight, atol=1e-6)) == moves
