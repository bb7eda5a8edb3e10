"""Photographs to quantise by: some calibrate the graph, others judge it."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images import AS_FOUND, Inventory, Listing, Options, open_source
from augself_hub.modeling.views import two_crops
from augself_hub.preprocess import decode, preprocess

log = logging.getLogger(__name__)
MIN_IMAGES = 24
CALIBRATION_IMAGES, HELD_OUT_IMAGES, PAIRS = 128, 1024, 256  # at most


@dataclass(frozen=True)
class Photographs:
    """Real images, some to calibrate with, others to judge by.

    Args:
        listing: all of them. side: of a preprocessed image, in pixels.
        calibration, held_out: positions, disjoint.
        inventory: of their source.
    """

    listing: Listing
    side: int
    calibration: Sequence[int]
    held_out: Sequence[int]
    inventory: Inventory

    @classmethod
    def split(cls, source: str | Path, side: int, options: Options = AS_FOUND) -> Photographs:
        """A third of the images, at most 128, calibrate; at most 1024 others judge."""
        opened = open_source(source, options)
        log.info("%s", opened.inventory.text())
        listing = opened.listing()
        positions = list(range(len(listing.names)))
        if len(positions) < MIN_IMAGES:
            raise AugSelfError(
                f"{source} holds {len(positions)} images: quantisation needs at least {MIN_IMAGES} "
                "photographs like those the model will see"
            )
        random.Random(0).shuffle(positions)
        cut = min(CALIBRATION_IMAGES, len(positions) // 3)
        held_out = positions[cut : cut + HELD_OUT_IMAGES]
        return cls(listing, side, positions[:cut], held_out, opened.inventory)

    def decoded(self, position: int) -> Image.Image:
        try:
            return decode(self.listing.read(position))
        except (ImageError, OSError) as error:
            raise AugSelfError(f"{self.listing.names[position]}: {error}") from error

    def pixels(self, positions: Sequence[int]) -> np.ndarray:
        """(N, S, S, 3) uint8."""
        return np.stack([preprocess(self.decoded(position), self.side) for position in positions])

    def labels(self) -> np.ndarray | None:
        """The held-out images' classes (N,), or None where there are not two of them."""
        labels = np.array([self.listing.labels[position] for position in self.held_out])
        present = np.unique(labels)
        if len(present) < 2 or present[0] < 0:
            return None
        return np.searchsorted(present, labels)

    def views(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Two views of held-out images as the heads met them in training, each (N, S, S, 3)."""
        policy = dataclasses.replace(policy, size=self.side)
        pairs = [
            two_crops(self.decoded(position), policy, 0, 0, index)
            for index, position in enumerate(self.held_out[:PAIRS])
        ]
        sides = []
        for view in (0, 1):
            drawn = [pair[view] for pair in pairs]  # (crop, parameters) of each image
            crops = np.stack([crop for crop, _ in drawn]).transpose(0, 3, 1, 2)
            names = drawn[0][1]
            parameters = {name: np.concatenate([row[name] for _, row in drawn]) for name in names}
            augmented = augment(crops.astype(np.float32) / 255, parameters, policy)
            sides.append(np.round(augmented.transpose(0, 2, 3, 1) * 255).astype(np.uint8))
        return sides[0], sides[1]
