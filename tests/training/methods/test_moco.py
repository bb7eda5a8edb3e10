"""MoCo v2: the loss in float64, the queue of keys, the target network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.methods.moco import MoCo


def small(encoder, queue=8, **kwargs):
    return MoCo(encoder, width=3, queue=queue, **kwargs)


def keys(method, x2):
    """k of x2 by the target network, by its parts."""
    with torch.no_grad():
        return F.normalize(method.target_projector(method.target_encoder(x2)), dim=1)


def apart(method):
    """A target network far from the online one."""
    for network in (method.target_encoder, method.target_projector):
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(7))
    return method


def test_the_loss_is_algorithm_1(encoder, views):
    method = apart(small(encoder))
    queue = method.queue.double().tolist()
    loss, y1, y2 = method(*views)
    q = F.normalize(method.projector(encoder(views[0])), dim=1).double().tolist()
    k = keys(method, views[1]).double().tolist()

    def dot(a, b):
        return sum(i * j for i, j in zip(a, b, strict=True)) / 0.2

    total = 0.0
    for query, key in zip(q, k, strict=True):
        negatives = sum(math.exp(dot(query, row)) for row in queue)
        total -= math.log(math.exp(dot(query, key)) / (math.exp(dot(query, key)) + negatives))
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)
    torch.testing.assert_close(y1, encoder(views[0]))
    torch.testing.assert_close(y2, method.target_encoder(views[1]))
    assert not y2.requires_grad


def test_the_queue_holds_keys_and_never_queries(encoder, views):
    """The official code enqueues the online network's z1 (SCIENCE: fault 6); ours does not."""
    method = apart(small(encoder))
    expected = keys(method, views[1])
    method(*views)
    torch.testing.assert_close(method.queue[:5], expected)
    assert method.oldest == 5


def test_the_oldest_keys_are_replaced_first_and_the_queue_wraps(encoder, views):
    method = apart(small(encoder))  # 8 places, 5 keys a step
    first = method.queue.clone()
    expected = keys(method, views[1])
    method(*views)
    torch.testing.assert_close(method.queue[5:], first[5:])
    second = torch.randn(5, 3, 4, 4)
    method(views[0], second)
    newer = keys(method, second)
    torch.testing.assert_close(method.queue[5:], newer[:3])
    torch.testing.assert_close(method.queue[:2], newer[3:])
    torch.testing.assert_close(method.queue[2:5], expected[2:])
    assert method.oldest == 2


def test_a_batch_larger_than_the_queue_leaves_its_last_keys(encoder, views):
    method = apart(small(encoder, queue=3))
    expected = keys(method, views[1])[-3:]
    method(*views)
    assert {tuple(row) for row in method.queue.tolist()} == {tuple(r) for r in expected.tolist()}


def test_the_target_follows_by_momentum(encoder):
    method = apart(small(encoder, momentum=0.9))
    before, target = copy.deepcopy(encoder.state_dict()), method.target_encoder.weight.clone()
    head, slow = method.projector[2].bias.clone(), method.target_projector[2].bias.clone()
    method.after_step(0.3)
    torch.testing.assert_close(method.target_encoder.weight, 0.9 * target + 0.1 * before["weight"])
    torch.testing.assert_close(method.target_projector[2].bias, 0.9 * slow + 0.1 * head)
    assert torch.equal(encoder.weight, before["weight"])


def test_the_published_defaults(encoder):
    method = MoCo(encoder)
    linears = [m for m in method.projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(6, 6), (6, 128)]
    assert method.queue.shape == (65536, 128)
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(65536))
    assert (method.momentum, method.temperature) == (0.999, 0.2)
    assert torch.equal(method.target_encoder.weight, encoder.weight)


def test_official_runs_had_a_bn_in_the_projector(encoder):
    """Linear, BN over the batch, ReLU, Linear; by hand on numbers."""
    torch.manual_seed(0)
    method = MoCo(encoder, width=3, queue=8, projector_norm=True)
    y = torch.randn(6, encoder.dim)
    first, norm, _, last = method.projector
    hidden = y @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    expected = hidden.clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(method.projector(y), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in MoCo(encoder, 3, 8).projector)
