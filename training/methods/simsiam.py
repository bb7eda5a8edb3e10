"""SimSiam (Chen & He, arXiv:2011.10566), Algorithm 1.

z1, z2 = f(x1), f(x2)               # f = encoder + projector
p1, p2 = h(z1), h(z2)               # h = predictor
L = D(p1, z2)/2 + D(p2, z1)/2       # D(p, z) = -cos(p, stopgrad(z))
"""

from __future__ import annotations

from torch import Tensor

from augself_hub.modeling.encoders import Encoder
from training.methods.layers import mlp, negative_cosine
from training.methods.method import Method, MethodOutput


class SimSiam(Method):
    """The predictor's learning rate stays constant (section 4.2 of the paper).

    Projectors have two layers on small images, three on ImageNet.
    """

    constant_lr = ("predictor",)

    def __init__(
        self, encoder: Encoder, width: int = 2048, bottleneck: int = 512, layers: int = 2
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(encoder.dim, *[width] * layers, last_norm=True)
        self.predictor = mlp(width, bottleneck, width)

    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        y1, y2 = self.encoder(x1), self.encoder(x2)  # (N, D)
        z1, z2 = self.projector(y1), self.projector(y2)  # (N, C)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        return MethodOutput(loss, y1, y2)
