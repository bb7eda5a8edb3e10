"""One pretraining run, from a folder of images to a model folder.

`pretrain` puts the parts together: data, a method, the AugSelf loss, the trainer, and at the end
the model folder with what was measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from augself_hub import hub
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.modeling.convert import PRETRAIN_DATA
from augself_hub.modeling.encoders import Encoder, build_encoder, preprocessing_of
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import UNLABELED, Images, lines_of, open_images
from training.data.streams import PREFIX, Stream, StreamViews, held_out_images, open_stream
from training.methods import METHODS, Method, checked_options
from training.methods.frozen import Frozen
from training.monitoring.awareness import PAIRS, with_standard_errors
from training.monitoring.monitor import Monitor, evaluate, feature_spread, known_images
from training.run import checkpoints
from training.run.publishing import push, write_folder, write_json
from training.run.settings import FROZEN, NORMALIZATIONS, Settings, policy_of
from training.run.trainer import AugSelfTrainer, training_arguments

log = logging.getLogger(__name__)
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500
SETTINGS, MODEL = "settings.json", "model"
FREE = (  # settings that a resume may change: they decide nothing of how a run goes
    *("data", "output", "workers", "license", "max_skipped", "monitor_every"),
    *("report_to", "push_to_hub", "private"),
)


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
        """A batch of `data.collate` -> {"loss", "method", "spread", kind, ...}.

        All but loss are detached.
        """
        x1, x2 = self._views(crops, w1, w2)
        inputs = (x1, x2, labels) if self.method.needs_labels else (x1, x2)
        loss, y1, y2 = self.method(*inputs)
        augself, parts = self.augself(y1, y2, w1, w2)
        spread = feature_spread(y1.detach())
        return {"loss": loss + augself, "method": loss.detach(), "spread": spread, **parts}

    @torch.no_grad()
    def _views(self, crops: Tensor, w1: Parameters, w2: Parameters) -> tuple[Tensor, Tensor]:
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
    checkpoint = _check_output(settings, resume)
    begun = (settings.output / SETTINGS).exists()
    policy = policy_of(settings)
    set_seed(settings.seed)
    train, held_out = _datasets(settings, policy)
    if begun:
        _check_settings(settings, train)
    trainer = _trainer(settings, _build(settings, policy, train.images, loss), train)
    known = known_images(train.images, held_out.images, settings.seed)
    if settings.monitor_every:
        trainer.add_callback(_monitor(settings, trainer, held_out, known))
    if trainer.args.should_save and not begun:
        write_json(settings.output / SETTINGS, _decisive(settings, train))
    trainer.args.distributed_state.wait_for_everyone()
    _refuse_split_output(settings.output)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interrupted:
        log.info("stopped after a checkpoint; continue with --resume")
        return settings.output
    if trainer.args.should_save:
        _publish(settings, trainer, held_out, known)
    return settings.output / MODEL


def _trainer(
    settings: Settings, model: Pretraining, train: ViewsDataset | StreamViews
) -> AugSelfTrainer:
    arguments = training_arguments(settings, settings.output, len(train))
    if settings.push_to_hub and arguments.should_save:  # refused now, not after days of training
        hub.reserve(settings.push_to_hub, private=settings.private or None)
    return AugSelfTrainer(
        model=model, args=arguments, train_dataset=train, max_skipped=settings.max_skipped
    )


def _check_output(settings: Settings, resume: bool) -> str | None:
    """The checkpoint to continue from."""
    output = settings.output
    if not resume and output.exists():
        raise AugSelfError(f"{output} exists: choose another --output, or continue with --resume")
    if not (output / SETTINGS).exists() and any(output.glob("[!.]*")):
        raise AugSelfError(f"{output} exists and is no run: choose another --output")
    checkpoint = checkpoints.newest_valid(output)
    if checkpoint is not None:
        return str(checkpoint)
    if any(output.glob("checkpoint-*")):
        raise AugSelfError(f"no valid checkpoint in {output}: remove it and start without --resume")
    if resume:
        log.info("nothing to continue in %s: the run begins", output)
    return None


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
    if settings.data.startswith(PREFIX):
        return _streamed(settings, policy)
    if settings.epoch_images is not None:
        raise UsageError(f"--epoch-images would have no effect: {settings.data} is no stream")
    images = _images(settings.data, settings.classes)
    if _needs_labels(settings):
        images = _labelled(images)
    if settings.held_out:
        held_out = _images(settings.held_out, settings.classes)
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
    )
    if len(stream) < settings.batch_size:
        raise UsageError(
            f"--epoch-images {len(stream)} is less than one batch of {settings.batch_size}: "
            "lower --batch-size or give more"
        )
    if settings.held_out:
        held_out = _images(settings.held_out, None)
    else:
        held_out = held_out_images(stream, HELD_OUT_MOST)
    train = StreamViews(stream, policy, settings.seed)
    train.check_readable()
    return train, ViewsDataset(held_out, policy, settings.seed)


def _needs_labels(settings: Settings) -> bool:
    return settings.method in METHODS and METHODS[settings.method].needs_labels


def _images(source: str, classes: Path | None) -> Images:
    images = open_images(source)
    return images if classes is None else images.only(lines_of(classes))


def _labelled(images: Images) -> Images:
    """The images with a label."""
    kept = [i for i, label in enumerate(images.labels) if label != UNLABELED]
    if not kept:
        raise AugSelfError(
            "supervised learning needs labels: sort the images into class sub-folders"
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


def _build(
    settings: Settings, policy: Policy, images: Images | Stream, loss: type[AugSelfLoss]
) -> Pretraining:
    """The method before the heads, so that it starts the same whatever heads there are."""
    encoder = build_encoder(settings.encoder, settings.size)
    method = _method(settings, encoder, images)
    augself = loss(encoder.dim, settings.augself, policy, settings.convention)
    return Pretraining(method, augself, preprocessing_for(settings))


def preprocessing_for(settings: Settings) -> Preprocessing:
    """How the encoder of a run wants its images.

    Raises:
        UsageError: an unknown normalization.
    """
    if settings.normalization is None:
        return preprocessing_of(settings.encoder, settings.size)
    if settings.normalization not in NORMALIZATIONS:
        raise UsageError(
            f"unknown normalization {settings.normalization!r}: use {', '.join(NORMALIZATIONS)}"
        )
    return dataclasses.replace(PRETRAIN_DATA[settings.normalization], size=settings.size)


def _method(settings: Settings, encoder: Encoder, images: Images | Stream) -> Method:
    name = settings.method
    if name == FROZEN:
        return Frozen(encoder)
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: use {', '.join(METHODS)}")
    options = checked_options(name, METHODS[name], settings.method_options)
    if METHODS[name].needs_labels:
        if len(images.classes) < 2:
            raise AugSelfError(
                f"{name} learning needs labels of two classes or more: sort the images into class "
                "sub-folders"
            )
        options["classes"] = len(images.classes)
    return METHODS[name](encoder, **options)


def _decisive(settings: Settings, train: ViewsDataset | StreamViews) -> dict[str, Any]:
    """What decides how a run goes: settings.json of the run, and what --resume compares."""
    names = "\n".join(train.images.names)
    return {
        **json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "images": len(train),
        "images_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _check_settings(settings: Settings, train: ViewsDataset | StreamViews) -> None:
    """Refuse to continue a run with other settings; where the files lie does not matter."""
    before = json.loads((settings.output / SETTINGS).read_text())
    for name, value in _decisive(settings, train).items():
        if name not in FREE and before.get(name) != value:
            raise AugSelfError(
                f"the run in {settings.output} was started with {name} = {before.get(name)}, not "
                f"{value}: resume it with the settings in {SETTINGS}"
            )


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
    results = evaluate(model, held_out, known, PAIRS)
    model.spec = with_standard_errors(model.spec, results)
    folder = settings.output / MODEL
    write_folder(folder, model, settings, trainer, results)
    if settings.push_to_hub:
        push(folder, settings.push_to_hub, settings.private)
