"""Batch extraction side by side with its peers, and its memory as the number of images grows.

    taskset -c 0,1 python benchmarks/extraction.py [--work DIR] [--openvino PYTHON] [--quick]

Images are 500 x 375 JPEGs cut from the demo's photographs; the models are untrained exports at
224 px, made in DIR once. Every measurement runs in a process of its own, after a warm-up; the
rounds go through all rows in turn, and a row's figure is its median.

    ready        ONNX Runtime as it comes, on tensors that are in memory already: the ceiling
    ready/core   the same, but one thread a core, each with its own batch
    ours         `serving.extraction.pipeline`, from files on the disk to a table on the disk
    pipeline     transformers' image-feature-extraction, batch 16, 2 workers
    timm         timm's network, a DataLoader with 2 workers
    ... int8     the same from the int8 graph, which was calibrated on the images
    openvino ... ours on OpenVINO, in an environment of its own: --openvino is its python, where
                 `pip install -e '.[extract,openvino]'` was done
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from findings import Findings, machine, spread
from untrained import write_untrained

from augself_hub.precision import graph_of

ROOT = Path(__file__).parents[1]
WORK = ROOT / "bench"
PHOTOGRAPHS = ROOT / "serving/demo/examples"
SPEEDS = ("ready", "ready/core", "ours", "pipeline", "timm")
SPEEDS += ("ready int8", "ready/core int8", "ours int8")
ON_OPENVINO = ("openvino fp32", "openvino bf16", "openvino int8")
SIDE, BATCH, WORKERS, UNIT = 224, 32, 2, "images a second"


def main() -> None:
    options = parsed()
    if options.row:
        print(json.dumps(ROWS[options.row](options)))
        return
    images, found = make_images(options.work / "images", options.images), Findings(UNIT)
    found.say(f"{machine()}; {options.images} images, {options.rounds} rounds")
    for encoder in options.encoders:
        folder = make_model(options.work, encoder)
        make_graph(folder, "int8", images)
        show_speed(found, encoder, measured(options, folder, images))
    show_memory(found, options, images)
    found.write(options.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="kept: images and models")
    parser.add_argument("--quick", action="store_true", help="a look, no result")
    parser.add_argument("--json", type=Path, help="keep what was found for bench.py")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoders", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--memory", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rows", nargs="*", help="only these, by name; the default is all")
    parser.add_argument("--openvino", help="python of an environment with OpenVINO")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a measuring process is asked for
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.memory = 64, 1, [200]
        options.encoders = ["resnet18"]
    return options


def make_images(folder: Path, count: int) -> Path:
    """So many different JPEGs of 500 x 375, quality 90, cut from the photographs."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    photographs = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph, share = photographs[number % len(photographs)], random.uniform(0.6, 1)
        width = int(share * min(photograph.width, photograph.height * 4 / 3))
        left = int(random.integers(0, photograph.width - width + 1))
        top = int(random.integers(0, photograph.height - width * 3 // 4 + 1))
        path = folder / f"{number:06}.jpg"
        if not path.exists():
            box = (left, top, left + width, top + width * 3 // 4)
            photograph.resize((500, 375), box=box).save(path, quality=90)
    return folder


def make_model(work: Path, encoder: str) -> Path:
    """An untrained model folder with its graph; made by a process that may load torch."""
    folder = work / encoder
    if not folder.exists():
        child("export", ["--model", str(folder), "--work", str(work)])
    return folder


def make_graph(folder: Path, precision: str, images: Path) -> None:
    """The graph of another precision, calibrated on the images; made once."""
    if not (folder / graph_of(folder, precision)).is_file():
        command = [sys.executable, "-m", "augself_hub.cli", "export", "--model", str(folder)]
        command += ["--quantize", precision, "--calibration", str(images)]
        subprocess.run(command, check=True)


def export(options: argparse.Namespace) -> dict[str, Any]:
    write_untrained(options.model.name, SIDE, options.model)
    return {}


def measured(
    options: argparse.Namespace, folder: Path, images: Path
) -> dict[str, list[dict[str, float]]]:
    """Row -> what `timed` found in each round."""
    rows = options.rows or SPEEDS + (ON_OPENVINO if options.openvino else ())
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for row in rows:
            name, _, precision = row.partition(" ")
            arguments = ["--model", str(folder), "--work", str(images.parent)]
            arguments += ["--images", str(options.images), "--precision", precision or "fp32"]
            python = options.openvino if row in ON_OPENVINO else sys.executable
            found[row].append(child(name, arguments, python))
    return found


def child(row: str, arguments: list[str], python: str = sys.executable) -> dict[str, Any]:
    command = [python, __file__, "--row", row, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def paths(options: argparse.Namespace) -> list[Path]:
    return sorted((options.work / "images").glob("*.jpg"))[: options.images]


def timed(run: Callable[[int], Any], images: int) -> dict[str, float]:
    """Images a second of run(images) after a warm-up, and a second of a core, all processes."""
    run(min(images, 2 * BATCH))
    began, before = time.perf_counter(), sum(os.times()[:4])
    run(images)
    seconds, busy = time.perf_counter() - began, sum(os.times()[:4]) - before
    return {"speed": images / seconds, "core": images / busy}


def ready(options: argparse.Namespace) -> dict[str, float]:
    """One batch after another, each by all cores."""
    return tensors(options, threads=len(os.sched_getaffinity(0)), at_once=1)


def ready_a_core(options: argparse.Namespace) -> dict[str, float]:
    """As many batches at once as there are cores."""
    return tensors(options, threads=1, at_once=len(os.sched_getaffinity(0)))


def tensors(options: argparse.Namespace, threads: int, at_once: int) -> dict[str, float]:
    import numpy as np

    from augself_hub.runtime import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    graph = options.model / graph_of(options.model, options.precision)
    model = onnxruntime.InferenceSession(str(graph), session_options, ["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)

    def run(count: int) -> None:
        sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda size: model.run(None, {"images": images[:size]}), sizes))

    return timed(run, options.images)


def ours(options: argparse.Namespace, device: str = "cpu") -> dict[str, float]:
    from serving.extraction.pipeline import extract
    from serving.inference.engine import load

    engine, files = load(str(options.model), device, 1, options.precision), paths(options)

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            extract(files[:count], Path(folder) / "out", engine)

    return timed(run, options.images)


def on_openvino(options: argparse.Namespace) -> dict[str, float]:
    return ours(options, "openvino")


def pipeline(options: argparse.Namespace) -> dict[str, float]:
    from transformers import pipeline

    extractor = pipeline("image-feature-extraction", str(options.model), pool=True)
    files = [str(path) for path in paths(options)]

    def run(count: int) -> None:
        extractor(files[:count], batch_size=16, num_workers=WORKERS)

    return timed(run, options.images)


def with_timm(options: argparse.Namespace) -> dict[str, float]:
    import timm
    import torch
    from timm.data import ImageDataset, create_transform

    model = timm.create_model(options.model.name, num_classes=0).eval()
    transform = create_transform((3, SIDE, SIDE), crop_pct=1.0, interpolation="bicubic")
    data = ImageDataset(str(options.work / "images"), transform=transform)

    def run(count: int) -> None:
        some = torch.utils.data.Subset(data, range(count))
        loader = torch.utils.data.DataLoader(some, batch_size=BATCH, num_workers=WORKERS)
        with torch.inference_mode():
            for images, _ in loader:
                model(images)

    return timed(run, options.images)


def grow(options: argparse.Namespace) -> dict[str, float]:
    """The embedded model on a list that repeats the images up to `count`."""
    from serving.extraction.pipeline import extract
    from serving.inference.engine import load

    files, engine = paths(options), load(None, "cpu", 1)
    repeated = [files[number % len(files)] for number in range(options.count)]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        extract(repeated, Path(folder) / "out", engine)
    return {"seconds": time.perf_counter() - began, "peak": megabytes("self", "VmHWM")}


def megabytes(process: int | str, field: str) -> float:
    """Of a process alone: VmHWM at its peak (ru_maxrss counts the parent too), VmRSS now."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def show_speed(found: Findings, encoder: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Also of a core's second, which other load on the machine changes less."""
    speeds = {row: [each["speed"] for each in some] for row, some in rounds.items()}
    cores = {row: [each["core"] for each in some] for row, some in rounds.items()}
    cells = []
    for row in rounds:
        mine = "ours int8" if row.endswith("int8") else "ours"
        ratios = [statistics.median(x[mine]) / statistics.median(x[row]) for x in (speeds, cores)]
        cells.append(
            (
                row,
                *spread(speeds[row]),
                f"{ratios[0]:.2f}",
                *spread(cores[row])[:1],
                f"{ratios[1]:.2f}",
            )
        )
    heads = [encoder, UNIT, "quartiles", "ours to it", "a second of a core", "ours to it"]
    found.table(heads, cells)
    found.chart({f"{encoder}, {row}": values for row, values in speeds.items()})
    if {"ours int8", "pipeline"} <= set(speeds):
        factor = statistics.median(speeds["ours int8"]) / statistics.median(speeds["pipeline"])
        found.say(f"ours int8 is {factor:.2f} times the pipeline")


def show_memory(found: Findings, options: argparse.Namespace, images: Path) -> None:
    cells = []
    for count in options.memory:
        arguments = ["--work", str(images.parent), "--images", str(options.images)]
        grown = child("grow", [*arguments, "--count", str(count)])
        cost = 1000 * grown["seconds"] / count
        cells.append((f"{count:,}", f"{grown['peak']:.0f} MB", f"{cost:.3f} ms"))
    found.table(["images, embedded model", "peak memory", "an image"], cells)


ROWS = {
    "export": export,
    "ready": ready,
    "ready/core": ready_a_core,
    "ours": ours,
    "openvino": on_openvino,
    "pipeline": pipeline,
    "timm": with_timm,
    "grow": grow,
}

if __name__ == "__main__":
    main()
