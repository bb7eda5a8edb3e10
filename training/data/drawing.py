"""Which images are measured on, calibrated by and taken for strangers: drawn, never by position.

Lists are sorted: neighbours are of one class, tiles of one photograph, frames of one film. The
first N, every second one or the one a few rows on would all depend on that.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from augself_hub.images.source import UNLABELED
from training.data.sources import Images

FEWEST_TO_CALIBRATE = 40  # images
LARGEST_CLASS = 0.1  # of the images, so that halves by class are alike


def drawn_keys(images: int, pairs: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, index) of so many pairs of views: every image once in a keyed order, then again."""
    order = np.random.default_rng(seed).permutation(images).tolist()
    return [(i // images, order[i % images]) for i in range(pairs)]


def kin(images: Images) -> np.ndarray:
    """(N,) numbers from 0 on, equal for images that may show the same thing.

    Those of one group are where there are groups, else those of one class where there are two
    classes or more; an image without a label is alone.
    """
    if images.groups is not None:
        return np.unique(images.groups, return_inverse=True)[1]
    labels, rows = np.asarray(images.labels, np.int64), np.arange(len(images))
    alone = labels == UNLABELED
    if len(np.unique(labels[~alone])) < 2:
        return rows
    return np.unique(np.where(alone, labels.max() + 1 + rows, labels), return_inverse=True)[1]


def halves(images: Images) -> tuple[list[int], list[int]]:
    """Rows of held-out images by which stated errors are calibrated, and those on which their
    coverage is measured; of few images none, and all.

    Whole groups go to either half, or whole classes where none has more than a tenth of the images;
    else single images. The same images are always cut in the same way.
    """
    rows = np.arange(len(images))
    if len(rows) < FEWEST_TO_CALIBRATE:
        return [], rows.tolist()
    number = kin(images)
    sizes = np.bincount(number)
    if len(sizes) < 2 or (images.groups is None and sizes.max() > LARGEST_CLASS * len(rows)):
        number, sizes = rows, np.ones_like(rows)
    order = np.random.default_rng(0).permutation(len(sizes))
    middles = sizes[order].cumsum() - sizes[order] / 2
    first = np.isin(number, order[middles < len(rows) / 2])
    return rows[first].tolist(), rows[~first].tolist()


def strangers(kin: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows (M,) of pairs and, for each, the row of one that is not its kin, drawn from all those.

    Args:
        kin: (N,) of each pair, as `kin` gives them. M is N, unless all are kin: then it is 0.
    """
    count, sizes = len(kin), torch.bincount(kin)
    # In the order of their numbers those that are not kin follow on those that are, cyclically.
    order, ends = kin.argsort(stable=True), sizes.cumsum(0)
    others = count - sizes[kin]
    steps = (torch.rand(count, generator=random, dtype=torch.float64) * others).long()
    rows = torch.arange(count)[others > 0]
    return rows, order[((ends[kin] + steps) % max(1, count))[rows]]
