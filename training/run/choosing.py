"""What a run takes where its user says nothing: batch, epochs, size of the views, workers.

Settings' own defaults are those of the papers, for a hundred thousand images and a GPU. Of a small
folder a batch of 256 is more than there is, and 200 epochs on two cores take days. So what nobody
gave, neither an option nor a recipe, is chosen from the images and the cores, and said with its
reason. How long it will take is measured before it begins.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import TrainingArguments

from augself_hub.augmentations.difference import Sizes
from augself_hub.cores import usable_cores
from training.data.batches import ViewsDataset, collate
from training.run.optimisation import run_steps
from training.run.settings import CHOSEN, Settings, flag
from training.run.trainer import AugSelfTrainer

LARGEST_BATCH, SMALLEST_BATCH = 256, 16
STEPS = 4  # of an epoch, at least, where the images are enough
SEEN = 10_000  # images a core trains on: with the recipe quick some minutes
EPOCHS, LEAST_EPOCHS = 200, 10
SIZE, SIZE_ON_CPUS, SMALLEST_SIZE = 96, 64, 32
FEW_CORES = 8
MOST_WORKERS = 8
SAMPLE = 16  # images of the steps whose time is taken
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A setting, its value, and why it is that one."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{flag(self.name)} {self.value:g}: {self.reason}"


@dataclass(frozen=True)
class Machine:
    """What a run has: the CPU cores here, a GPU or none; processes, and how many of them here."""

    cores: int
    gpu: bool
    processes: int = 1
    here: int = 1


def choices(
    free: Collection[str],
    images: int,
    sizes: Sizes,
    machine: Machine,
    accumulation_steps: int = 1,
    bounds: Mapping[str, int] | None = None,
) -> list[Choice]:
    """Of the settings in `free`, in CHOSEN's order.

    Args:
        images: to train on. sizes: (height, width) of some of them.
        accumulation_steps: parts of a batch that one process takes one after the other.
        bounds: seen, images that a CPU core trains on at most, and the largest batch.
    """
    side = median(min(size) for size in sizes)
    bounds = bounds or {}
    largest = bounds.get("batch", LARGEST_BATCH)
    made = {
        "batch_size": _batch(images, machine.processes * accumulation_steps, largest),
        "epochs": _epochs(images, machine, bounds.get("seen")),
        "size": _size(side, machine),
        "workers": _workers(machine),
    }
    return [Choice(name, *made[name]) for name in CHOSEN if name in free]


def _batch(images: int, parts: int, largest: int) -> tuple[int, str]:
    if images >= STEPS * largest:
        batch, why = (
            largest,
            "as in the papers" if largest == LARGEST_BATCH else "the largest of the recipe",
        )
    else:
        wanted = max(SMALLEST_BATCH, images // STEPS)
        batch = 2 ** (min(wanted, max(images, 2)).bit_length() - 1)
        why = f"a power of two that leaves {images // batch} steps an epoch of {images} images"
    if batch % parts or batch < 2 * parts:
        batch = max(2, batch // parts) * parts
        why += f", shared by {parts}"
    return batch, why


def _epochs(images: int, machine: Machine, most: int | None) -> tuple[float, str]:
    if machine.gpu:
        return EPOCHS, "as in the papers"
    seen = SEEN * machine.cores
    epochs = min(EPOCHS, max(LEAST_EPOCHS, round(seen / images)))
    if most is not None and epochs * images > most * machine.cores:
        part = float(f"{most * machine.cores / images:.2g}")
        return part, f"at most {most * machine.cores:,} images seen on {_cores(machine)}"
    bound = {EPOCHS: ", at most", LEAST_EPOCHS: ", at least"}.get(epochs, "")
    return epochs, f"about {seen:,} images seen on {_cores(machine)}{bound}"


def _size(side: float, machine: Machine) -> tuple[int, str]:
    few = not machine.gpu and machine.cores <= FEW_CORES
    size = SIZE_ON_CPUS if few else SIZE
    if side < size:
        smaller = max(SMALLEST_SIZE, int(side) // 32 * 32)
        return smaller, f"the images' short sides are {side:g} pixels"
    return size, f"pixels, for {_cores(machine)}" if few else "pixels, as in the papers"


def _workers(machine: Machine) -> tuple[int, str]:
    if machine.gpu:
        workers = max(1, min(MOST_WORKERS, machine.cores // machine.here - 1))
        return workers, f"of {_cores(machine)}, to keep the GPU busy"
    workers = min(2, machine.cores // machine.here // 2)
    return workers, f"the model takes most of {_cores(machine)}"


def _cores(machine: Machine) -> str:
    return f"{machine.cores} core{'s' * (machine.cores != 1)}"


def begun(settings: Settings, before: dict[str, Any] | None, free: Collection[str]) -> Settings:
    """What is free as the run to be resumed has it; else a batch that can be shared out, until the
    images are known.
    """
    if before is not None:
        return dataclasses.replace(
            settings, **{name: before[name] for name in before.keys() & free}
        )
    if "batch_size" not in free:
        return settings
    steps = settings.arguments.get("gradient_accumulation_steps", 1)
    parts = max(1, machine().processes * (steps if isinstance(steps, int) else 1))
    batch = max(2, settings.batch_size // parts) * parts
    return dataclasses.replace(settings, batch_size=batch)


def chosen(
    settings: Settings,
    free: Collection[str],
    images: int,
    sizes: Sizes,
    arguments: TrainingArguments,
    bounds: Mapping[str, int] | None = None,
) -> Settings:
    """The settings with what is free chosen, which is said. `bounds`: as `choices` takes them."""
    made = choices(free, images, sizes, machine(), arguments.gradient_accumulation_steps, bounds)
    if arguments.should_save and made:
        lines = [f"chosen for {images} images, each of them an option:", *map(str, made)]
        log.info("%s", "\n  ".join(lines))
    return dataclasses.replace(settings, **{choice.name: choice.value for choice in made})


def estimate(trainer: AugSelfTrainer, settings: Settings) -> str | None:
    """How long the run will take, from a step of a few images on a copy of the model.

    Nothing of the run is changed by it, its random numbers included.

    Returns:
        A sentence; None where several processes share the run, or the images come as a stream.
    """
    train = trainer.train_dataset
    steps = run_steps(trainer.args, trainer.epoch_steps)
    if trainer.args.world_size > 1 or not isinstance(train, ViewsDataset) or steps < 1:
        return None
    few = trainer.args.per_device_train_batch_size  # what is computed at a time, and fits a GPU
    if trainer.args.device.type == "cpu":
        few = min(few, SAMPLE)
    keys = [(0, index) for index in range(few)]
    began = time.monotonic()
    items = train.__getitems__(keys)
    read = (time.monotonic() - began) / len(keys)
    compute = _compute(trainer, items)
    if not settings.workers:
        image = read + compute
    elif trainer.args.device.type == "cpu":  # workers and the model share the cores
        image = compute + read / usable_cores()
    else:
        image = max(compute, read / settings.workers)
    step = settings.batch_size * image
    return f"about {duration(steps * step)}: {steps} steps of {step:.2g} s"


def _compute(trainer: AugSelfTrainer, items: Sequence[dict[str, Any]]) -> float:
    """Seconds an image of forward and backward, the second time: the first one warms up."""
    device = trainer.args.device
    half = torch.bfloat16 if trainer.args.bf16 else torch.float16
    mixed = torch.autocast(device.type, half, enabled=trainer.args.bf16 or trainer.args.fp16)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), contextlib.ExitStack() as stack:
        stack.enter_context(mixed)
        model = copy.deepcopy(trainer.model.to(device)).train()
        inputs = collate(list(items))
        del inputs["skipped"]
        inputs.pop("counted", None)
        inputs = trainer._prepare_inputs(inputs)
        for _ in range(2):
            began = time.monotonic()
            model(**inputs)["loss"].backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken = time.monotonic() - began
    return taken / len(items)


def duration(seconds: float) -> str:
    """`40 seconds`, `9 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def machine() -> Machine:
    """This one, for a run of as many processes as torchrun started."""
    processes, here = (int(os.environ.get(f"{k}WORLD_SIZE", "1")) for k in ("", "LOCAL_"))
    return Machine(usable_cores(), torch.cuda.is_available(), processes, here)
