"""Feature maps of stock encoders: what the matcher compares, (N, C, S, S).

Convolutional encoders and Swin give a map after every stage; the deepest one that still has 8 cells
a side is taken, so that there is something to compare. Encoders of tokens (DINOv2, ViT) give the
patch tokens of their last layer. Maps of more than 16 cells a side are resized to 16: a cost volume
grows with the fourth power of the side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from augself_hub.augmentations.spec import MatcherSpec
from augself_hub.errors import UsageError

FEWEST, MOST = 8, 16  # cells a side


@dataclass(frozen=True)
class MapPlace:
    """Where an encoder's map is taken, and what it is like.

    Args:
        level: index into the encoder's hidden states, counted from the last one: -1, -2 ...
        channels, cells: C and S.
    """

    level: int
    channels: int
    cells: int

    @classmethod
    def of(cls, matcher: MatcherSpec) -> MapPlace:
        """Where a matcher that is described takes its maps."""
        channels, cells, _ = matcher.maps
        return cls(matcher.level, channels, cells)


def find_map(network: PreTrainedModel, size: int) -> MapPlace:
    """The map of an encoder for images of `size` pixels a side.

    Raises:
        UsageError: the encoder gives no maps, none that is square, or only of one cell.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        zeros = torch.zeros(1, 3, size, size, device=network.device, dtype=network.dtype)
        output = network(pixel_values=zeros, output_hidden_states=True)
    network.train(was_training)
    states = _states(output)
    maps = [_square(network, state, size) for state in states]
    if all(m is None for m in maps):
        raise UsageError(
            f"encoder type {network.config.model_type!r} gives no feature maps at {size} pixels: a "
            "matcher needs them; its heads on features work without (--matcher off)"
        )
    shapes = [(0, 0) if m is None else (m.shape[1], m.shape[-1]) for m in maps]
    enough = [i for i, (_, side) in enumerate(shapes) if side >= FEWEST]
    chosen = enough[-1] if enough else max(range(len(shapes)), key=lambda i: (shapes[i][1], i))
    channels, side = shapes[chosen]
    if side < 2:
        raise UsageError(
            f"feature maps of one cell at {size} pixels have nothing that could be compared: give "
            "larger images, or do without a matcher (--matcher off)"
        )
    return MapPlace(chosen - len(maps), channels, min(side, MOST))


def features_and_map(network: PreTrainedModel, x: Tensor, place: MapPlace) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) normalised images -> (N, D) features as always, and (N, C, S, S) maps."""
    output = network(pixel_values=x, output_hidden_states=True)
    m = _square(network, _states(output)[place.level], x.shape[-1])
    assert m is not None, "find_map has found a map here"
    if m.shape[-1] != place.cells:
        m = F.interpolate(m, size=(place.cells, place.cells), mode="bilinear")
    return output.pooler_output.flatten(1), m


def _states(output: Any) -> tuple[Tensor, ...]:
    """Swin has its maps apart from its tokens."""
    return getattr(output, "reshaped_hidden_states", None) or output.hidden_states or ()


def _square(network: PreTrainedModel, state: Tensor, size: int) -> Tensor | None:
    """A hidden state as (N, C, S, S): a map as it is, tokens without those of no patch."""
    if state.ndim == 4:
        return state if state.shape[-1] == state.shape[-2] else None
    patch = getattr(network.config, "patch_size", None)
    if state.ndim != 3 or not isinstance(patch, int):
        return None
    side = size // patch
    if state.shape[1] < side * side or side == 0:
        return None
    patches = state[:, state.shape[1] - side * side :]  # class and register tokens come first
    maps: Tensor = patches.mT.unflatten(2, (side, side))
    return maps
