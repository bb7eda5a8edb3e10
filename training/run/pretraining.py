"""One pretraining run, from a folder of images to a model folder.

`pretrain` puts the parts together: data, a method, the AugSelf loss, the trainer, and at the end
the model folder with what was measured.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed

from augself_hub import hub
from augself_hub.atomic import write_json
from augself_hub.augmentations.difference import Sizes
from augself_hub.augmentations.spec import Policy, heads_for
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.modeling.convert import PRETRAIN_DATA
from augself_hub.modeling.encoders import ENCODERS, build_encoder, preprocessing_of
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import Images
from training.data.streams import Stream, StreamViews
from training.methods import METHODS, Method, checked_options
from training.methods.frozen import Frozen
from training.methods.joint import JointMatcher
from training.monitoring.awareness import PAIRS, with_results
from training.monitoring.matching import matched_pairs, with_matched
from training.monitoring.monitor import Monitor, evaluate, known_images
from training.run import checkpoints, choosing
from training.run.arguments import set_intervals, training_arguments
from training.run.disk import refuse_full_disk
from training.run.images import opened, sampled_sizes, views_of
from training.run.matching import (
    calibrated,
    indexed,
    joint_settings,
    refuse_unmatched,
    with_fitted_matcher,
)
from training.run.objective import Pretraining
from training.run.optimisation import run_steps, warmup_steps
from training.run.publishing import push, stage, steps_of, write_folder
from training.run.resuming import (
    SETTINGS,
    begun_spec,
    check_resumed,
    checkpoint_of,
    decisive_settings,
    read_settings,
)
from training.run.settings import FROZEN, JOINT, Settings, policy_of
from training.run.stopping import Stopped, sigterm_raises
from training.run.trainer import AugSelfTrainer
from training.run.uncertainty import with_uncertainty

log = logging.getLogger(__name__)
PAIRS_AN_IMAGE = 20
MODEL = "model"


def pretrain(
    settings: Settings,
    resume: bool = False,
    loss: type[AugSelfLoss] = AugSelfLoss,
    free: Collection[str] | None = None,
    bounds: Mapping[str, int] | None = None,
) -> Path:
    """Run a pretraining and write its model folder.

    Args:
        free: settings that nobody gave and that are chosen from images and cores (`choosing`); how
            long the run will take is said, too. None: neither.
        bounds: of what is chosen, as a recipe has them (`recipes.Recipe`).
        resume: continue from the newest valid checkpoint in `settings.output`; what has none yet
            is begun, so that whoever starts a run again need not know how far it came.
        loss: what makes the AugSelf loss; a study puts its control here.

    Returns:
        The model folder, settings.output/model, which the first of several processes writes; or
        settings.output when SIGTERM stopped the run: after a checkpoint, or in what comes before
        the first step or after the last one, which a resumed run does again.

    Raises:
        UsageError: an unknown method, encoder, augmentation or argument.
        AugSelfError: no usable images, an output that exists or that not every process sees, other
            settings than those of the run to resume, a run that diverged or collapsed.
    """
    try:
        with sigterm_raises():
            return _pretrained(settings, resume, loss, free, bounds)
    except Stopped:
        log.info("stopped; continue with --resume")
        return settings.output


def _pretrained(
    settings: Settings,
    resume: bool,
    loss: type[AugSelfLoss],
    free: Collection[str] | None,
    bounds: Mapping[str, int] | None,
) -> Path:
    """`pretrain`, which may be stopped at any point."""
    _check(settings)
    checkpoint = checkpoint_of(settings, resume)
    before = read_settings(settings.output)
    settings = choosing.begun(settings, before, free or ())
    arguments = training_arguments(settings)
    set_seed(settings.seed)
    images, held_out_images = opened(settings)
    sizes = sampled_sizes(images, held_out_images, settings.seed)
    if before is None and free:
        settings = choosing.chosen(settings, free, len(images), sizes, arguments, bounds)
        arguments = training_arguments(settings)
    policy = _check(settings)
    train, held_out = views_of(settings, policy, images, held_out_images)
    names, inventory = train.images.names, train.images.inventory
    decisive = decisive_settings(settings, len(train), names, inventory, before)
    extended = False if before is None else check_resumed(settings.output, before, decisive)
    model = _build(settings, policy, images, loss, sizes)
    if before is not None:
        model.augself.spec = begun_spec(settings, before, model.augself.spec)
    refuse_unmatched(settings, model.augself.spec, model.method.encoder.network)
    model = _with_joint_matcher(model, settings)
    trainer = _trainer(settings, arguments, model, train)
    folder = settings.output / MODEL
    steps = run_steps(arguments, trainer.epoch_steps)
    if folder.exists() and steps_of(folder) >= steps:  # unless it is extended
        raise AugSelfError(
            f"{folder} exists, the run has ended: remove it to write it again, or go on with more "
            "--epochs"
        )
    trainer.earlier = checkpoints.spent_until(checkpoint)
    known = known_images(images, held_out_images, settings.seed)
    if settings.monitor_every:
        every = max(1, round(settings.monitor_every * trainer.epoch_steps))
        trainer.add_callback(Monitor(trainer, lambda: _model_of(trainer), held_out, known, every))
    arguments.distributed_state.wait_for_everyone()  # all have compared the settings
    if arguments.should_save and (before is None or extended):
        spec = json.loads(model.augself.spec.to_json())
        told = {"held_out_inventory": held_out_images.inventory.record(), "spec": spec}
        write_json(settings.output / SETTINGS, {**decisive, **told}, nan=True)
    arguments.distributed_state.wait_for_everyone()
    if not (settings.output / SETTINGS).exists():  # checkpoints are shared
        raise AugSelfError(
            f"{settings.output} on {platform.node()} is not the folder that the first process "
            "writes: put --output on a file system that every node shares"
        )
    estimate = None if free is None else choosing.estimate(trainer, settings)
    if estimate is not None:
        log.info("%s", estimate)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    counted = trainer.count_shards()
    if counted and arguments.should_save:
        begun = read_settings(settings.output) or {}
        write_json(settings.output / SETTINGS, {**begun, "read": counted}, nan=True)
    if trainer.interrupted:
        log.info("stopped after a checkpoint; continue with --resume")
        return settings.output
    if trainer.asked_to_stop:  # in the last step, or while it was saved
        raise Stopped
    if arguments.should_save:
        _publish(settings, trainer, held_out, known)
    return folder


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
    epoch_steps = len(train) // settings.batch_size
    set_intervals(arguments, settings, epoch_steps)
    warmup, steps = warmup_steps(settings, len(train)), run_steps(arguments, epoch_steps)
    if 0 < steps <= warmup:
        epochs = f"--epochs {settings.epochs:g}, which are {steps}"
        length = f"--set max_steps={steps}" if arguments.max_steps > 0 else epochs
        raise UsageError(
            f"--warmup-epochs {settings.warmup_epochs:g} are {warmup} steps and leave nothing of "
            f"{length}: give fewer"
        )
    refuse_full_disk(settings, arguments, model)
    if settings.push_to_hub and arguments.should_save:  # refused now, not after days of training
        hub.reserve(settings.push_to_hub, private=settings.private or None)
    return AugSelfTrainer(settings, model=model, args=arguments, train_dataset=train)


def _build(
    settings: Settings,
    policy: Policy,
    images: Images | Stream,
    loss: type[AugSelfLoss],
    sizes: Sizes,
) -> Pretraining:
    """The method before the heads, so that it starts the same whatever heads there are."""
    encoder = build_encoder(settings.encoder, settings.size)
    if settings.method == FROZEN:
        method: Method = Frozen(encoder)
    else:
        kind = METHODS[settings.method]
        options = checked_options(settings.method, kind, settings.method_options)
        if kind.needs_labels:
            if len(images.classes) < 2:
                raise AugSelfError(
                    f"{settings.method} learning needs labels of two classes or more, and "
                    f"{images.inventory.source} gives {len(images.classes)}: {images.advice}"
                )
            options["classes"] = len(images.classes)
        method = kind(encoder, **options)
    augself = loss(encoder.dim, settings.augself, policy, settings.convention, sizes)
    return Pretraining(method, augself, preprocessing_for(settings))


def _with_joint_matcher(model: Pretraining, settings: Settings) -> Pretraining:
    """The last part, by the spec that the heads go by: a resumed run's is the one it began with."""
    if settings.matcher != JOINT:
        return model
    how = joint_settings(settings.matcher_options)
    spec, preprocessing = model.augself.spec, model.preprocessing
    joint = JointMatcher(model.method, spec, preprocessing, how, settings.seed)
    return Pretraining(model.method, model.augself, preprocessing, joint)


def preprocessing_for(settings: Settings) -> Preprocessing:
    """How the encoder of a run wants its images."""
    if settings.normalization is None:
        return preprocessing_of(settings.encoder, settings.size)
    return dataclasses.replace(PRETRAIN_DATA[settings.normalization], size=settings.size)


def _model_of(trainer: AugSelfTrainer) -> AugSelfModel:
    """What is published of a model under training; the weights are the same ones."""
    pretraining = trainer.model
    network, augself = pretraining.method.encoder.network, pretraining.augself
    model = AugSelfModel(network, augself.heads, augself.spec, pretraining.preprocessing)
    joint = pretraining.joint
    return model if joint is None else model.with_matcher(joint.matcher, joint.place.level)


def _publish(
    settings: Settings, trainer: AugSelfTrainer, held_out: ViewsDataset, known: Images | None
) -> None:
    """Evaluate, write settings.output/model, and push it where that was asked for."""
    model, asked = _model_of(trainer), held_out
    drawn = trainer.state.global_step * settings.batch_size
    # Of a stream they are read from the source, hence not twice.
    views = functools.cache(lambda: indexed(trainer.train_dataset, model.spec, settings.seed))
    if settings.matcher == JOINT:
        asked = calibrated(model, held_out)
    else:
        model = with_fitted_matcher(model, settings, views, drawn)
    model = with_uncertainty(model, settings, views, held_out, drawn)
    model = model.cpu().to(memory_format=torch.contiguous_format)
    pairs = measured_pairs(len(held_out))
    with stage(f"measuring {pairs} pairs of {len(held_out)} held-out images"):
        results = evaluate(model, held_out, known, pairs)
        results += matched_pairs(model, asked, measured_pairs(len(asked)))
    model.spec = with_matched(with_results(model.spec, results), results)
    folder = settings.output / MODEL
    write_folder(folder, model, settings, trainer, results)
    if settings.push_to_hub:
        try:
            with stage(f"publishing {settings.push_to_hub}"):
                push(folder, settings.push_to_hub, settings.private)
        except Stopped:  # the run itself has ended
            log.info("stopped; publish it: augself push %s %s", folder, settings.push_to_hub)


def measured_pairs(images: int) -> int:
    """Pairs of so many held-out images that the last evaluation looks at.

    More views of the same pictures say little more of others; a single picture says nothing.
    """
    return 0 if images < 2 else min(PAIRS, PAIRS_AN_IMAGE * images)
