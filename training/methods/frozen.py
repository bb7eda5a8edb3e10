"""Heads for any frozen encoder: a DINOv2, a plain ResNet, a model of one's own.

The encoder is published as it came. Only the AugSelf heads learn, by the same trainer, so that
every stock encoder gets predict_difference, serving and an awareness row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from augself_hub.modeling.encoders import Encoder
from training.methods.method import Method, MethodOutput


class Frozen(Method):
    """No method at all: the loss is 0, and the features carry no gradient."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """The encoder's batch statistics stay what they were, too."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        with torch.no_grad():
            y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        return MethodOutput(y1.new_zeros(()), y1, y2)
