"""TwoViews: an image -> two views and the parameters that made them.

Crop and resize happen per image, where it is decoded; the rest is done on whole batches, on the
model's device (`finish_views`). `TwoViews` does both for one image, as a torchvision transform
would, for anybody's training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augself_hub.augmentations.functional import augment, normalise
from augself_hub.augmentations.sampling import Parameters, draw, pixel_box
from augself_hub.augmentations.spec import Policy
from augself_hub.differences import is_gray
from augself_hub.preprocess import crop_resized, to_rgb

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
View = tuple[np.ndarray, Parameters]


def two_crops(image: Image.Image, policy: Policy, seed: int, epoch: int, index: int) -> list[View]:
    """RGB image -> [(crop a, parameters a), (crop b, parameters b)].

    A crop is (S, S, 3) uint8, nothing but the crop applied yet; parameters have one row, with
    `colorless`.
    """
    return two_crops_of_each([image], policy, seed, [(epoch, index)])[0]


def two_crops_of_each(
    images: Sequence[Image.Image], policy: Policy, seed: int, keys: Sequence[tuple[int, int]]
) -> list[list[View]]:
    """N RGB images, their (epoch, index) -> what `two_crops` makes of each, drawn in one pass."""
    epochs, indices = np.array(keys, dtype=np.uint64).repeat(2, axis=0).T
    heights, widths = np.array([(i.height, i.width) for i in images]).repeat(2, axis=0).T
    drawn = draw(policy, (seed, epochs, indices, [0, 1] * len(images)), heights, widths)

    def view(image: Image.Image, row: int) -> View:
        box = pixel_box(drawn["crop"][row], image.height, image.width)
        parameters = {name: values[row : row + 1] for name, values in drawn.items()}
        crop = crop_resized(image, box, policy.size)
        return crop, {**parameters, "colorless": np.array([is_gray(crop)])}

    return [[view(image, 2 * i), view(image, 2 * i + 1)] for i, image in enumerate(images)]


def finish_views(
    crops: Tensor,
    parameters: Parameters,
    policy: Policy,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """(N, S, S, 3) uint8 crops -> (N, 3, S, S) float views, augmented and normalised.

    Each channel is made one plane first: the operations read planes, and not every third byte.
    """
    views = crops.permute(0, 3, 1, 2).contiguous().float() / 255
    finished: Tensor = normalise(augment(views, parameters, policy), mean, std)
    return finished


class TwoViews:
    """A transform: PIL image -> (x1, x2, w1, w2).

    x1, x2 are (3, S, S) normalised float views, w1, w2 their parameters (see
    `sampling.Parameters`), one row each with the row's axis removed; torch's default collate
    stacks them into what `AugSelfLoss` takes.

    Args:
        policy: how views are drawn; `size` is their side S.
        mean, std: normalisation per channel.

    The key of the random parameters is drawn from torch's generator, so `torch.manual_seed` and
    the DataLoader's worker seeds decide.
    """

    def __init__(
        self,
        policy: Policy,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        self.policy, self.mean, self.std = policy, mean, std

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor, Any, Any]:
        key = int(torch.randint(2**62, ()))
        crops, parameters = zip(*two_crops(to_rgb(image), self.policy, 0, 0, key), strict=True)
        rows = stack_parameters(list(parameters))
        batch = torch.from_numpy(np.stack(crops))
        x1, x2 = finish_views(batch, rows, self.policy, self.mean, self.std)
        w1, w2 = ({name: value[i] for name, value in rows.items()} for i in (0, 1))
        return x1, x2, w1, w2


def stack_parameters(rows: list[Parameters]) -> Parameters:
    """Parameters of single views (numpy) -> one batch of them (torch, real numbers as float32)."""
    batch = {name: torch.from_numpy(np.concatenate([r[name] for r in rows])) for name in rows[0]}
    return {name: v.float() if v.is_floating_point() else v for name, v in batch.items()}
