"""How far the heads on features may be off, pair by pair.

A head says how parameters differ and not how sure that is: of a dull wall no hue can be read, of a
flower bed it can to a hundredth of a turn. A small network on the same two features states the
variance of every regression's error. It is fitted once the heads are, so that what they predict
stays as it is (`training.methods.uncertainty`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOG_VARIANCES = (-8.0, 4.0)  # of errors divided by the spec's std


class Uncertainty(nn.Module):
    """Features of an ordered pair -> log variances of what the heads say of it.

    Args:
        features: D, the width of the encoder's features.
        width: of the first hidden layer; the second has a quarter of it.
        outputs: n, the numbers that regressions predict.
    """

    slope: Tensor  # (n,) and
    shift: Tensor  # of log variances: what makes them hold for pictures not trained on

    def __init__(self, features: int, width: int, outputs: int, dropout: float = 0.2) -> None:
        super().__init__()
        last = nn.Linear(max(1, width // 4), outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.LayerNorm(2 * features),
            nn.Linear(2 * features, width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(width, max(1, width // 4)),
            nn.ReLU(inplace=True),
            last,
        )
        self.register_buffer("slope", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))

    def forward(self, pair: Tensor) -> Tensor:
        """(N, 2 D), features of a beside those of b -> (N, n), in the order of the spec's heads."""
        log_variance: Tensor = self.network(pair).clamp(*LOG_VARIANCES) * self.slope + self.shift
        return log_variance
