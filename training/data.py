"""Images -> batches of two views.

One decode serves both views. An item is asked for as (epoch, index), so its views depend on the key
(seed, epoch, index) alone, whatever worker or process makes them. Samples of tars are keyed by
their names instead of their index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.modeling.views import stack_parameters, two_crops
from training.sources import Images


class ViewsDataset(Dataset):
    """(epoch, index) -> two crops of one image, their parameters, its label and what was skipped.

    An image that cannot be decoded is replaced by the next one that can; its name is reported in
    `skipped`.

    Args:
        images: where they are read.
        policy: how views are drawn.
        seed: first part of the key.
    """

    def __init__(self, images: Images, policy: Policy, seed: int) -> None:
        self.images, self.policy, self.seed = images, policy, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        image, used, skipped = self._first_readable(index)
        keys, label = self.images.keys, self.images.labels[used]
        drawn = (self.seed, epoch, index if keys is None else keys[index])
        return two_views(image, label, self.policy, drawn, skipped)

    def _first_readable(self, index: int) -> tuple[Image.Image, int, list[str]]:
        skipped: list[str] = []
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                return self.images.read(candidate), candidate, skipped
            except (ImageError, OSError):
                skipped.append(self.images.names[candidate])
        raise AugSelfError("none of the images can be decoded")

    def check_readable(self) -> None:
        """Raise AugSelfError where not a single file can be decoded."""
        self._first_readable(0)

    def sampler(self, seed: int, batch: int, share: int) -> KeyedSampler:
        """The order of its images; `share` of a batch go to one process at a time."""
        return KeyedSampler(len(self), seed, batch)

    def lost(self, skipped: set[str], epochs: float) -> float:
        """The share of the images that is among these names, or of the shards that is damaged."""
        return max(len(skipped) / len(self), len(self.images.damaged) / self.images.shards)


def two_views(
    image: Image.Image, label: int, policy: Policy, key: tuple[int, int, int], skipped: list[str]
) -> dict[str, Any]:
    """An item: two crops (2, S, S, 3) of an image, keyed by (seed, epoch, index), and the rest."""
    (crop1, w1), (crop2, w2) = two_crops(image, policy, *key)
    crops = np.stack([crop1, crop2])
    return {"crops": crops, "w1": w1, "w2": w2, "label": label, "skipped": skipped}


class KeyedSampler(Sampler):
    """Yields (epoch, index) in an order that depends on (seed, epoch) alone.

    Args:
        images: how many there are.
        seed: of the order.
        batch: images of one optimizer step; the last few of an epoch that do not fill one are left
            out, so that no step is smaller, however a batch is shared out.
    """

    def __init__(self, images: int, seed: int, batch: int = 1) -> None:
        self.images, self.seed, self.epoch = images, seed, 0
        self.length = images // batch * batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        return ((epoch, int(index)) for index in order[: self.length])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items -> a batch: crops of view 1 then view 2 (2N, S, S, 3), w1, w2, labels, skipped."""
    crops = np.concatenate([[item["crops"][view] for item in items] for view in (0, 1)])
    return {
        "crops": torch.from_numpy(crops),
        "w1": stack_parameters([item["w1"] for item in items]),
        "w2": stack_parameters([item["w2"] for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
        "skipped": [name for item in items for name in item["skipped"]],
    }
