"""One pretraining run, from a folder of images to a model folder.

`pretrain` puts the parts together: data, a method, the AugSelf loss, the trainer, and at the end
the model folder with what was measured.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from augself_hub import card
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import EVALUATION, TRAINING_LOG, new_folder, versions, write_manifest
from augself_hub.modeling.encoders import Encoder, build_encoder, preprocessing_of
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training import checkpoints
from training.data import ViewsDataset
from training.heads import FROZEN, Frozen
from training.methods import METHODS, Method
from training.monitor import curves, feature_spread, held_out_pairs, with_standard_errors
from training.settings import Settings, command_line, source_name, weights_text
from training.sources import UNLABELED, Images, open_images
from training.trainer import AugSelfTrainer, training_arguments

log = logging.getLogger(__name__)
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500
SETTINGS, MODEL = "settings.json", "model"
FREE = ("data", "output", "workers", "license")


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


def pretrain(settings: Settings, resume: bool = False) -> Path:
    """Run a pretraining and write its model folder.

    Args:
        resume: continue from the newest valid checkpoint in `settings.output`.

    Returns:
        The model folder, settings.output/model, which the first of several processes writes; or
        settings.output when SIGTERM stopped the run after a checkpoint.

    Raises:
        UsageError: an unknown method, encoder, augmentation or argument.
        AugSelfError: no usable images, an output that exists, other settings than those of the
            run to resume, a run that diverged or collapsed.
    """
    checkpoint = _check_output(settings, resume)
    policy = Policy(size=settings.size).with_kinds(settings.augself)
    set_seed(settings.seed)
    train, held_out = _datasets(settings, policy)
    if resume:
        _check_settings(settings, train)
    model = _build(settings, policy, train.images)
    trainer = AugSelfTrainer(
        model=model,
        args=training_arguments(settings, settings.output, len(train)),
        train_dataset=train,
    )
    if trainer.args.should_save and not resume:
        _write_json(settings.output / SETTINGS, _decisive(settings, train))
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interrupted:
        log.info("stopped after a checkpoint; continue with --resume")
        return settings.output
    if trainer.args.should_save:
        _publish(settings, trainer, held_out)
    return settings.output / MODEL


def _check_output(settings: Settings, resume: bool) -> str | None:
    output = settings.output
    if resume:
        checkpoint = checkpoints.newest_valid(output)
        if checkpoint is None:
            raise AugSelfError(
                f"no valid checkpoint in {output}: remove it and start without --resume"
            )
        return str(checkpoint)
    if output.exists():
        raise AugSelfError(f"{output} exists: choose another --output, or continue with --resume")
    return None


def _datasets(settings: Settings, policy: Policy) -> tuple[ViewsDataset, ViewsDataset]:
    images = _images(settings.data, settings.classes)
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


def _images(source: str, classes: Path | None) -> Images:
    images = open_images(source)
    return images if classes is None else images.only(_lines(classes))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """Training images, and a keyed 5% held out, at most 500; none of fewer than 20 images."""
    count = min(HELD_OUT_MOST, round(HELD_OUT_SHARE * len(images))) if len(images) >= 20 else 0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return images.at(sorted(order[count:])), images.at(order[:count])


def _build(settings: Settings, policy: Policy, images: Images) -> Pretraining:
    encoder = build_encoder(settings.encoder, settings.size)
    augself = AugSelfLoss(encoder.dim, settings.augself, policy, settings.convention)
    preprocessing = preprocessing_of(settings.encoder, settings.size)
    return Pretraining(_method(settings.method, encoder, images), augself, preprocessing)


def _method(name: str, encoder: Encoder, images: Images) -> Method:
    if name == FROZEN:
        return Frozen(encoder)
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: use {', '.join(METHODS)}")
    if not METHODS[name].needs_labels:
        return METHODS[name](encoder)
    if UNLABELED in images.labels or len(images.classes) < 2:
        raise AugSelfError("supervised needs labels: sort the images into class sub-folders")
    return METHODS[name](encoder, classes=len(images.classes))  # type: ignore[call-arg]


def _decisive(settings: Settings, train: ViewsDataset) -> dict[str, Any]:
    """What decides how a run goes: settings.json of the run, and what --resume compares."""
    names = "\n".join(train.images.names)
    return {
        **json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "images": len(train),
        "images_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _check_settings(settings: Settings, train: ViewsDataset) -> None:
    """Refuse to continue a run with other settings; where the files lie does not matter."""
    before = json.loads((settings.output / SETTINGS).read_text())
    for name, value in _decisive(settings, train).items():
        if name not in FREE and before.get(name) != value:
            raise AugSelfError(
                f"the run in {settings.output} was started with {name} = {before.get(name)}, not "
                f"{value}: resume it with the settings in {SETTINGS}"
            )


def _publish(settings: Settings, trainer: AugSelfTrainer, held_out: ViewsDataset) -> None:
    """Evaluate on held-out pairs and write settings.output/model."""
    pretraining: Pretraining = trainer.model
    network = pretraining.method.encoder.network
    spec = dataclasses.replace(
        pretraining.augself.spec,
        provenance=_provenance(settings, trainer, len(trainer.train_dataset)),
    )
    model = AugSelfModel(network, pretraining.augself.heads, spec, pretraining.preprocessing)
    model = model.cpu().to(memory_format=torch.contiguous_format).eval()
    results = held_out_pairs(model, held_out)
    model.spec = with_standard_errors(spec, results)
    folder = settings.output / MODEL
    if folder.exists():  # an earlier --resume of the same run finished already
        raise AugSelfError(f"{folder} exists: remove it to write it again")
    with new_folder(folder) as stage:
        model.write_files(stage)
        _write_json(stage / EVALUATION, _evaluation(results, settings.seed))
        _write_json(stage / TRAINING_LOG, trainer.state.log_history)
        curves(trainer.state.log_history, stage / "curves.png")
        parity = _graphs(model, stage)
        card.write(stage)
        write_manifest(stage, parity)


def _evaluation(results: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    protocol = (
        "Held-out pairs: two views each of images that were not trained on, drawn as in training. "
        "R^2 is against predicting no difference; accuracies stand beside the more frequent answer."
    )
    return {"protocol": protocol, "seed": seed, "versions": versions(), "results": results}


def _graphs(model: AugSelfModel, folder: Path) -> dict[str, float]:
    """The ONNX graphs, where the export extra is installed; else the command that writes them."""
    if not (find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")):
        log.info("onnx/ left out: pip install 'augself-hub[export]', then augself export --model")
        return {}
    from augself_hub.modeling.export import write_graphs

    return write_graphs(model, folder)


def _provenance(settings: Settings, trainer: AugSelfTrainer, images: int) -> dict[str, Any]:
    return {
        "command": command_line(settings),
        "method": settings.method,
        "encoder": settings.encoder,
        "augself": weights_text(settings.augself) or "none",
        "data": source_name(settings.data),
        "images": images,
        "steps": trainer.state.global_step,
        "seconds": round(trainer.state.log_history[-1]["train_runtime"]),  # of the last start
        "device": f"{trainer.args.device.type} ({platform.machine()})",
        "processes": trainer.args.world_size,
        "date": datetime.date.today().isoformat(),
        "license": settings.license,
    }


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
