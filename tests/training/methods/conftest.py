"""An encoder small enough to follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class LinearEncoder(nn.Module):
    """(N, 3, 4, 4) views -> (N, dim) features by one matrix."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.randn(48, dim) / 7)

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LinearEncoder()


@pytest.fixture
def views():
    """Two views of five images."""
    torch.manual_seed(1)
    return torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
