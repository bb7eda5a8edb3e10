"""AugSelfTrainer: transformers.Trainer made exact for self-supervised runs.

What differs from the stock trainer, and why:

- samples are asked for as (epoch, index), so a resumed run sees the views it would have seen;
- a checkpoint is built beside the others, ends with a manifest of sha256 and appears by one rename;
  a resume takes the newest checkpoint that matches its manifest;
- SGD decays every weight, biases included, and some groups keep their learning rate, as in the
  papers;
- target networks and queues move after the optimizer's step;
- SIGTERM is honoured between two steps, with a checkpoint;
- a run that has nothing to gain any more stops and says so (monitor.Alarm).
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from augself_hub.errors import AugSelfError, Diverged, UsageError
from training.data.batches import KeyedSampler, ViewsDataset, collate
from training.data.streams import StreamViews
from training.methods.layers import processes, reduced
from training.monitoring.monitor import Alarm
from training.run import checkpoints
from training.run.memory import keep_freed_memory
from training.run.settings import Settings

log = logging.getLogger(__name__)
MOMENTUM = 0.9
# Of a 3x3 convolution of stride 2 on a map of one pixel, which a ResNet has below this many pixels,
# torch 2.14 reads the bf16 weight gradient from memory nobody wrote, on CPUs with AVX512_BF16.
LEAST_BF16 = 32
STAGING = ".saving"


def training_arguments(settings: Settings, output: Path, images: int) -> TrainingArguments:
    """transformers' TrainingArguments of a run; every process has left its checks when it returns.

    Raises:
        UsageError: a `--set` field that does not exist or that another option decides, a batch that
            cannot be shared out.
    """
    own = _decided(settings, output)
    for name in settings.arguments:
        if name in own or name not in TrainingArguments.__dataclass_fields__:
            known = "decided by another option" if name in own else "not a training argument"
            raise UsageError(f"--set {name} would have no effect: it is {known}")
    changeable = _changeable(settings, steps=max(1, images // settings.batch_size))
    try:
        arguments = TrainingArguments(**own, **{**changeable, **settings.arguments})
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set: {error}") from error
    _check_reporters(arguments.report_to)
    if arguments.bf16 and arguments.use_cpu and settings.size < LEAST_BF16:
        raise UsageError(
            f"--set bf16=True on a CPU needs --size {LEAST_BF16} or more, not {settings.size}: use "
            "a larger --size or leave bf16 out"
        )
    if arguments.save_total_limit == 1:
        raise UsageError("--set save_total_limit=1 leaves nothing to fall back to: use 2 or more")
    arguments.per_device_train_batch_size = _share(settings.batch_size, arguments)
    arguments.distributed_state.wait_for_everyone()
    return arguments


def _decided(settings: Settings, output: Path) -> dict[str, Any]:
    """What other options say, or what our trainer needs."""
    return {
        "output_dir": str(output),
        "learning_rate": settings.base_lr * settings.batch_size / 256,
        "weight_decay": settings.weight_decay,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,  # shared out below
        "dataloader_num_workers": settings.workers,
        "seed": settings.seed,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "logging_nan_inf_filter": False,
        "max_grad_norm": 0.0,
        "disable_tqdm": True,
        "report_to": list(settings.report_to),
    }


def _changeable(settings: Settings, steps: int) -> dict[str, Any]:
    """What --set may change; `steps` are an epoch's."""
    return {
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_persistent_workers": settings.workers > 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "steps",
        "logging_steps": max(1, min(50, steps)),
        "save_strategy": "steps",
        "save_steps": steps,
        "save_total_limit": 2,
    }


def _check_reporters(names: list[str]) -> None:
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UsageError(f"unknown reporter {name!r}: use none, {known}")
        if name not in get_available_reporting_integrations():
            raise UsageError(f"--report-to {name}: its package is not installed")


def _share(batch: int, arguments: TrainingArguments) -> int:
    """What one process takes of a batch at a time."""
    turns = arguments.gradient_accumulation_steps
    share, rest = divmod(batch, arguments.world_size * turns)
    if rest:
        raise UsageError(
            f"--batch-size {batch} cannot be shared out to {arguments.world_size} processes in "
            f"{turns} accumulated parts: give a multiple of {arguments.world_size * turns}"
        )
    return share


class AugSelfTrainer(Trainer):
    """Trains a `Pretraining`.

    Attributes:
        interrupted: SIGTERM stopped the run after a checkpoint.
    """

    train_dataset: ViewsDataset | StreamViews

    def __init__(
        self, model: nn.Module, args: TrainingArguments, max_skipped: float = 0.1, **kwargs: Any
    ) -> None:
        if processes() > 1 and args.device.type == "cuda":  # SyncBN does not exist on CPUs
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if args.device.type == "cpu":
            keep_freed_memory()
        super().__init__(model, args, data_collator=collate, **kwargs)
        self.model.to(memory_format=torch.channels_last)
        self.model_accepts_loss_kwargs = False
        self.interrupted = False
        batch = self.get_total_train_batch_size(self.args)
        share = self.args.per_device_train_batch_size
        self.sampler = self.train_dataset.sampler(self.args.seed, batch, share)
        self._parts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._batches = 0
        self._skipped: set[str] = set()
        self.max_skipped = max_skipped
        self.remove_callback(PrinterCallback)
        self.add_callback(_MethodSteps(self))
        self.add_callback(_StopOnSigterm(self))
        frozen = not any(p.requires_grad for p in self.model.method.encoder.parameters())
        self.alarm = Alarm(self.model.augself.spec, frozen)
        self.add_callback(_StopOnAlarm(self.alarm))
        self.add_callback(_Progress(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> KeyedSampler:
        return self.sampler

    def get_train_dataloader(self) -> Any:
        """Stock loaders draw workers' seeds from torch's generator, more often on a resume."""
        loader = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator()
        return loader

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self._report_skipped(inputs.pop("skipped"))
        outputs = model(**inputs)
        parts = {name: value for name, value in outputs.items() if name != "loss"}
        for name, value in parts.items():
            self._parts[name] = self._parts[name] + value
        self._batches += 1
        self.alarm.note(parts)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _report_skipped(self, skipped: list[str]) -> None:
        """Name everything that could not be decoded, once; stop the run where it is much."""
        for name in sorted(set(skipped) - self._skipped):
            log.warning("skipped %s: it cannot be decoded", name)
        self._skipped |= set(skipped)
        lost = self.train_dataset.lost(self._skipped, max(1.0, self.state.epoch or 0.0))
        if lost > self.max_skipped:
            raise AugSelfError(
                f"{lost:.1%} of the data cannot be decoded, more than {self.max_skipped:.1%}: mend "
                "or remove what was skipped, or allow more by --max-skipped"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The stock log, and the mean of each part of the loss since the last one."""
        if "loss" in logs and self._batches:
            logs |= {name: self._mean(v) for name, v in sorted(self._parts.items())}
            self._parts.clear()
            self._batches = 0
        _refuse_nan(logs.get("loss", 0.0))
        super().log(logs, start_time)

    def _mean(self, total: Tensor) -> float:
        return float(reduced(total.clone())) / self._batches / processes()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """SGD with momentum; weight decay on every weight; the second group keeps its rate."""
        method = self.model.method
        constant = {id(p) for n in method.constant_lr for p in getattr(method, n).parameters()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [[p for p in trained if (id(p) in constant) == kept] for kept in (False, True)]
        self.optimizer = torch.optim.SGD(
            [{"params": group} for group in groups],
            lr=self.args.learning_rate,
            momentum=MOMENTUM,
            weight_decay=self.args.weight_decay,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Cosine to 0 per step; constant for the second group."""

        def cosine(step: int) -> float:
            return (1 + math.cos(math.pi * min(1.0, step / num_training_steps))) / 2

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, [cosine, lambda step: 1.0])
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights only: contiguous (a channels_last weight cannot be saved), and no pickle.

        Every process is asked; BN's statistics are each one's own, and the first one's are kept.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in (state_dict or self.model.state_dict()).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @property
    def _staging(self) -> Path:
        return Path(self.args.output_dir) / STAGING

    def _get_output_dir(self, trial: Any) -> str:
        """Where the stock code writes checkpoints: apart from the finished ones."""
        return str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A new checkpoint appears whole or not at all; the ones before it are kept until then."""
        _refuse_nan(float(self._tr_loss))
        name = f"checkpoint-{self.state.global_step}"
        try:
            self._stage_checkpoint(model, trial)
            if self.args.should_save:
                checkpoints.publish(self._staging / name, self.args.save_total_limit)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is each of them
            raise AugSelfError(
                f"{name} cannot be saved ({error}): make room, then continue with --resume from "
                "the one before"
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)

    def _stage_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)  # a killed run's
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()


def _refuse_nan(loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            "the loss is not a number any more: lower --base-lr or the weights in --augself"
        )


class _MethodSteps(TrainerCallback):
    """Lets the method act around the optimizer's step, and keeps the sampler's epoch right."""

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stock set_epoch does not reach a sampler that is wrapped to skip batches."""
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.model.method.before_step(state.epoch or 0.0)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.model.method.after_step(state.global_step / state.max_steps)


class _StopOnSigterm(TrainerCallback):
    """SIGTERM: a checkpoint after the step at hand, then a normal end.

    It reaches each process at its own moment, so they agree after every step.
    """

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer
        self.asked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = signal.signal(signal.SIGTERM, self._ask)
        self.group = dist.new_group(backend="gloo") if processes() > 1 else None

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def _agreed(self) -> bool:
        if self.group is None:
            return self.asked
        asked = torch.tensor(float(self.asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
        return bool(asked)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._agreed() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.trainer.interrupted = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.signal(signal.SIGTERM, self.before)


class _StopOnAlarm(TrainerCallback):
    """At the end of every whole epoch, asks whether the run is worth going on."""

    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch >= 1:
            self.alarm.judge()


class _Progress(TrainerCallback):
    """A bar with loss and images a second on a terminal, a plain line per log elsewhere."""

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=not (sys.stderr.isatty() and state.is_local_process_zero),
        )
        self.since, self.step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs or not state.is_local_process_zero:
            return
        now = time.monotonic()
        images = (state.global_step - self.step) * self.trainer.get_total_train_batch_size(args)
        rate = images / max(now - self.since, 1e-9)
        self.since, self.step = now, state.global_step
        parts = {k: v for k, v in logs.items() if k in ("loss", "method", *self._kinds())}
        text = "  ".join(f"{name} {float(value):.3f}" for name, value in parts.items())
        text += f"  {rate:.0f} images/s"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            print(f"step {state.global_step}/{state.max_steps}  {text}", flush=True)

    def _kinds(self) -> tuple[str, ...]:
        return tuple(self.trainer.model.augself.heads)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
