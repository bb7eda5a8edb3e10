"""Two views of a photograph, as the model is given them and larger for the page."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Policy
from augself_hub.preprocess import crop_resized
from serving.demo.frames import box_in_pixels


def two_views(
    image: Image.Image, a: Parameters, b: Parameters, policy: Policy, side: int
) -> np.ndarray:
    """The two augmented views of an image, (2, side, side, 3) uint8, made as in training.

    At another side than the model's the blur is as wide as there, in shares of the view.
    """
    boxes = (box_in_pixels(view["crop"][0], image) for view in (a, b))
    crops = np.stack([crop_resized(image, box, side) for box in boxes])
    both = {name: np.concatenate([a[name], b[name]]) for name in a}
    both["blur"] = both["blur"] * side / policy.size
    policy = dataclasses.replace(policy, size=side)
    views: np.ndarray = augment(crops.transpose(0, 3, 1, 2).astype(np.float32) / 255, both, policy)
    return np.round(views.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
