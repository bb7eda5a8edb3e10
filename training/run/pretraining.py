"""One pretraining run, from a folder of images to a model folder.

`pretrain` puts the parts together: data, a method, the AugSelf loss, the trainer, and at the end
the model folder with what was measured.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments, set_seed

from augself_hub import hub
from augself_hub.augmentations.difference import Sizes, standardised
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import AS_FOUND, Columns, Inventory, Options
from augself_hub.images.opening import STREAM
from augself_hub.images.source import UNLABELED
from augself_hub.modeling.convert import PRETRAIN_DATA
from augself_hub.modeling.encoders import ENCODERS, Encoder, build_encoder, preprocessing_of
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import Images, lines_of, open_images
from training.data.streams import Stream, StreamViews, held_out_images, open_stream
from training.methods import METHODS, Method, checked_options
from training.methods.frozen import Frozen
from training.monitoring.awareness import PAIRS, with_results
from training.monitoring.monitor import Monitor, evaluate, feature_spread, known_images
from training.run import checkpoints
from training.run.arguments import set_intervals, training_arguments
from training.run.disk import refuse_full_disk
from training.run.optimisation import warmup_steps
from training.run.publishing import push, stage, steps_of, write_folder, write_json
from training.run.resuming import SETTINGS, check_resumed, decisive_settings, read_settings
from training.run.settings import FROZEN, Settings, policy_of
from training.run.trainer import AugSelfTrainer

log = logging.getLogger(__name__)
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500
PAIRS_AN_IMAGE = 20
MODEL = "model"
SIZES = 256  # images whose sizes the targets' standard deviations are taken from


class Pretraining(nn.Module):
    """What the trainer optimises: views -> method loss + AugSelf loss.

    Args:
        method: an encoder under training.
        augself: the heads and their loss.
        preprocessing: how the encoder wants its images normalised.
    """

    def __init__(self, method: Method, augself: AugSelfLoss, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.method, self.augself, self.preprocessing = method, augself, preprocessing

    def forward(
        self, crops: Tensor, w1: Parameters, w2: Parameters, labels: Tensor
    ) -> dict[str, Tensor]:
        """A batch of `data.collate` -> {"loss", "spread", "method", kind, ...}.

        All but loss are detached.
        """
        x1, x2 = self._views(crops, w1, w2)
        inputs = (x1, x2, labels) if self.method.needs_labels else (x1, x2)
        loss, y1, y2 = self.method(*inputs)
        augself, parts = self.augself(y1, y2, w1, w2)
        if not isinstance(self.method, Frozen):  # which has no loss to tell
            parts = {"method": loss.detach(), **parts}
        return {"loss": loss + augself, "spread": feature_spread(y1.detach()), **parts}

    @torch.no_grad()
    def _views(self, crops: Tensor, w1: Parameters, w2: Parameters) -> tuple[Tensor, Tensor]:
        if self.augself.spec.policy.order == "batch":
            w1, w2 = ({**w, "order": w["order"][:1].expand_as(w["order"])} for w in (w1, w2))
        both = {name: torch.cat([w1[name], w2[name]]) for name in w1}
        with torch.autocast(crops.device.type, enabled=False):
            views = finish_views(
                crops,
                both,
                self.augself.spec.policy,
                self.preprocessing.mean,
                self.preprocessing.std,
            )
        x1, x2 = views.to(memory_format=torch.channels_last).chunk(2)
        return x1, x2


def pretrain(
    settings: Settings, resume: bool = False, loss: type[AugSelfLoss] = AugSelfLoss
) -> Path:
    """Run a pretraining and write its model folder.

    Args:
        resume: continue from the newest valid checkpoint in `settings.output`; what has none yet
            is begun, so that whoever starts a run again need not know how far it came.
        loss: what makes the AugSelf loss; a study puts its control here.

    Returns:
        The model folder, settings.output/model, which the first of several processes writes; or
        settings.output when SIGTERM stopped the run after a checkpoint.

    Raises:
        UsageError: an unknown method, encoder, augmentation or argument.
        AugSelfError: no usable images, an output that exists or that not every process sees, other
            settings than those of the run to resume, a run that diverged or collapsed.
    """
    policy = _check(settings)
    checkpoint = _check_output(settings, resume)
    before = read_settings(settings.output)
    arguments = training_arguments(settings)
    set_seed(settings.seed)
    train, held_out = _datasets(settings, policy)
    decisive = decisive_settings(settings, len(train), train.images.names, train.images.inventory)
    extended = False if before is None else check_resumed(settings.output, before, decisive)
    model = _build(settings, policy, train.images, loss, _sizes(train, held_out, settings.seed))
    if before is not None:
        model.augself.spec = _begun_spec(settings, before, model.augself.spec)
    trainer = _trainer(settings, arguments, model, train)
    _refuse_finished(settings.output / MODEL, trainer)
    trainer.earlier = checkpoints.spent_until(checkpoint)
    known = known_images(train.images, held_out.images, settings.seed)
    if settings.monitor_every:
        trainer.add_callback(_monitor(settings, trainer, held_out, known))
    arguments.distributed_state.wait_for_everyone()  # all have compared the settings
    if arguments.should_save and (before is None or extended):
        spec = json.loads(model.augself.spec.to_json())
        write_json(settings.output / SETTINGS, {**decisive, "spec": spec})
    arguments.distributed_state.wait_for_everyone()
    _refuse_split_output(settings.output)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.interrupted:
        log.info("stopped after a checkpoint; continue with --resume")
        return settings.output
    if arguments.should_save:
        _publish(settings, trainer, held_out, known)
    return settings.output / MODEL


def _check(settings: Settings) -> Policy:
    """What can be said before any image is read; returns how the views are drawn.

    Raises:
        UsageError: an unknown method, option, kind, convention or encoder.
    """
    policy = policy_of(settings)
    heads_for(settings.augself, policy, settings.convention)
    if settings.method != FROZEN:
        if settings.method not in METHODS:
            raise UsageError(f"unknown method {settings.method!r}: use {', '.join(METHODS)}")
        checked_options(settings.method, METHODS[settings.method], settings.method_options)
    if settings.method == FROZEN and settings.encoder in ENCODERS:
        raise UsageError(f"{settings.encoder} is a preset, untrained: give a folder or Hub id")
    if settings.encoder not in ENCODERS and not (
        Path(settings.encoder).is_dir() or "/" in settings.encoder
    ):
        raise UsageError(
            f"unknown encoder {settings.encoder!r}: use {', '.join(ENCODERS)}, a folder or Hub id"
        )
    return policy


def _trainer(
    settings: Settings,
    arguments: TrainingArguments,
    model: Pretraining,
    train: ViewsDataset | StreamViews,
) -> AugSelfTrainer:
    set_intervals(arguments, settings, len(train) // settings.batch_size)
    warmup = warmup_steps(settings, len(train))
    if 0 < arguments.max_steps <= warmup:
        raise UsageError(
            f"--warmup-epochs {settings.warmup_epochs:g} are {warmup} steps and leave nothing of "
            f"--set max_steps={arguments.max_steps}: give fewer"
        )
    refuse_full_disk(settings, arguments, model)
    if settings.push_to_hub and arguments.should_save:  # refused now, not after days of training
        hub.reserve(settings.push_to_hub, private=settings.private or None)
    return AugSelfTrainer(settings, model=model, args=arguments, train_dataset=train)


def _check_output(settings: Settings, resume: bool) -> Path | None:
    """The checkpoint to continue from."""
    output = settings.output
    if not resume and output.exists():
        raise AugSelfError(f"{output} exists: choose another --output, or continue with --resume")
    if not (output / SETTINGS).exists() and any(output.glob("[!.]*")):
        raise AugSelfError(f"{output} exists and is no run: choose another --output")
    checkpoint = checkpoints.newest_valid(output)
    if checkpoint is not None:
        return checkpoint
    if any(output.glob("checkpoint-*")):
        raise AugSelfError(f"no valid checkpoint in {output}: remove it and start without --resume")
    if resume:
        log.info("nothing to continue in %s: the run begins", output)
    return None


def _refuse_finished(folder: Path, trainer: AugSelfTrainer) -> None:
    """A finished run has nothing to go on with, unless it is extended."""
    arguments = trainer.args
    epoch = len(trainer.train_dataset) // trainer.settings.batch_size
    wanted = arguments.max_steps
    if wanted < 0:
        wanted = math.ceil(arguments.num_train_epochs * epoch)
    if folder.exists() and steps_of(folder) >= wanted:
        raise AugSelfError(
            f"{folder} exists, the run has ended: remove it to write it again, or go on with more "
            "--epochs"
        )


def _refuse_split_output(output: Path) -> None:
    """What the first process has written, every process must see: checkpoints are shared."""
    if not (output / SETTINGS).exists():
        raise AugSelfError(
            f"{output} on {platform.node()} is not the folder that the first process writes: put "
            "--output on a file system that every node shares"
        )


def _datasets(
    settings: Settings, policy: Policy
) -> tuple[ViewsDataset | StreamViews, ViewsDataset]:
    if settings.stream or settings.data.startswith(STREAM):
        return _streamed(settings, policy)
    if settings.epoch_images is not None:
        raise UsageError(f"--epoch-images would have no effect: {settings.data} is no stream")
    images = _images(settings.data, settings.classes, _options(settings))
    _tell(images.inventory)
    if _needs_labels(settings):
        images = _labelled(images)
    if settings.held_out:
        held_out = _held_out(settings.held_out, settings.classes)
    else:
        images, held_out = _split(images, settings.seed)
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
        held_out = _held_out(settings.held_out, None)
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


def _images(source: str, classes: Path | None, options: Options = AS_FOUND) -> Images:
    images = open_images(source, options)
    return images if classes is None else images.only(lines_of(classes))


def _held_out(source: str, classes: Path | None) -> Images:
    """Of a source with splits its validation images, else its test images."""
    images = open_images(source, wanted=("validation", "test"))
    return images if classes is None else images.only(lines_of(classes))


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


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """Training images, and a keyed 5% held out, at most 500; none of fewer than 20 images.

    Up to half of those that have a label are held out first, for the nearest neighbours.
    """
    count = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * len(images))) if len(images) >= 20 else 0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    labelled = [i for i in order if images.labels[i] != UNLABELED]
    order = list(dict.fromkeys([*labelled[: len(labelled) // 2], *order]))
    return images.at(sorted(order[count:])), images.at(order[:count])


def _sizes(train: ViewsDataset | StreamViews, held_out: ViewsDataset, seed: int) -> Sizes:
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


def _begun_spec(settings: Settings, before: dict[str, Any], fresh: Spec) -> Spec:
    """What the heads of a run to be resumed have learned so far: the spec in its settings.json.

    Version 0.1 saved none: it standardised for square pictures, and its `paper` had another x.
    """
    if "spec" in before:
        return Spec.from_json(json.dumps(before["spec"]))
    if settings.convention == "paper" and "crop" in settings.augself:
        raise AugSelfError(
            f"the run in {settings.output} was begun by version 0.1, whose target of x was not "
            "that of convention paper: start it anew in another --output"
        )
    return dataclasses.replace(
        fresh, heads=standardised(fresh.heads, fresh.policy, fresh.convention)
    )


def _build(
    settings: Settings,
    policy: Policy,
    images: Images | Stream,
    loss: type[AugSelfLoss],
    sizes: Sizes,
) -> Pretraining:
    """The method before the heads, so that it starts the same whatever heads there are."""
    encoder = build_encoder(settings.encoder, settings.size)
    method = _method(settings, encoder, images)
    augself = loss(encoder.dim, settings.augself, policy, settings.convention, sizes)
    return Pretraining(method, augself, preprocessing_for(settings))


def preprocessing_for(settings: Settings) -> Preprocessing:
    """How the encoder of a run wants its images."""
    if settings.normalization is None:
        return preprocessing_of(settings.encoder, settings.size)
    return dataclasses.replace(PRETRAIN_DATA[settings.normalization], size=settings.size)


def _method(settings: Settings, encoder: Encoder, images: Images | Stream) -> Method:
    name = settings.method
    if name == FROZEN:
        return Frozen(encoder)
    options = checked_options(name, METHODS[name], settings.method_options)
    if METHODS[name].needs_labels:
        if len(images.classes) < 2:
            raise AugSelfError(
                f"{name} learning needs labels of two classes or more, and "
                f"{images.inventory.source} gives {len(images.classes)}: {images.advice}"
            )
        options["classes"] = len(images.classes)
    return METHODS[name](encoder, **options)


def _model_of(trainer: AugSelfTrainer) -> AugSelfModel:
    """What is published of a model under training; the weights are the same ones."""
    pretraining: Pretraining = trainer.model
    network, augself = pretraining.method.encoder.network, pretraining.augself
    return AugSelfModel(network, augself.heads, augself.spec, pretraining.preprocessing)


def _monitor(
    settings: Settings, trainer: AugSelfTrainer, held_out: ViewsDataset, known: Images | None
) -> Monitor:
    steps = settings.monitor_every * (len(trainer.train_dataset) // settings.batch_size)
    return Monitor(trainer, lambda: _model_of(trainer), held_out, known, max(1, round(steps)))


def _publish(
    settings: Settings, trainer: AugSelfTrainer, held_out: ViewsDataset, known: Images | None
) -> None:
    """Evaluate, write settings.output/model, and push it where that was asked for."""
    model = _model_of(trainer).cpu().to(memory_format=torch.contiguous_format)
    pairs = measured_pairs(len(held_out))
    with stage(f"measuring {pairs} pairs of {len(held_out)} held-out images"):
        results = evaluate(model, held_out, known, pairs)
    model.spec = with_results(model.spec, results)
    folder = settings.output / MODEL
    write_folder(folder, model, settings, trainer, results)
    if settings.push_to_hub:
        with stage(f"publishing {settings.push_to_hub}"):
            push(folder, settings.push_to_hub, settings.private)


def measured_pairs(images: int) -> int:
    """Pairs of so many held-out images that the last evaluation looks at.

    More views of the same pictures say little more of others; a single picture says nothing.
    """
    return 0 if images < 2 else min(PAIRS, PAIRS_AN_IMAGE * images)
