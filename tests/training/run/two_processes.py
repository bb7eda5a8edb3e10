"""Run by torchrun in test_distributed.py: checks that need more than one process.

Every process knows the whole batch; it computes the whole alone (as one process would) and its own
share together with the others, and compares.
"""

from __future__ import annotations

import contextlib
import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from augself_hub import AugSelfLoss
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import KINDS, Dimension, Head, Policy
from augself_hub.modeling import objective
from augself_hub.modeling.encoders import build_encoder
from augself_hub.preprocess import Preprocessing
from training.methods import layers
from training.methods.joint import JointMatcher, JointSettings
from training.methods.moco import MoCo
from training.methods.simclr import nt_xent
from training.methods.simsiam import SimSiam
from training.methods.swav import SwAV

N = 12


class Features(nn.Module):
    """An encoder whose features are given."""

    dim = 5

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(5))

    def forward(self, x):
        return x @ self.weight


@contextlib.contextmanager
def alone():
    """As if torch.distributed had not been started."""
    with mock.patch.object(dist, "is_initialized", return_value=False):
        yield


def mine(x):
    """This process's share of the whole batch's rows."""
    size = len(x) // dist.get_world_size()
    return x[dist.get_rank() * size :][:size]


def averaged(x):
    """The mean over processes, as DDP does with gradients."""
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def same(together, whole):
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-6)


def compare(loss_of, parameters, inputs):
    """Loss and gradients: the mean over processes on shares against one process on the whole."""
    with alone():
        whole = loss_of(*inputs)
        expected = torch.autograd.grad(whole, parameters)
    part = loss_of(*map(mine, inputs))
    same(averaged(part), whole.detach())
    for got, wanted in zip(torch.autograd.grad(part, parameters), expected, strict=True):
        assert wanted.abs().sum() > 0
        same(averaged(got), wanted)


def features():
    return torch.randn(N, 5), torch.randn(N, 5)


def simclr():
    weight = nn.Parameter(torch.randn(5, 4))
    compare(lambda x1, x2: nt_xent(x1 @ weight, x2 @ weight, 0.2), [weight], features())


def swav():
    method = SwAV(Features(), hidden=4, width=3, prototypes=4).eval()
    parameters = [*method.encoder.parameters(), *method.prototypes.parameters()]
    compare(lambda x1, x2: method(x1, x2).loss, parameters, features())


def moco():
    method = MoCo(Features(), width=3, queue=20)
    x1, x2 = features()
    queue = method.queue.clone()

    def loss(*views):
        method.queue.copy_(queue)
        method.oldest.zero_()
        return method(*views).loss

    compare(loss, [method.encoder.weight, *method.projector.parameters()], (x1, x2))
    together = method.queue.clone()
    same(averaged(together), together)  # the same queue in both processes
    with alone():
        loss(x1, x2)
    same(together, method.queue)
    for _ in range(2):  # 12 keys a step into 20 places: wraps
        method(mine(x1), mine(x2))
    same(averaged(method.queue), method.queue)
    assert method.oldest == 36 % 20


def augself():
    """Masks that differ between the processes: gray views only in the first."""
    policy = Policy(size=8).with_kinds(KINDS)
    w = [
        {k: torch.from_numpy(a) for k, a in draw(policy, (0, 0, range(N), v), 64, 64).items()}
        for v in (0, 1)
    ]
    for parameters in w:
        parameters["gray"] = torch.arange(N) < N // 2 - 1
    loss = AugSelfLoss(5, dict.fromkeys(KINDS, 1.0), policy).eval()
    names = list(w[0])

    def of(ya, yb, *columns):
        wa, wb = (
            dict(zip(names, part, strict=True))
            for part in (columns[: len(names)], columns[len(names) :])
        )
        return loss(ya, yb, wa, wb)[0]

    inputs = (*features(), *w[0].values(), *w[1].values())
    compare(of, list(loss.parameters()), inputs)


def nothing_to_see_anywhere():
    """A mask without a row in any process costs nothing; one row in one process is not halved."""
    raw = torch.ones(2, 1, requires_grad=True)
    head = Head("regression", (Dimension("x", "unit"),))
    none = torch.zeros(2, 1, dtype=torch.bool)
    assert objective.head_loss(head, raw, 3 * torch.ones(2, 1), none) == 0
    one = none.clone()
    one[0, 0] = dist.get_rank() == 0
    same(averaged(objective.head_loss(head, raw, 3 * torch.ones(2, 1), one)), torch.tensor(4.0))


def joint():
    """A joint matcher's statistics are those of the whole batch, in both processes."""
    policy = Policy(size=32)
    method = SimSiam(build_encoder("resnet18-w16", 32), width=8, bottleneck=4)
    spec = AugSelfLoss(method.encoder.dim, {"crop": 1.0}, policy).spec
    preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    one, two = (JointMatcher(method, spec, preprocessing, JointSettings(), 0) for _ in range(2))
    maps = torch.randn(N, one.place.channels, 8, 8)
    with alone():
        one._follow(maps)
    two._follow(mine(maps))
    same(two.matcher.mean, one.matcher.mean)
    same(two.matcher.deviation, one.matcher.deviation)


def union():
    own = f"image {dist.get_rank()}"
    assert layers.all_union({own, "both"}) == {"image 0", "image 1", "both"}
    assert layers.all_union(set()) == set()
    assert layers.all_union({own} if dist.get_rank() else set()) == {"image 1"}


CHECKS = (simclr, swav, moco, augself, nothing_to_see_anywhere, joint, union)


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert layers.world_size() == int(sys.argv[1])
    for check in CHECKS:
        torch.manual_seed(0)
        check()
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"passed {check.__name__}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
