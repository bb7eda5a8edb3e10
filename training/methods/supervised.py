"""Supervised pretraining: cross-entropy on each view (AugSelf, section 4.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from augself_hub.modeling.encoders import Encoder
from training.methods.method import Method, MethodOutput


class Supervised(Method):
    needs_labels = True

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__(encoder)
        self.classifier = nn.Linear(encoder.dim, classes)

    def forward(self, x1: Tensor, x2: Tensor, labels: Tensor) -> MethodOutput:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        losses = [F.cross_entropy(self.classifier(y).float(), labels) for y in (y1, y2)]
        return MethodOutput((losses[0] + losses[1]) / 2, y1, y2)
