"""BYOL (Grill et al., arXiv:2006.07733), equations 1 and 2.

p1, p2 = q(g(f(x1))), q(g(f(x2)))    # online: encoder f, projector g, predictor q
t1, t2 = g'(f'(x1)), g'(f'(x2))      # target: momentum copy, no gradient
L = (2 - 2 cos(p1, t2)) + (2 - 2 cos(p2, t1))
target = m target + (1 - m) online   # m from 0.996 to 1 on a cosine
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from augself_hub.modeling.encoders import Encoder
from training.methods.layers import ema_update, mlp, negative_cosine, target_of
from training.methods.method import Method, MethodOutput


class BYOL(Method):
    def __init__(
        self, encoder: Encoder, hidden: int = 4096, width: int = 256, momentum: float = 0.996
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, hidden, width)
        self.predictor = mlp(width, hidden, width)
        self.target_encoder, self.target_projector = target_of(encoder), target_of(self.projector)
        self.momentum = momentum

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        p1 = self.predictor(self.projector(y1))  # (N, C)
        p2 = self.predictor(self.projector(y2))
        with torch.no_grad():
            t1 = self.target_projector(self.target_encoder(x1))
            t2 = self.target_projector(self.target_encoder(x2))
        loss = 4 + 2 * negative_cosine(p1, t2) + 2 * negative_cosine(p2, t1)
        return MethodOutput(loss, y1, y2)

    def after_step(self, progress: float) -> None:
        m = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        ema_update(self.target_encoder, self.encoder, m)
        ema_update(self.target_projector, self.projector, m)
