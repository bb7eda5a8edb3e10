"""What a run trains on, and what it holds out to measure itself by."""

from __future__ import annotations

import logging
import math
import os

import numpy as np
import torch

from augself_hub.augmentations.difference import Sizes
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import Columns, Inventory, Options
from augself_hub.images.opening import STREAM
from augself_hub.images.source import UNLABELED
from training.data.batches import ViewsDataset
from training.data.sources import Images, lines_of, open_held_out, open_images
from training.data.streams import Stream, StreamViews, held_out_images, open_stream
from training.methods import METHODS
from training.run.settings import Settings

log = logging.getLogger(__name__)
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500
SIZES = 256  # images whose sizes the targets' standard deviations are taken from


def opened(settings: Settings) -> tuple[Images | Stream, Images]:
    """The images to train on, by position or, where that was asked, as a stream; those held out.

    Raises:
        UsageError: settings that do not go with the source. AugSelfError: nothing to train on.
    """
    columns = Columns.parse(settings.column)
    options = Options(columns, settings.split, settings.read_as, stream=settings.stream)
    needs_labels = settings.method in METHODS and METHODS[settings.method].needs_labels
    if settings.stream or settings.data.startswith(STREAM):
        return _streamed(settings, options, needs_labels)
    if settings.epoch_images is not None:
        raise UsageError(f"--epoch-images would have no effect: {settings.data} is no stream")
    images = open_images(settings.data, options)
    if settings.classes is not None:
        images = images.only(lines_of(settings.classes))
    _tell(images.inventory)
    if needs_labels:
        images = _labelled(images)
    if settings.held_out:
        return images, _held_out(settings, settings.held_out, options)
    return split(images, settings.seed)


def _streamed(settings: Settings, options: Options, needs_labels: bool) -> tuple[Stream, Images]:
    if settings.decode != "exact":
        raise UsageError(f"--decode {settings.decode} has no effect on a stream: leave it out")
    if settings.classes is not None:
        raise UsageError(f"--classes cannot choose from {settings.data}: a stream is not listed")
    held_out = not settings.held_out
    stream = open_stream(settings.data, settings.epoch_images, held_out, needs_labels, options)
    _tell(stream.inventory)
    if settings.held_out:
        return stream, _held_out(settings, settings.held_out, options)
    return stream, held_out_images(stream, HELD_OUT_MOST)


def views_of(
    settings: Settings, policy: Policy, images: Images | Stream, held_out: Images
) -> tuple[ViewsDataset | StreamViews, ViewsDataset]:
    """The views of both.

    Raises:
        AugSelfError: no image can be read, or they do not fill a batch.
    """
    batch = settings.batch_size
    train: ViewsDataset | StreamViews
    if isinstance(images, Stream):
        if len(images) < batch:
            raise UsageError(
                f"--epoch-images {len(images)} is less than one batch of {batch}: lower "
                "--batch-size or give more"
            )
        train = StreamViews(images, policy, settings.seed)
    else:
        if settings.decode == "fast":
            ratio = min(policy.ratio[0], 1 / policy.ratio[1])
            narrowest = math.sqrt(policy.scale[0] * ratio)  # crop, to the short side
            images = images.decoded_smaller(math.ceil(settings.size / narrowest))
        train = ViewsDataset(images, policy, settings.seed)
    train.check_readable()
    if len(images) < batch:
        raise AugSelfError(
            f"{len(images)} images are fewer than one batch of {batch}: lower --batch-size or give "
            "more images"
        )
    return train, ViewsDataset(held_out, policy, settings.seed)


def _tell(inventory: Inventory) -> None:
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", inventory.text())


def _held_out(settings: Settings, source: str, options: Options) -> Images:
    images = open_held_out(source, options)
    _tell(images.inventory)
    return images if settings.classes is None else images.only(lines_of(settings.classes))


def _labelled(images: Images) -> Images:
    """The images with a label."""
    kept = [i for i, label in enumerate(images.labels) if label != UNLABELED]
    if not kept:
        raise AugSelfError(
            f"supervised learning needs labels, and {images.inventory.source} gives none: "
            f"{images.advice}"
        )
    if len(kept) < len(images):
        log.info("%d images without a label are left out", len(images) - len(kept))
    return images.at(kept)


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """Training images, and a keyed 5% held out, at most 500; none of fewer than 20 images.

    Up to half of those that have a label are held out first, for the nearest neighbours.
    """
    count = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * len(images))) if len(images) >= 20 else 0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    labelled = [i for i in order if images.labels[i] != UNLABELED]
    order = list(dict.fromkeys([*labelled[: len(labelled) // 2], *order]))
    return images.at(sorted(order[count:])), images.at(order[:count])


def sampled_sizes(train: Images | Stream, held_out: Images, seed: int) -> Sizes:
    """(height, width) of a keyed sample of the images, upright; of a stream, of what it holds out.

    Square where there are none.
    """
    images = held_out if isinstance(train, Stream) else train
    sizes = []
    for index in np.random.default_rng(seed).permutation(len(images))[:SIZES]:
        try:
            sizes.append(images.size(int(index)))
        except (ImageError, OSError):  # training names it
            continue
    return sizes or [(1024, 1024)]
