"""SimCLR (Chen et al., arXiv:2002.05709), Algorithm 1.

z = g(f(x))                          # f = encoder, g = projector, both views: 2N rows
s[i, j] = cos(z[i], z[j]) / T
L = mean over i of -log( exp s[i, i'] / sum over j != i of exp s[i, j] )   # i' = other view
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from augself_hub.modeling.encoders import Encoder
from training.methods.layers import all_gather, mlp, products, rank
from training.methods.method import Method, MethodOutput


class SimCLR(Method):
    """Negatives come from every process, with gradient."""

    def __init__(self, encoder: Encoder, width: int = 128, temperature: float = 0.2) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, encoder.dim, width)
        self.temperature = temperature

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        z1, z2 = self.projector(y1), self.projector(y2)  # (N, C)
        return MethodOutput(nt_xent(z1, z2, self.temperature), y1, y2)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross entropy of (N, C) projections of two views."""
    z1, z2 = F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)
    all1, all2 = all_gather(z1), all_gather(z2)  # (M, C), M = processes * N
    n, m = len(z1), len(all1)
    own = torch.arange(n, device=z1.device) + rank() * n
    s = products(torch.cat([z1, z2]), torch.cat([all1, all2])) / temperature  # (2N, 2M)
    itself, other = torch.cat([own, own + m]), torch.cat([own + m, own])
    s = s.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(s, other)
