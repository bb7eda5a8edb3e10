"""MoCo v2 (He et al., arXiv:1911.05722, Algorithm 1; Chen et al., arXiv:2003.04297).

q = f_q(x1); k = f_k(x2)             # f_k: momentum copy of f_q, no gradient
l = [q.k, q.queue] / T               # one positive, K negatives
L = cross_entropy(l, 0)
f_k = m f_k + (1 - m) f_q; enqueue(k), dequeue the oldest
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augself_hub.modeling.encoders import Encoder
from training.methods.layers import all_gather, ema_update, mlp, products, target_of
from training.methods.method import Method, MethodOutput


class MoCo(Method):
    """Asymmetric: the AugSelf heads see online features of x1 and target features of x2.

    `projector_norm` puts a BN into the projector's hidden layer, as official AugSelf runs had it.
    MoCo v2 has none: through a batch's statistics queries can tell their keys, which MoCo takes
    pains to prevent.
    """

    seen_by = ("encoder", "target_encoder")

    def __init__(
        self,
        encoder: Encoder,
        width: int = 128,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        projector_norm: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp_v2(encoder.dim, width, projector_norm)
        self.target_encoder, self.target_projector = target_of(encoder), target_of(self.projector)
        self.momentum, self.temperature = momentum, temperature
        self.queue: Tensor
        self.oldest: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        y1 = self.encoder(x1)  # (N, D)
        q = F.normalize(self.projector(y1).float(), dim=1)  # (N, C)
        with torch.no_grad():
            y2 = self.target_encoder(x2)
            k = F.normalize(self.target_projector(y2).float(), dim=1)
        positive = (q * k).sum(dim=1, keepdim=True)  # (N, 1)
        logits = torch.cat([positive, products(q, self.queue.clone())], dim=1) / self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
        self._enqueue(all_gather(k))
        return MethodOutput(loss, y1, y2)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Keys of every process replace the oldest ones."""
        keys = keys[-len(self.queue) :]
        rows = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))

    def after_step(self, progress: float) -> None:
        ema_update(self.target_encoder, self.encoder, self.momentum)
        ema_update(self.target_projector, self.projector, self.momentum)


def mlp_v2(dim: int, width: int, norm: bool = False) -> nn.Sequential:
    """MoCo v2's head: two layers, no BN unless asked for."""
    if norm:
        return mlp(dim, dim, width)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, width))
