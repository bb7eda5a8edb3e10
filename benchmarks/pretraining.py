"""Pretraining side by side with lightly, with the bare step, and with and without AugSelf.

    taskset -c 0,1 python benchmarks/pretraining.py [--quick] [--precision fp32]

SimSiam, ResNet-18, 96 px, batch 128, two workers; 600 photographs of 256 px, cut from those of the
demo. Prints markdown: medians, and the quartiles between which half of the rounds lie. Every row of
every round is a process of its own, and the rounds go through all rows in turn.

    ours          AugSelfTrainer with crop and color, from decoded photographs in memory
    plain         the same without AugSelf
    lightly       lightly's transform, modules and loss in a plain fp32 loop, same photographs
    bare          the network's step alone: same precision, channels_last, one ready batch
    ours jpeg     as above, from JPEG files
    lightly jpeg  likewise
    compiled      ours, with torch.compile (only with --compile)

Both sides have the same network: lightly's projector has three layers, so ours has here, too.
Nothing starts anew between steps on either side: an epoch is as long as the measurement.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from extraction import megabytes
from findings import Findings, instructions, machine, quartiles, spread
from photographs import cut_photographs, in_memory
from PIL import Image
from torch import nn

from augself_hub import AugSelfLoss, Policy
from augself_hub.modeling.encoders import build_encoder, preprocessing_of
from training.data.batches import ViewsDataset, collate
from training.data.sources import Images, open_images
from training.methods.simsiam import SimSiam
from training.run.memory import keep_freed_memory
from training.run.objective import Pretraining
from training.run.settings import Settings
from training.run.trainer import AugSelfTrainer, TrainerCallback, training_arguments

SIDE, WORKERS = 96, 2
WEIGHTS = {"crop": 1.0, "color": 1.0}
WARM_UP = 3
ROWS = ("ours", "plain", "lightly", "bare", "ours jpeg", "lightly jpeg")


class Size(NamedTuple):
    """Of one row: steps (or pairs of steps), and images a step."""

    steps: int
    batch: int


@click.command()
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=12, show_default=True, help="A row.")
@click.option("--pairs", type=click.IntRange(2), default=30, show_default=True)
@click.option("--memory", type=click.IntRange(100), default=300, show_default=True, help="Steps.")
@click.option("--batch", type=click.IntRange(2), default=128, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default=lambda: "bf16" if {"avx512_bf16", "amx_bf16"} & set(instructions()) else "fp32",
    show_default="bf16 where the processor has instructions for it",
)
@click.option("--compile", "compiled", is_flag=True, help="A row with torch.compile, too.")
@click.option("--quick", is_flag=True, help="Batch 16, two rounds of two steps: a look, no result.")
@click.option("--json", "path", type=Path, help="Keep what was found for bench.py.")
@click.option("--row", hidden=True, help="What a measuring process is asked for.")
@click.option("--work", type=Path, hidden=True)
def main(
    quick: bool, path: Path | None, row: str | None, work: Path | None, **options: Any
) -> None:
    """Measure and print the tables."""
    if quick:
        options |= {"rounds": 2, "steps": 2, "pairs": 2, "memory": 100, "batch": 16}
    if row and work:
        print(json.dumps(measured(row, work, **options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        cut_photographs(Path(folder))
        report(Path(folder), options).write(path)


def report(work: Path, options: dict[str, Any]) -> Findings:
    rows = [*ROWS, "compiled"] if options["compiled"] else ROWS
    speeds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(options["rounds"]):
        for row in rows:
            speeds[row].append(child(row, work, options))
    found, cells = Findings("images a second"), []
    sizes = "{precision}, batch {batch}; {rounds} rounds of {steps} steps".format(**options)
    found.say(f"{machine()}; {torch.get_num_threads()} threads; {sizes}")
    for row, values in speeds.items():
        mine = statistics.median(speeds["ours jpeg" if "jpeg" in row else "ours"])
        cells.append((row, *spread(values), f"{mine / statistics.median(values):.2f}"))
    found.table(["row", "images/s", "quartiles", "ours to it"], cells)
    found.chart(speeds)
    show_parts(found, child("parts", work, options))
    show_memory(found, child("memory", work, options))
    return found


def child(row: str, work: Path, options: dict[str, Any]) -> Any:
    given = [f"--{name}={value}" for name, value in options.items() if name != "compiled"]
    command = [sys.executable, __file__, "--row", row, "--work", str(work), *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    row: str, work: Path, steps: int, pairs: int, memory: int, batch: int, **others: Any
) -> Any:
    """What the process of one row answers: images a second, or what its function gives."""
    torch.manual_seed(0)
    precision, size = others["precision"], Size(steps, batch)
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(in_memory(work), WEIGHTS, size, precision),
        "plain": lambda: ours(in_memory(work), {}, size, precision),
        "compiled": lambda: ours(
            in_memory(work), WEIGHTS, size, precision, {"torch_compile": True}
        ),
        "ours jpeg": lambda: ours(open_images(work / "jpeg"), WEIGHTS, size, precision),
        "lightly": lambda: with_lightly(in_memory(work), size),
        "lightly jpeg": lambda: with_lightly(work / "jpeg", size),
        "bare": lambda: bare(size, precision),
        "parts": lambda: parts(in_memory(work), Size(pairs, batch), precision),
        "memory": lambda: grow(in_memory(work), Size(memory - WARM_UP, batch)),
    }
    return jobs[row]()


# -- The rows --------------------------------------------------------------------------------------


def ours(
    images: Images,
    weights: dict[str, float],
    size: Size,
    precision: str,
    arguments: dict[str, Any] | None = None,
) -> float:
    clock = _Clock()
    train(images, pretraining(weights), size, precision, clock, arguments or {})
    return size.batch * size.steps / (clock.at[WARM_UP + size.steps] - clock.at[WARM_UP])


def train(
    images: Images,
    model: Pretraining,
    size: Size,
    precision: str,
    callback: TrainerCallback,
    arguments: dict[str, Any],
) -> None:
    """WARM_UP + steps steps by the project's own trainer, set up as `augself pretrain` does."""
    many = images.at([i % len(images) for i in range(size.batch * (WARM_UP + size.steps))])
    given = {"bf16": precision == "bf16", "save_strategy": "no", **arguments}
    with tempfile.TemporaryDirectory() as output:
        settings = Settings(
            data="",
            output=Path(output),
            epochs=1,
            batch_size=size.batch,
            workers=WORKERS,
            report_to=(),
            arguments=given,
        )
        trainer = AugSelfTrainer(
            model=model,
            args=training_arguments(settings, settings.output, len(many)),
            train_dataset=ViewsDataset(many, model.augself.spec.policy, 0),
            callbacks=[callback],
        )
        with redirect_stdout(sys.stderr):
            trainer.train()


class _Clock(TrainerCallback):
    """When each step was done."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at[state.global_step] = time.perf_counter()


def pretraining(
    weights: dict[str, float], encoder: str = "resnet18", side: int = SIDE
) -> Pretraining:
    built = build_encoder(encoder, side)
    loss = AugSelfLoss(built.dim, weights, Policy(size=side), "relative")
    return Pretraining(SimSiam(built, layers=3), loss, preprocessing_of(encoder, side))


class _Decoded(torch.utils.data.Dataset):
    """The same photographs for lightly's transform: (views, label)."""

    def __init__(self, images: Images, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images.read(index)), 0


def with_lightly(data: Images | Path, size: Size) -> float:
    """lightly's SimSiam as its documentation builds it, with the paper's widths."""
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.transforms import SimSiamTransform

    transform = SimSiamTransform(input_size=SIDE)
    if isinstance(data, Path):
        dataset = LightlyDataset(str(data), transform=transform)
    else:
        dataset = _Decoded(data, transform)
    count = size.batch * (WARM_UP + size.steps)
    order = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=count)
    loader = torch.utils.data.DataLoader(
        dataset, size.batch, sampler=order, drop_last=True, num_workers=WORKERS
    )
    model, loss_of = lightly_model(), NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    at = [time.perf_counter()]
    for (x0, x1), *_ in loader:
        z0, z1 = model.f(x0), model.f(x1)
        p0, p1 = model.h(z0), model.h(z1)
        loss = (loss_of(p0, z1.detach()) + loss_of(p1, z0.detach())) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        at.append(time.perf_counter())
    return size.batch * size.steps / (at[-1] - at[WARM_UP])


def lightly_model() -> Any:
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from torchvision.models import resnet18

    backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())
    model = nn.Module()
    model.f = nn.Sequential(backbone, SimSiamProjectionHead(512, 2048, 2048))
    model.h = SimSiamPredictionHead(2048, 512, 2048)
    return model


def bare(size: Size, precision: str) -> float:
    """Forward, backward and optimizer of the network alone, freed memory kept."""
    keep_freed_memory()
    method = SimSiam(build_encoder("resnet18", SIDE), layers=3)
    method.to(memory_format=torch.channels_last)
    views = torch.randn(2 * size.batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    x1, x2 = views.chunk(2)
    step = stepper(method, lambda: method(x1, x2).loss, precision)
    for _ in range(WARM_UP):
        step()
    return size.batch * size.steps / seconds(lambda: [step() for _ in range(size.steps)])


def stepper(model: nn.Module, loss: Callable[[], Any], precision: str) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# -- Where the time of a step goes -----------------------------------------------------------------


def parts(images: Images, size: Size, precision: str) -> dict[str, list[float]]:
    """Seconds of each part of a step, by turns and without workers; steps with and without AugSelf.

    The two steps of a pair see the same batch, one straight after the other.
    """
    keep_freed_memory()
    both, plain = pretraining(WEIGHTS), pretraining({})
    for model in (both, plain):
        model.to(memory_format=torch.channels_last)
    data = ViewsDataset(images, both.augself.spec.policy, 0)
    keys = [(0, i) for i in range(size.batch)]
    items = data.__getitems__(keys)  # as the DataLoader asks for them
    batch = collate(items)
    inputs = {name: value for name, value in batch.items() if name != "skipped"}
    crops = (inputs["crops"], inputs["w1"], inputs["w2"])
    x1, x2 = both._views(*crops)
    jobs: dict[str, Callable[[], Any]] = {
        "crops": lambda: data.__getitems__(keys),
        "collate": lambda: collate(items),
        "views": lambda: both._views(*crops),
        "network": stepper(plain.method, lambda: plain.method(x1, x2).loss, precision),
        "step with AugSelf": stepper(both, lambda: both(**inputs)["loss"], precision),
        "step without": stepper(plain, lambda: plain(**inputs)["loss"], precision),
    }
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(size.steps + 1):
        for name, job in jobs.items():
            found[name].append(seconds(job))
    return {name: values[1:] for name, values in found.items()}


def show_parts(found: Findings, parts: dict[str, list[float]]) -> None:
    cells = [(name, *spread([1000 * v for v in values])) for name, values in parts.items()]
    found.table(["part of a step", "ms", "quartiles"], cells)
    pairs = zip(parts["step with AugSelf"], parts["step without"], strict=True)
    shares = [100 * (a / b - 1) for a, b in pairs]
    low, middle, high = quartiles(shares)
    found.say(
        f"AugSelf costs {middle:+.1f}% of a step ({low:+.1f}% to {high:+.1f}%, {len(shares)} pairs)"
    )


# -- Memory ----------------------------------------------------------------------------------------


def grow(images: Images, size: Size) -> dict[int, float]:
    """Megabytes of the training process and its workers, every fiftieth step.

    A small encoder: what could grow (loader, log, trainer) does not depend on the network.
    """
    scale = _Scale()
    model = pretraining(WEIGHTS, "resnet18-w16", 32)
    train(images, model, size, "fp32", scale, {})
    return scale.megabytes


class _Scale(TrainerCallback):
    def __init__(self) -> None:
        self.megabytes: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 50 == 0:
            self.megabytes[state.global_step] = sum(
                megabytes(p, "VmRSS") for p in ["self", *children()]
            )


def children() -> Iterable[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return [number for path in lists for number in path.read_text().split()]


def show_memory(found: Findings, scale: dict[str, float]) -> None:
    cells = [(step, f"{megabytes:.0f} MB") for step, megabytes in scale.items()]
    found.table(["step", "memory, with workers"], cells)


# -- Measuring -------------------------------------------------------------------------------------


def seconds(job: Callable[[], Any]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
