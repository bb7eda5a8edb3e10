"""One against two processes on this machine: extraction, serving, training; what limits each.

    taskset -c 0,1 python benchmarks/scaling.py --work DIR [--quick]

Prints markdown. Every process has one core and one thread. Beside the two that share one task stand
two strangers: two that do the task of one at the same time and share nothing but the machine. What
strangers lack to 2.0 is the machine's (memory, caches, clocks); what two lack to strangers is ours
(the end of the queue, the exchange of gradients, the clients on the same cores).

    extraction   `serving.extraction.pipeline` on 500 x 375 JPEGs, ResNet-18 at 224 px; two threads,
                 two workers of Ray; from a short list to a long one, so that starts do not count
    serving      `augself serve`, the same; two servers are strangers, but for their clients on the
                 same cores, whose share is shown
    training     `augself pretrain`, SimSiam, ResNet-18 at 64 px, in one process and under torchrun
    the driver   what a shard costs it before, during and after the run, for research/cost.md

Images and models are those of benchmarks/extraction.py, made in DIR once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extraction import make_images, make_model
from server import AUGSELF, asked, running

CORES = (0, 1)
BATCH = 32  # of a training step, both processes together
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def main() -> None:
    options = parsed()
    if options.row:
        print(json.dumps(ROWS[options.row](options)))
        return
    make_images(options.work / "images", options.images)
    make_model(options.work, "resnet18")
    print("| | one | two | times | strangers | two are, of strangers |\n|---|---|---|---|---|---|")
    for name, measure in (("extraction", extraction), ("serving", serving), ("training", training)):
        if name in options.only:
            measure(options)
    if "driver" in options.only:
        show_driver(options)


def parsed() -> argparse.Namespace:
    everything = ["extraction", "serving", "training", "driver"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="kept: images and models")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--requests", type=int, default=300, help="of one server")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=everything, default=everything)
    parser.add_argument("--quick", action="store_true", help="one small round: a look, no result")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a measuring process is asked for
    options = parser.parse_args()
    if options.quick:
        options.images, options.requests, options.steps, options.rounds = 48, 40, 8, 1
    return options


@dataclass
class Speeds:
    """Images a second in every round."""

    one: list[float]
    two: list[float]
    strangers: list[float]

    def show(self, name: str, note: str = "") -> None:
        one, two, both = (statistics.median(v) for v in (self.one, self.two, self.strangers))
        every = " ".join(f"{value:.1f}" for value in self.two)
        cells = [name, f"{one:.1f}", f"{two:.1f} ({every})", f"{two / one:.2f}"]
        cells += [f"{both / one:.2f}", f"{two / both:.2f}{note}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def started(command: Sequence[Any], cores: Sequence[int]) -> subprocess.Popen[str]:
    """A Python on some cores, one thread a process."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def printed(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{errors}")
    return out


# -- Extraction ------------------------------------------------------------------------------------


def extraction(options: argparse.Namespace) -> None:
    threads, workers = Speeds([], [], []), Speeds([], [], [])
    for _ in range(options.rounds):
        one = rate("extract", options, CORES[:1])
        strangers = sum(together([lambda c=c: rate("extract", options, (c,)) for c in CORES]))
        for speeds, row in ((threads, "threads"), (workers, "ray")):
            speeds.one.append(one)
            speeds.strangers.append(strangers)
            speeds.two.append(rate(row, options, CORES))
    threads.show("extraction, two threads")
    workers.show("extraction, two workers of Ray")


def rate(row: str, options: argparse.Namespace, cores: Sequence[int]) -> float:
    command = [__file__, "--row", row, "--work", options.work, "--images", options.images]
    return json.loads(printed(started(command, cores)).splitlines()[-1])["speed"]


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: job(), jobs))


def extract_row(options: argparse.Namespace, workers: int, **more: Any) -> dict[str, float]:
    """Images a second, from the difference of a list and one of a quarter of its length."""
    from serving.extraction.pipeline import extract
    from serving.inference.engine import load

    engine = load(str(options.work / "resnet18"), "cpu", 1)
    files = sorted((options.work / "images").glob("*.jpg"))[: options.images]

    def seconds(count: int) -> float:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            out = Path(folder) / "out"
            extract(files[:count], out, engine, workers=workers, **more)
        return time.perf_counter() - began

    seconds(16)
    short = options.images // 4
    return {"speed": (options.images - short) / (seconds(options.images) - seconds(short))}


def ray_row(options: argparse.Namespace) -> dict[str, float]:
    import ray

    from serving.fleet.ray_extraction import fill

    ray.init(num_cpus=2, include_dashboard=False, logging_level="WARNING")
    return extract_row(options, 2, fill=fill, shard_rows=16)  # a list would be a single shard


# -- Serving ---------------------------------------------------------------------------------------


def serving(options: argparse.Namespace) -> None:
    one, two = ([served(options, n) for _ in range(options.rounds)] for n in (1, 2))
    rates = [rate for rate, _ in two]
    share = statistics.median(share for _, share in two)
    speeds = Speeds([rate for rate, _ in one], rates, rates)
    speeds.show("serving, two servers", f"; clients take {share:.0%} of a core")


def served(options: argparse.Namespace, servers: int) -> tuple[float, float]:
    """(images a second of all, what their clients take of a core)."""
    command = [*AUGSELF, "--model", str(options.work / "resnet18"), "--threads", "1"]
    with ExitStack() as stack:
        addresses = []
        for core in CORES[:servers]:
            pinned = ["taskset", "-c", str(core), *command, "--decoders", "1"]
            addresses.append(stack.enter_context(running(pinned, "/health/ready"))[0])
        together([lambda a=a: asked(options, a, 4, 16) for a in addresses])
        answers = together([lambda a=a: asked(options, a, 4, options.requests) for a in addresses])
    if bad := [a.codes for a in answers if set(a.codes) != {"200"}]:
        raise RuntimeError(f"answers: {bad}")
    return sum(a.rate for a in answers), sum(a.cpu / a.wall for a in answers)


# -- Training --------------------------------------------------------------------------------------


def training(options: argparse.Namespace) -> None:
    """The same batch in one process and in two; strangers train on half a batch each."""
    speeds = Speeds([], [], [])
    for _ in range(options.rounds):
        speeds.one.append(trained(options, BATCH, CORES[:1]))
        speeds.two.append(trained(options, BATCH, CORES, TORCHRUN))
        half = [lambda c=c: trained(options, BATCH // 2, (c,)) for c in CORES]
        speeds.strangers.append(sum(together(half)))
    speeds.show("training, two processes")


def trained(
    options: argparse.Namespace, batch: int, cores: Sequence[int], launcher: Sequence[str] = ()
) -> float:
    """Images a second, the median of the printed ones; the first has the start in it."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        command = [*launcher, "-m", "augself_hub.cli", "pretrain", "--output", f"{folder}/run"]
        command += ["--data", options.work / "images", "--size", 64, "--batch-size", batch]
        command += ["--workers", 0, "--monitor-every", 0, "--report-to", "none"]
        settings = (f"max_steps={options.steps}", "logging_steps=2", "save_strategy=no")
        command += [word for setting in settings for word in ("--set", setting)]
        lines = printed(started(command, cores))
    found = [float(speed) for speed in re.findall(r"(\d+) images/s", lines)]
    return statistics.median(found[1:])


# -- The driver ------------------------------------------------------------------------------------


def show_driver(options: argparse.Namespace) -> None:
    found = json.loads(
        printed(started([__file__, "--row", "driver", "--work", options.work], CORES)).splitlines()[
            -1
        ]
    )
    print("\n| the driver | a shard |\n|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {1000 * seconds:.2f} ms |")


def driver_row(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a shard: look at it, hand it out, and read of its part what the last files need."""
    return dict([*_looked(options.work), *_handed_out(), *_finished(options.work)])


def _looked(work: Path) -> Iterator[tuple[str, float]]:
    from augself_hub.images import open_source

    with tempfile.TemporaryDirectory(dir=work) as folder:
        tars = [Path(folder) / f"{number}.tar" for number in range(1000)]
        for tar in tars:
            tar.touch()
        yield "its digest, a tar", _seconds(open_source(f"{folder}/*.tar", stream=True).shards(1))
        names = [str(tar) for tar in tars] * 20
        shards = open_source(names).shards(2048)
        yield "its digest, a list of 2048 files", _seconds(shards)


def _seconds(shards: Sequence[Any]) -> float:
    began = time.perf_counter()
    for shard in shards:
        assert shard.digest
    return (time.perf_counter() - began) / len(shards)


def _handed_out() -> Iterator[tuple[str, float]]:
    """The queue itself, with workers that have nothing to do."""
    import ray

    from augself_hub.images import open_source
    from serving.extraction.parts import Counts
    from serving.fleet import ray_extraction as ray_engine

    class Idle:
        def part(self, *_: Any) -> tuple[Counts, bool]:
            return Counts(1, 1), False

    class Anything:
        """All parts are there already; a progress that counts nothing."""

        has = staticmethod(lambda number: True)
        add = staticmethod(lambda images, errors: None)

    ray.init(num_cpus=2, include_dashboard=False, logging_level="WARNING")
    for name, rows in (("a tar", 1), ("a list of 2048 files", 2048)):
        shards = open_source(["folder/of/images/000000.jpg"] * (rows * 2000)).shards(rows)
        _seconds(shards[:1])
        for shard in shards:  # digests were asked for above: they are not what is measured here
            shard.__dict__["digest"] = "d"
        work = argparse.Namespace(shards=shards, parts=Anything, progress=Anything)
        workers = [ray.remote(Idle).remote() for _ in range(2)]
        ray.get([worker.__ray_ready__.remote() for worker in workers])
        began = time.perf_counter()
        ray_engine._handed_out(work, workers)
        yield f"handing it out, {name}", (time.perf_counter() - began) / len(shards)


def _finished(work: Path) -> Iterator[tuple[str, float]]:
    import pyarrow as pa

    from serving.extraction.destination import Destination
    from serving.extraction.parts import Part

    rows = pa.table({"label": pa.array(range(2048), pa.int32())})
    with tempfile.TemporaryDirectory(dir=work) as folder, Destination(Path(folder) / "t") as there:
        there.parts.data.mkdir()
        there.parts.notes.mkdir()
        for number in range(500):
            there.parts.write(number, Part(rows, [], {}), "d", "m")
        began = time.perf_counter()
        there.write_errors()
        there.largest_label()
        yield "its errors and labels, at the end", (time.perf_counter() - began) / 500


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "extract": lambda options: extract_row(options, 1),
    "threads": lambda options: extract_row(options, 2),
    "ray": ray_row,
    "driver": driver_row,
}

if __name__ == "__main__":
    main()
