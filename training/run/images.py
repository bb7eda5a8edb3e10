"""What a run trains on, and what it holds out to measure itself by."""

from __future__ import annotations

import logging
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
from training.data.sources import Images, lines_of, open_images
from training.data.streams import Stream, StreamViews, held_out_images, open_stream
from training.methods import METHODS
from training.run.settings import Settings

log = logging.getLogger(__name__)
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500
SIZES = 256  # images whose sizes the targets' standard deviations are taken from


def open_datasets(
    settings: Settings, policy: Policy
) -> tuple[ViewsDataset | StreamViews, ViewsDataset]:
    """The training images and those held out, by position or, where that was asked, as a stream.

    Raises:
        UsageError: settings that do not go with the source. AugSelfError: too few images.
    """
    if settings.stream or settings.data.startswith(STREAM):
        return _streamed(settings, policy)
    if settings.epoch_images is not None:
        raise UsageError(f"--epoch-images would have no effect: {settings.data} is no stream")
    images = open_images(settings.data, _options(settings))
    if settings.classes is not None:
        images = images.only(lines_of(settings.classes))
    _tell(images.inventory)
    if _needs_labels(settings):
        images = _labelled(images)
    if settings.held_out:
        held_out = _held_out(settings, settings.held_out)
    else:
        images, held_out = split(images, settings.seed)
    train = ViewsDataset(images, policy, settings.seed)
    train.check_readable()
    if len(images) < settings.batch_size:
        raise AugSelfError(
            f"{len(images)} images are fewer than one batch of {settings.batch_size}: "
            "lower --batch-size or give more images"
        )
    return train, ViewsDataset(held_out, policy, settings.seed)


def _streamed(settings: Settings, policy: Policy) -> tuple[StreamViews, ViewsDataset]:
    if settings.classes is not None:
        raise UsageError(f"--classes cannot choose from {settings.data}: a stream is not listed")
    stream = open_stream(
        settings.data,
        settings.epoch_images,
        held_out=not settings.held_out,
        labelled=_needs_labels(settings),
        options=_options(settings),
    )
    _tell(stream.inventory)
    if len(stream) < settings.batch_size:
        raise UsageError(
            f"--epoch-images {len(stream)} is less than one batch of {settings.batch_size}: "
            "lower --batch-size or give more"
        )
    if settings.held_out:
        held_out = _held_out(settings, settings.held_out)
    else:
        held_out = held_out_images(stream, HELD_OUT_MOST)
    train = StreamViews(stream, policy, settings.seed)
    train.check_readable()
    return train, ViewsDataset(held_out, policy, settings.seed)


def _needs_labels(settings: Settings) -> bool:
    return settings.method in METHODS and METHODS[settings.method].needs_labels


def _options(settings: Settings) -> Options:
    columns = Columns.parse(settings.column)
    return Options(columns, settings.split, settings.read_as, stream=settings.stream)


def _tell(inventory: Inventory) -> None:
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", inventory.text())


def _held_out(settings: Settings, source: str) -> Images:
    """--held-out: of a source with splits its validation images, else its test images."""
    images = open_images(source, wanted=("validation", "test"))
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


def sampled_sizes(train: ViewsDataset | StreamViews, held_out: ViewsDataset, seed: int) -> Sizes:
    """(height, width) of a keyed sample of the images, upright; of a stream, of what it holds out.

    Square where there are none.
    """
    images = held_out.images if isinstance(train.images, Stream) else train.images
    sizes = []
    for index in np.random.default_rng(seed).permutation(len(images))[:SIZES]:
        try:
            image = images.read(int(index))
        except (ImageError, OSError):  # training names it
            continue
        sizes.append((image.height, image.width))
    return sizes or [(1024, 1024)]
