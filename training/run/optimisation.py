"""The optimizer of a run and the learning rate's schedule.

The papers' is SGD with momentum 0.9 that decays every weight, biases included, on a cosine. AdamW
and LARS (arXiv:1708.03888, what SimCLR and BYOL take for batches of thousands) leave biases and
norms undecayed, as their papers do; LARS does not adapt their rate either.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from augself_hub.errors import MissingExtra
from training.methods.method import Method
from training.run.settings import Settings

MOMENTUM = 0.9


def parameter_groups(model: nn.Module, method: Method, everywhere: bool) -> list[dict[str, Any]]:
    """The trained weights: those on the schedule, then those whose rate is not decayed.

    Args:
        method: names the parts of the latter kind.
        everywhere: whether biases and norms decay as well; else they follow in groups of their own.
    """
    kept = {id(p) for n in method.constant_lr for p in getattr(method, n).parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    halves = [[p for p in trained if (id(p) in kept) == constant] for constant in (False, True)]
    if everywhere:
        return [{"params": half} for half in halves]
    return [
        {
            "params": [p for p in half if (p.ndim > 1) == wide],
            **({} if wide else {"weight_decay": 0.0}),
        }
        for half in halves
        for wide in (True, False)
    ]


def optimizer_of(
    settings: Settings, arguments: TrainingArguments, model: nn.Module, method: Method
) -> torch.optim.Optimizer:
    """Raises MissingExtra: lars without timm."""
    groups = parameter_groups(model, method, everywhere=settings.optimizer == "sgd")
    rate: Any = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, **rate)
    if settings.optimizer == "adamw":
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        return torch.optim.AdamW(groups, betas=betas, eps=arguments.adam_epsilon, **rate)
    try:
        from timm.optim.lars import Lars
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "timm", "train") from error
    return Lars(groups, momentum=MOMENTUM, **rate)


def scheduler_of(
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup: int,
    epoch_steps: int = 1,
) -> LambdaLR:
    """Per step: up from 0 in `warmup` steps, then a cosine to 0 at `steps`, or constant.

    Along the cosine it moves at every step, or, with schedule_by=epoch, at every epoch's first.
    The second half of the groups rises with the others and then keeps its rate.
    """

    def factor(step: int, constant: bool) -> float:
        if step < warmup:
            return step / warmup
        if constant:
            return 1.0
        reached = max(warmup, reached_step(settings, step, epoch_steps))
        return (1 + math.cos(math.pi * min(1.0, (reached - warmup) / (steps - warmup)))) / 2

    count, flat = len(optimizer.param_groups), settings.schedule == "constant"
    constant = [flat or group >= count // 2 for group in range(count)]
    return LambdaLR(optimizer, [partial(factor, constant=each) for each in constant])


def reached_step(settings: Settings, step: int, epoch_steps: int) -> int:
    """Where a run is on its schedules: at this step, or at the first one of its epoch."""
    return step // epoch_steps * epoch_steps if settings.schedule_by == "epoch" else step


def warmup_steps(settings: Settings, images: int) -> int:
    return round(settings.warmup_epochs * (images // settings.batch_size))
