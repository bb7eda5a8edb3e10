"""The control of the same loss without its information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augself_hub.augmentations.sampling import Parameters
from augself_hub.modeling.objective import AugSelfLoss


class ShuffledTargets(AugSelfLoss):
    """AugSelfLoss with the targets of another pair of the batch.

    Heads, weights, targets' distribution and masks are those of AugSelfLoss; only what the
    features could know of their targets is gone. A batch's order is random already, so the next
    pair is a random one.
    """

    def forward(
        self, ya: Tensor, yb: Tensor, wa: Parameters, wb: Parameters
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(ya, yb, _next(wa), _next(wb))


def _next(parameters: Parameters) -> dict[str, Any]:
    return {name: torch.roll(value, 1, dims=0) for name, value in parameters.items()}
