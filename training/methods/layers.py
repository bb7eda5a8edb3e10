"""The pieces several methods share: MLP, cosine, target networks, gathers over processes."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear, BN, ReLU, ..., Linear through the given widths; no bias before a BN."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following)]
        layers += [nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1]))
    return nn.Sequential(*layers)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) = -cos(p, stopgrad(z)), the mean over the batch."""
    return -F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()


def products(a: Tensor, b: Tensor) -> Tensor:
    """(N, C), (M, C) -> (N, M) inner products, in float32 under autocast too.

    Divided by a temperature and exponentiated, bf16's three digits would not do.
    """
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def target_of(online: nn.Module) -> nn.Module:
    """A copy that gradients do not reach; `ema_update` moves it."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, m: float) -> None:
    """target <- m * target + (1 - m) * online, for every weight."""
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    for slow, fast in pairs:
        slow.lerp_(fast, 1 - m)


def world_size() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce(x: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum (or maximum, ...) over processes, without gradient."""
    if world_size() > 1:
        dist.all_reduce(x, op=operation)
    return x


def all_union(names: set[str]) -> set[str]:
    """What is in the set of any process."""
    if world_size() == 1:
        return names
    found: list[set[str]] = [set()] * world_size()
    dist.all_gather_object(found, names)
    return set().union(*found)


def all_gather(x: Tensor) -> Tensor:
    """(N, C) of every process -> (processes * N, C), with gradient to where it came from."""
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """What every process's loss says about this process's rows."""
        return all_reduce(gradient.clone()).chunk(world_size())[rank()]
