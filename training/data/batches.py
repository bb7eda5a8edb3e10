"""Images -> batches of two views.

One decode serves both views. An item is asked for as (epoch, index), so its views depend on the key
(seed, epoch, index) alone, whatever worker or process makes them. Samples of tars are keyed by
their names instead of their index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.modeling.views import stack_parameters, two_crops_of_each
from training.data.sources import Images

TOGETHER = 8  # images that are decoded, and their parameters drawn, at a time


class Counted(NamedTuple):
    """A shard of a stream that was read to its end: its images, and reason -> how many more."""

    shard: str
    images: int
    left_out: tuple[tuple[str, int], ...]


class Read(NamedTuple):
    """A decoded image, its label, the (epoch, index) of its views, and what was skipped for it.

    `counted`: shards that ended meanwhile.
    """

    image: Image.Image
    label: int
    key: tuple[int, int]
    skipped: list[str]
    counted: Sequence[Counted] = ()


class Views(Dataset[dict[str, Any]]):
    """key -> two crops (2, S, S, 3) of one image, their parameters, its label, what was skipped.

    Args:
        policy: how views are drawn.
        seed: first part of the key of their parameters.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy, self.seed = policy, seed

    def read(self, key: Any) -> Read:
        """The image that is asked for, or the first after it that can be decoded."""
        raise NotImplementedError

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """The items of a batch, as the DataLoader asks for them."""
        items = []
        for start in range(0, len(keys), TOGETHER):
            read = list(map(self.read, keys[start : start + TOGETHER]))
            images, drawn = [one.image for one in read], [one.key for one in read]
            views = two_crops_of_each(images, self.policy, self.seed, drawn)
            for ((crop1, w1), (crop2, w2)), one in zip(views, read, strict=True):
                item = {"crops": np.stack([crop1, crop2]), "w1": w1, "w2": w2, "label": one.label}
                items.append({**item, "skipped": one.skipped, "counted": one.counted})
        return items


class ViewsDataset(Views):
    """(epoch, index) -> the views of an image of a list.

    An image that cannot be decoded is replaced by the next one that can; its name is reported in
    `skipped`.

    Args:
        images: where they are read.
        policy, seed: as `Views` takes them.
    """

    def __init__(self, images: Images, policy: Policy, seed: int) -> None:
        super().__init__(policy, seed)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def at(self, rows: Sequence[int]) -> ViewsDataset:
        """Some of the images, seen the same way."""
        return ViewsDataset(self.images.at(rows), self.policy, self.seed)

    def read(self, key: tuple[int, int]) -> Read:
        epoch, index = key
        image, used, skipped = self._first_readable(index)
        keys = self.images.keys
        drawn = (epoch, index if keys is None else keys[index])
        return Read(image, self.images.labels[used], drawn, skipped)

    def _first_readable(self, index: int) -> tuple[Image.Image, int, list[str]]:
        skipped: list[str] = []
        reason = ""
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                return self.images.read(candidate), candidate, skipped
            except (ImageError, OSError) as error:
                skipped.append(self.images.names[candidate])
                reason = str(error)
        raise AugSelfError(f"none of the images can be decoded; the last: {reason}")

    def check_readable(self) -> None:
        """Raise AugSelfError where not a single file can be decoded."""
        self._first_readable(0)

    def sampler(self, seed: int, batch: int, share: int) -> KeyedSampler:
        """The order of its images; `share` of a batch go to one process at a time."""
        return KeyedSampler(len(self), seed, batch)

    def lost(self, skipped: set[str], epochs: float) -> float:
        """The share of the images that is among these names, or of the shards that is damaged."""
        return max(len(skipped) / len(self), len(self.images.damaged) / self.images.shards)


class KeyedSampler(Sampler[Any]):
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
    """Items -> a batch: crops of view 1 then view 2 (2N, S, S, 3), w1, w2, labels, skipped.

    Of a stream also `counted`, where shards have ended.
    """
    counted = [tuple(shard) for item in items for shard in item.get("counted", ())]
    crops = np.concatenate([[item["crops"][view] for item in items] for view in (0, 1)])
    return {
        "crops": torch.from_numpy(crops),
        "w1": stack_parameters([item["w1"] for item in items]),
        "w2": stack_parameters([item["w2"] for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
        "skipped": [name for item in items for name in item["skipped"]],
        **({"counted": counted} if counted else {}),
    }
