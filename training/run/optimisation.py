"""The optimizer of a run and the learning rate's schedule.

The papers' is SGD with momentum 0.9 that decays every weight, biases included, on a cosine. AdamW
and LARS (arXiv:1708.03888, what SimCLR and BYOL take for batches of thousands) leave biases and
norms undecayed, as their papers do; LARS does not adapt their rate either.

A joint matcher has an AdamW of its own, as the one that is fitted on a frozen encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from augself_hub.errors import MissingExtra
from training.methods.joint import JointMatcher
from training.methods.matcher import CLIP
from training.methods.method import Method
from training.run.settings import Settings

MOMENTUM = 0.9
RISE = 0.15  # of a run: the share in which a joint matcher's rate rises


class WithMatcher(torch.optim.Optimizer):
    """Two optimizers that step as one: the run's, and the matcher's own.

    Groups are those of both, the matcher's last; a checkpoint holds the states of both.

    Args:
        run, matcher: over parameters that they do not share.
        clip: largest norm of the matcher's gradient.
    """

    def __init__(
        self, run: torch.optim.Optimizer, matcher: torch.optim.Optimizer, clip: float
    ) -> None:
        self.run, self.matcher, self.clip = run, matcher, clip  # groups and states are theirs
        self.defaults = run.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [*self.run.param_groups, *self.matcher.param_groups]

    @property
    def state(self) -> Mapping[Tensor, Any]:  # type: ignore[override]
        return {**self.run.state, **self.matcher.state}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.run.zero_grad(set_to_none)
        self.matcher.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.matcher.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.clip)
        self.run.step()
        self.matcher.step()

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run.state_dict(), "matcher": self.matcher.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict["run"])
        self.matcher.load_state_dict(state_dict["matcher"])


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
    settings: Settings,
    arguments: TrainingArguments,
    model: nn.Module,
    method: Method,
    joint: JointMatcher | None = None,
) -> torch.optim.Optimizer:
    """Of what is trained in model; a joint matcher is asked for apart, whichever it is.

    Raises:
        MissingExtra: lars without timm.
    """
    if joint is not None:
        own, others = joint.settings, nn.ModuleList([c for c in model.children() if c is not joint])
        matcher = torch.optim.AdamW(joint.parameters(), own.rate, weight_decay=own.decay)
        run = optimizer_of(settings, arguments, others, method)
        return WithMatcher(run, matcher, clip=CLIP * own.weight)
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
    for group in groups:  # by itself timm's adapts the rate of what decays, so with decay 0 none
        group["always_adapt"] = "weight_decay" not in group
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
    The second half of the groups rises with the others and then keeps its rate. A matcher's rise
    for RISE of the run, at least as long as the others.
    """

    def factor(step: int, constant: bool, rise: int) -> float:
        if step < rise:
            return step / rise
        if constant:
            return 1.0
        reached = max(rise, reached_step(settings, step, epoch_steps))
        return (1 + math.cos(math.pi * min(1.0, (reached - rise) / (steps - rise)))) / 2

    own = len(optimizer.matcher.param_groups) if isinstance(optimizer, WithMatcher) else 0
    count, flat = len(optimizer.param_groups) - own, settings.schedule == "constant"
    factors: list[Callable[[int], float]] = [
        partial(factor, constant=flat or group >= count // 2, rise=warmup) for group in range(count)
    ]
    slower = max(warmup, round(RISE * steps))
    factors += [partial(factor, constant=flat, rise=slower)] * own
    return LambdaLR(optimizer, factors)


def reached_step(settings: Settings, step: int, epoch_steps: int) -> int:
    """Where a run is on its schedules: at this step, or at the first one of its epoch."""
    return step // epoch_steps * epoch_steps if settings.schedule_by == "epoch" else step


def run_steps(arguments: TrainingArguments, epoch_steps: int) -> int:
    """Optimizer steps of a whole run."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * epoch_steps)


def warmup_steps(settings: Settings, images: int) -> int:
    return round(settings.warmup_epochs * (images // settings.batch_size))
