"""The end of a run: its model folder, and the folder on the Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import platform
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from augself_hub import card, hub
from augself_hub.atomic import write_json
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.folder import (
    CURVES,
    EVALUATION,
    TRAINING_LOG,
    new_folder,
    read_spec,
    versions,
    write_manifest,
)
from augself_hub.modeling.model import AugSelfModel
from training.monitoring.awareness import Result
from training.monitoring.curves import curves
from training.run.settings import JOINT, Settings, command_line, source_name, weights_text
from training.run.trainer import AugSelfTrainer

log = logging.getLogger(__name__)
AFTERWARDS, JOINTLY = "fitted on the frozen encoder", "trained with the encoder"
PROTOCOL = (
    "Held-out pairs: two views each of images that were not trained on, drawn as in training. "
    "R^2 is against predicting no difference; accuracies stand beside the more frequent answer. "
    "The matcher is asked of the same pairs; coverage is against 95%. "
    "kNN: cosine similarity of raw frozen features, votes weighted by exp(s / 0.07). "
    "feature_std: mean standard deviation of normalised features times the root of their width; 0: "
    "all are alike."
)


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """Names what a run does after its last step as it begins, and says its seconds."""
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.1f} s", flush=True)


def write_folder(
    folder: Path,
    model: AugSelfModel,
    settings: Settings,
    trainer: AugSelfTrainer,
    results: list[Result],
) -> None:
    """Write a complete new model folder with its results, log, curves, graphs and card.

    The folder of a run that was extended since is kept beside it, as model-STEPS.
    """
    provenance = _provenance(settings, trainer, model.spec)
    model.spec = dataclasses.replace(model.spec, provenance=provenance)
    if folder.exists():
        earlier = folder.with_name(f"{folder.name}-{steps_of(folder)}")
        folder.rename(earlier)
        log.info("the model of the shorter run is now %s", earlier)
    with new_folder(folder) as new:
        with stage("writing weights, log and curves"):
            model.write_files(new)
            about = {"protocol": PROTOCOL, "seed": settings.seed, "versions": versions()}
            write_json(new / EVALUATION, {**about, "results": results}, nan=True)
            write_json(new / TRAINING_LOG, trainer.state.log_history, nan=True)
            curves(trainer.state.log_history, new / CURVES)
        parity = graphs(model, new)
        with stage("writing card and manifest"):
            card.write(new)
            write_manifest(new, parity)


def steps_of(folder: Path) -> int:
    """How many steps a model folder's run took; 0 where it does not say so."""
    steps = read_spec(folder).provenance.get("steps")
    return steps if isinstance(steps, int) else 0


def push(folder: Path, name: str, private: bool) -> None:
    """Publish a finished run's model folder.

    Raises:
        AugSelfError: the Hub did not take it; says how to try again.
    """
    try:
        log.info("published as %s", hub.push(folder, name, private=private or None))
    except ModelFolderError as error:
        again = f"augself push {folder} {name}{' --private' if private else ''}"
        raise AugSelfError(f"{error}. The model is complete in {folder}: {again}") from error


def graphs(model: AugSelfModel, folder: Path) -> dict[str, float]:
    """The ONNX graphs, where the export extra is installed; else the command that writes them."""
    if not (find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")):
        log.info("onnx/ left out: pip install 'augself-hub[export]', then augself export --model")
        return {}
    from augself_hub.modeling.export import write_graphs

    with stage("exporting the graphs and checking them against torch"):
        return write_graphs(model, folder)


def _provenance(settings: Settings, trainer: AugSelfTrainer, spec: Spec) -> dict[str, Any]:
    spent = trainer.spent()
    matcher = JOINTLY if settings.matcher == JOINT else AFTERWARDS
    return {
        "command": command_line(settings),
        "method": settings.method,
        "encoder": source_name(settings.encoder),
        "augself": weights_text(settings.augself) or "none",
        **({"matcher": matcher} if spec.matcher else {}),
        "data": source_name(settings.data),
        "images": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "seconds": round(spent.seconds),
        "cpu_seconds": round(spent.cpu_seconds),
        "device": f"{trainer.args.device.type} ({platform.machine()})",
        "processes": trainer.args.world_size,
        "date": datetime.date.today().isoformat(),
        "license": settings.license,
    }
