"""What a method is: two views in, a loss and the encoder's features out.

The features are what the AugSelf heads see (encoder output y, not the projection z), so AugSelf is
added in one place for every method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from augself_hub.modeling.encoders import Encoder


class MethodOutput(NamedTuple):
    """loss: scalar; y1, y2: (N, D) encoder features of the two views, for the AugSelf heads."""

    loss: Tensor
    y1: Tensor
    y2: Tensor


class Method(nn.Module, ABC):
    """An encoder under training, with whatever its method adds to it.

    Attributes:
        encoder: the online encoder, which is what gets published.
        constant_lr: names of sub-modules whose learning rate is not decayed.
        needs_labels: forward takes the labels of the images as a third argument.
        seen_by: names of the encoders whose features are y1 and y2; each sees x1 before x2.
    """

    constant_lr: tuple[str, ...] = ()
    seen_by: tuple[str, str] = ("encoder", "encoder")
    needs_labels = False

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def forward(self, x1: Tensor, x2: Tensor) -> MethodOutput:
        """(N, 3, H, W) views of the same N images -> the method's loss and the features."""

    def before_step(self, epoch: float, step: int) -> None:
        """Called between backward and the optimizer's step, which is `step` of them, from 0.

        `epoch` counts fractions.
        """

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step. `progress` is k/K at step k of K, from 0.

        Of a run whose schedules move once an epoch it is that of the epoch's first step.
        """
