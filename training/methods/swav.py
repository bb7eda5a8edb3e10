"""SwAV (Caron et al., arXiv:2006.09882), Algorithm 1, with two views.

z = normalize(g(f(x)))               # (N, C)
s = z C^T                            # scores against the prototypes C, (N, K)
q = sinkhorn(s)                      # codes, no gradient
L = - scale * mean( q1 log softmax(s2 / T) + q2 log softmax(s1 / T) )

`scale` is a half, the mean of both directions as in SwAV's Algorithm 1; official AugSelf runs took
their sum, scale=1, beside which the same lambda weighs AugSelf's losses half as much.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from augself_hub.modeling.encoders import Encoder
from training.methods.layers import all_reduce, mlp, products
from training.methods.method import Method, MethodOutput


class SwAV(Method):
    """The prototypes keep unit length.

    They are frozen for the first `frozen_steps` steps (official AugSelf runs: 410), or, if that is
    0, for the first epoch, as long on any data set.
    """

    def __init__(
        self,
        encoder: Encoder,
        hidden: int = 2048,
        width: int = 128,
        prototypes: int = 100,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        scale: float = 0.5,
        frozen_steps: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, hidden, width)
        self.prototypes = nn.Linear(width, prototypes, bias=False)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.scale, self.frozen_steps = scale, frozen_steps
        self.after_step(0)

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        s1, s2 = self._scores(y1), self._scores(y2)  # (N, K)
        q1, q2 = (sinkhorn(s, self.epsilon, self.iterations) for s in (s1, s2))
        log1, log2 = (F.log_softmax(s / self.temperature, dim=1) for s in (s1, s2))
        loss = -self.scale * ((q1 * log2).sum(dim=1) + (q2 * log1).sum(dim=1)).mean()
        return MethodOutput(loss, y1, y2)

    def _scores(self, y: Tensor) -> Tensor:
        z = F.normalize(self.projector(y).float(), dim=1)
        return products(z, self.prototypes.weight)

    def before_step(self, epoch: float, step: int) -> None:
        if step < self.frozen_steps if self.frozen_steps else epoch < 1:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes with equal use of all prototypes, over the batches of all processes.

    Args:
        scores: (N, K) of this process, float32.
        epsilon: the larger, the more even each row; below about 0.03 rows may underflow to 0 / 0.
        iterations: how often both sums are put right.

    Returns:
        (N, K), each row sums to 1.
    """
    # The same shift in every process, else the rows of one would outweigh another's.
    q = torch.exp((scores - all_reduce(scores.max(), dist.ReduceOp.MAX)) / epsilon)
    for _ in range(iterations):
        q = q / all_reduce(q.sum(dim=0, keepdim=True))  # every prototype gets the same mass
        q = q / q.sum(dim=1, keepdim=True)  # every sample gives its whole mass
    return q
