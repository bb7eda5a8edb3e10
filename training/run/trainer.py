"""AugSelfTrainer: transformers.Trainer made exact for self-supervised runs.

What differs from the stock trainer, and why:

- samples are asked for as (epoch, index), so a resumed run sees the views it would have seen;
- a checkpoint is built beside the others, ends with a manifest of sha256 and appears by one rename;
  a resume takes the newest checkpoint that matches its manifest;
- some parts of a method keep their learning rate, as in the papers (see `optimisation`);
- target networks and queues move after the optimizer's step;
- SIGTERM is honoured between two steps, with a checkpoint, where the run has the main thread;
- a run that has nothing to gain any more stops and says so (monitor.Alarm).
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from augself_hub.configs import renamed
from augself_hub.errors import AugSelfError, Diverged
from augself_hub.progress import bar, shows_bars
from training.data.batches import ViewsDataset, collate
from training.data.streams import StreamViews
from training.methods.layers import all_reduce, all_union, world_size
from training.monitoring.monitor import Alarm
from training.run import checkpoints
from training.run.arguments import on_one_gpu
from training.run.memory import keep_freed_memory
from training.run.objective import Pretraining
from training.run.optimisation import optimizer_of, reached_step, scheduler_of, warmup_steps
from training.run.settings import Settings

log = logging.getLogger(__name__)
STAGING = ".saving"


class AugSelfTrainer(Trainer):
    """Trains a `Pretraining`.

    Attributes:
        interrupted: SIGTERM stopped the run after a checkpoint.
    """

    train_dataset: ViewsDataset | StreamViews
    model: Pretraining

    def __init__(
        self, settings: Settings, model: Pretraining, args: TrainingArguments, **kwargs: Any
    ) -> None:
        on_one_gpu(args)
        if world_size() > 1 and args.device.type == "cuda":  # SyncBN does not exist on CPUs
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
        self._counted: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = {}  # of a stream
        self._uncounted: set[Any] = set()  # of these, what other processes do not know of
        self._untold: set[str] = set()  # of these, what other processes do not know of
        self._bad: Tensor | None = None
        self.settings = settings
        self.epoch_steps = max(1, len(self.train_dataset) // batch)
        self.earlier = checkpoints.Spent()  # by the starts before this one
        self._started = checkpoints.Spent(time.monotonic(), time.process_time())
        self.remove_callback(PrinterCallback)
        self.add_callback(_MethodSteps(self))
        self._sigterm = _StopOnSigterm(self)
        self.add_callback(self._sigterm)
        frozen = not any(p.requires_grad for p in self.model.method.encoder.parameters())
        self.alarm = Alarm(self.model.augself.spec, frozen)
        self.add_callback(_StopOnAlarm(self.alarm))
        self.add_callback(_Progress(self))
        if isinstance(self.train_dataset, StreamViews):
            self.add_callback(_CountShards(self))
        self._held = checkpoints.hold(settings.output) if self.args.should_save else None

    def train(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().train(*arguments, **named)
        finally:
            self._sigterm.restore()
            if self._held is not None:
                self._held.close()

    @property
    def asked_to_stop(self) -> bool:
        """Whether SIGTERM came, also where no step was left that it could be heeded after."""
        return self._sigterm.asked

    def get_train_dataloader(self) -> Any:
        """The stock loader, but for our order, and a generator of its own: the stock one draws the
        workers' seeds from torch's, more often on a resume.
        """
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
            ),
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self._report_skipped(inputs.pop("skipped"))
        self._uncounted.update(map(tuple, inputs.pop("counted", ())))
        outputs = model(**inputs)
        parts = {name: value for name, value in outputs.items() if name != "loss"}
        for name, value in parts.items():
            self._parts[name] = self._parts[name] + value
        self._batches += 1
        self.alarm.note(parts)
        # The first step at which each output is no number, without waiting for the device.
        values = torch.stack([value.detach().float() for value in outputs.values()])
        bad = torch.where(values.isfinite(), math.inf, float(self.state.global_step + 1))
        self._bad = bad if self._bad is None else torch.minimum(self._bad, bad)
        self._outputs = list(outputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _report_skipped(self, skipped: list[str]) -> None:
        """Name everything that could not be decoded, once; stop the run where it is much."""
        new = set(skipped) - self._skipped
        for name in sorted(new):
            log.warning("skipped %s: it cannot be decoded", name)
        self._skipped |= new
        self._untold |= new
        self._refuse_lost()

    def count_shards(self) -> dict[str, Any]:
        """What was in the shards of a stream that were read to their end since the run was
        started, each counted once; nothing of a list. Every process is asked.
        """
        known = len(self._counted)
        told: set[Any] = all_union(self._uncounted)
        for shard, some, others in told:
            self._counted.setdefault(shard, (some, others))
        self._uncounted.clear()
        images = 0
        left_out = Counter[str]()
        for some, others in self._counted.values():
            images += some
            left_out.update(dict(others))
        if len(self._counted) > known and self.args.should_save:
            reasons = ", ".join(f"{why} {count}" for why, count in left_out.most_common())
            log.info(
                "%d shards are read: %d images; left out: %s",
                len(self._counted),
                images,
                reasons or "nothing",
            )
        if not self._counted:
            return {}
        return {
            "shards": len(self._counted),
            "found": images + left_out.total(),
            "images": images,
            "left_out": dict(left_out.most_common()),
        }

    def _refuse_lost(self) -> None:
        """Raises AugSelfError where more than --max-skipped cannot be decoded."""
        lost = self.train_dataset.lost(self._skipped, max(1.0, self.state.epoch or 0.0))
        allowed = self.settings.max_skipped
        if lost > allowed:
            raise AugSelfError(
                f"{lost:.1%} of the data cannot be decoded, more than {allowed:.1%}: mend "
                "or remove what was skipped, or allow more by --max-skipped"
            )

    def _refuse_nan(self, loss: float) -> None:
        """Raises Diverged, with the part that went first and what that tells about the cause."""
        if math.isfinite(loss) or self._bad is None:
            return
        first = dict(zip(self._outputs, self._bad.tolist(), strict=True))
        begun = min(first.values())
        whole = ("loss", "feature_std")
        parts = [name for name, step in first.items() if step == begun and name not in whole]
        what = f"the loss is not a number from step {begun:.0f} on"
        what += f" ({', '.join(parts)} first)" if parts else ""
        switched = [n for n in ("bf16", "fp16", "torch_compile") if getattr(self.args, n)]
        without = f"try without {' and '.join(switched)}" if switched else ""
        if begun == 1:
            raise Diverged(
                f"{what}: no rate is at fault, for no step was made before it; "
                f"{without or 'look at the weights of --encoder and at the images'}"
            )
        also = f", or {without}" if without else ""
        raise Diverged(f"{what}: lower --base-lr or the weights in --augself{also}")

    def spent(self) -> checkpoints.Spent:
        """The time of all starts of this run until now; CPU time is this process's alone."""
        now = checkpoints.Spent(time.monotonic(), time.process_time())
        return self.earlier + (now - self._started)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The stock log, and the mean of each part of the loss since the last one.

        What cannot be decoded is judged by what all processes have met until now.
        """
        if "loss" in logs and self._batches:
            count = self._batches * world_size()
            totals = {
                name: all_reduce(total.clone()) for name, total in sorted(self._parts.items())
            }
            logs |= {name: float(total) / count for name, total in totals.items()}
            self._parts.clear()
            self._batches = 0
            self._skipped |= all_union(self._untold)
            self._untold.clear()
            self._refuse_lost()
        self._refuse_nan(logs.get("loss", 0.0))
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = (self.settings, self.args, self.model, self.model.method, self.model.joint)
        self.optimizer = optimizer_of(*made)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        warmup = warmup_steps(self.settings, len(self.train_dataset))
        optimizer, steps = optimizer or self.optimizer, (num_training_steps, warmup)
        self.lr_scheduler = scheduler_of(self.settings, optimizer, *steps, self.epoch_steps)
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights only: contiguous (a channels_last weight cannot be saved), and no pickle.

        Every process is asked; BN's statistics are each one's own, and the first one's are kept.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.settings.output)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @property
    def _staging(self) -> Path:
        return self.settings.output / STAGING

    def _get_output_dir(self, trial: Any) -> str:
        """Where the stock code writes checkpoints: apart from the finished ones.

        This and `_save_checkpoint` are private. No callback serves: `on_save` comes after the stock
        trainer has removed older checkpoints, and sees no error of a full disk.
        """
        return str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A new checkpoint appears whole or not at all; the ones before it are kept until then."""
        self._refuse_nan(float(self._tr_loss))
        name = f"checkpoint-{self.state.global_step}"
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)  # a killed run's
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self.spent().write(self._staging / name)
            self.accelerator.wait_for_everyone()
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


class _MethodSteps(TrainerCallback):
    """Lets the method act around the optimizer's step, and keeps the sampler's epoch right."""

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What is asked for now, not what a checkpoint brought that a run is resumed from: the
        intervals, and the rate of a schedule that may be longer.
        """
        state.compute_steps(args, state.max_steps)
        for row in state.log_history:  # of a run that version 0.1 began
            renamed(row, {"spread": "feature_std", "eval_spread": "eval_feature_std"})
        scheduler: Any = self.trainer.lr_scheduler
        optimizer: Any = self.trainer.optimizer
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = scheduler.base_lrs[i] * scheduler.lr_lambdas[i](scheduler.last_epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stock set_epoch does not reach a sampler that is wrapped to skip batches."""
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.model.method.before_step(state.epoch or 0.0, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        reached = reached_step(trainer.settings, state.global_step, trainer.epoch_steps)
        trainer.model.method.after_step(reached / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A log has the last steps, however short the run is."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class _StopOnSigterm(TrainerCallback):
    """SIGTERM: a checkpoint after the step at hand, then a normal end.

    It reaches each process at its own moment, so they agree after every step.
    """

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer
        self.asked = False
        self.before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # others must not set handlers
            handler = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))
            self.before = handler or signal.SIG_DFL
        self.group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = torch.tensor(float(self.asked))
        if self.group is not None:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.trainer.interrupted = True

    def restore(self) -> None:
        """The handler from before the run, however it ended."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None


class _CountShards(TrainerCallback):
    """At the end of every epoch, says what the shards of a stream held that were read by then."""

    def __init__(self, trainer: AugSelfTrainer) -> None:
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.count_shards()


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
        shown = shows_bars() and state.is_local_process_zero
        self.bar = bar(state.max_steps, "step", shown, initial=state.global_step)
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
        shown = ("loss", "method", *self.trainer.model.augself.heads, "matcher")
        parts = {name: value for name, value in logs.items() if name in shown}
        text = "  ".join(f"{name} {float(value):.3f}" for name, value in parts.items())
        text += f"  {rate:.0f} images/s"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            print(f"step {state.global_step}/{state.max_steps}  {text}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
