"""Whether a run fits on the disk it writes to, asked before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from torch import Tensor
from transformers import TrainingArguments

from augself_hub.errors import AugSelfError
from training.run.objective import Pretraining
from training.run.settings import Settings

_MOMENTS = {"sgd": 1, "lars": 1, "adamw": 2}  # copies of a trained weight in the optimizer's state
_GRAPHS = 2  # the encoder in the model folder: its weights, and again as ONNX graphs


def bytes_of_a_run(settings: Settings, arguments: TrainingArguments, model: Pretraining) -> int:
    """What lies in --output when a run is at its largest: checkpoints, one more that is being
    written, and the model folder."""

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    trained = size(p for p in model.parameters() if p.requires_grad)
    matcher = 0 if model.joint is None else size(model.joint.parameters())
    weights = size(model.state_dict().values())
    moments = _MOMENTS[settings.optimizer] * (trained - matcher) + _MOMENTS["adamw"] * matcher
    checkpoint = weights + moments
    limit = arguments.save_total_limit or 0
    kept = 0 if arguments.save_strategy == "no" else limit + 1
    published = size(model.method.encoder.parameters()) + size(model.augself.parameters())
    published += matcher
    return kept * checkpoint + _GRAPHS * published


def refuse_full_disk(settings: Settings, arguments: TrainingArguments, model: Pretraining) -> None:
    """Raises AugSelfError where the disk of --output has no room for the run."""
    output = settings.output.resolve()
    there = next(place for place in (output, *output.parents) if place.exists())
    held = sum(p.stat().st_size for p in output.glob("checkpoint-*/*"))  # which make room
    needed, free = bytes_of_a_run(settings, arguments, model), shutil.disk_usage(there).free + held
    if needed > free:
        raise AugSelfError(
            f"the checkpoints and the model take {needed / 1e9:.2f} GB and {there} has "
            f"{free / 1e9:.2f} GB: make room, choose another --output, or write no checkpoints "
            "(--set save_strategy=no)"
        )
