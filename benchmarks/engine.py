"""The engine's cost: preprocessing, int8 against fp32, and what it adds to a bare session.

    python benchmarks/engine.py [--rounds 30] [--encoders resnet18,resnet50] [--threads N] [--quick]

Prints one markdown table: medians, and the quartiles between which half of the rounds lie. What is
compared runs in turn, round by round, so that whatever else the machine does hits all of it.

The images are 500 x 375 JPEGs cut from the photographs of the demo. The encoders have random
weights: speed does not depend on them. Graphs are made as `augself export` makes them, gates
included.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from findings import Findings, machine, spread
from PIL import Image
from untrained import write_untrained

from augself_hub.cores import usable_cores
from augself_hub.precision import graph_of
from augself_hub.preprocess import decode, preprocess
from augself_hub.runtime import onnxruntime
from serving.inference.engine import Engine

EXAMPLES = Path(__file__).parents[1] / "serving/demo/examples"
SIDE, WIDTH, HEIGHT = 224, 500, 375
RESIZED = WIDTH * SIDE // HEIGHT, SIDE
LEFT = (RESIZED[0] - SIDE) // 2
PHOTOGRAPHS, BATCH = 36, 16
Row = tuple[str, str, list[float], str]  # what, unit, the figure of every round, compared


@click.command()
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True)
@click.option("--encoders", default="resnet18,resnet50", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of a model. Default: the usable cores.")
@click.option("--quick", is_flag=True, help="ResNet-18, three rounds: a look, no result.")
@click.option("--json", "path", type=Path, help="Keep what was found for bench.py.")
def main(rounds: int, encoders: str, threads: int | None, quick: bool, path: Path | None) -> None:
    """Measure and print the table."""
    threads = threads or usable_cores()
    if quick:
        rounds, encoders = 3, "resnet18"
    with tempfile.TemporaryDirectory() as folder:
        photographs = cut_photographs(Path(folder) / "photographs")
        rows = preprocessing(photographs, rounds)
        for name in filter(None, encoders.split(",")):
            model = export(name, Path(folder) / name, photographs[0].parent)
            rows += inference(name, model, photographs, threads, rounds)
    found = Findings("images a second")
    found.say(f"{machine()}; models on {threads} thread(s), preprocessing on one; {rounds} rounds")
    cells = [(name, *spread(values, unit), compared) for name, unit, values, compared in rows]
    found.table(["what", "median", "quartiles", "compared"], cells)
    found.chart({name: values for name, unit, values, _ in rows if unit == "images/s"})
    found.write(path)


def cut_photographs(folder: Path) -> list[Path]:
    """JPEGs of 500 x 375 cut from the demo's photographs."""
    folder.mkdir()
    random, sources, paths = np.random.default_rng(0), sorted(EXAMPLES.glob("*.jpg")), []
    for number in range(PHOTOGRAPHS):
        image = Image.open(sources[number % len(sources)]).convert("RGB")
        share = random.uniform(0.5, 1)
        width = share * min(image.width, image.height * WIDTH / HEIGHT)
        height = width * HEIGHT / WIDTH
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        paths.append(folder / f"{number:02}.jpg")
        resized = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box)
        resized.save(paths[-1], quality=90)
    return paths


# -- Preprocessing ---------------------------------------------------------------------------------


def preprocessing(photographs: list[Path], rounds: int) -> list[Row]:
    """Milliseconds an image on one thread, and how far each way is from the stock processor's."""
    files = [path.read_bytes() for path in photographs]
    images = [decode(data) for data in files]
    ways: dict[str, Callable[[Image.Image], np.ndarray]] = {
        "resize, Pillow, whole image then crop": pillow_whole,
        "resize, Pillow, only the crop (ours)": lambda image: preprocess(image, SIDE),
        **dict(kornia()),
    }
    jobs: dict[str, Callable[[], Any]] = {
        "decode JPEG (ours)": lambda: [decode(data) for data in files],
        "decode JPEG, Pillow alone": lambda: [Image.open(io.BytesIO(d)).load() for d in files],
        **{name: each(way, images) for name, way in ways.items()},
        "decode and resize (ours)": lambda: [preprocess(decode(data), SIDE) for data in files],
    }
    seconds = in_turn(jobs, rounds)
    return [
        (
            f"{name}, 500x375 to {SIDE}",
            "ms",
            [1000 * s / len(files) for s in seconds[name]],
            differences(ways[name], images) if name in ways else "",
        )
        for name in jobs
    ]


def each(way: Callable[[Image.Image], np.ndarray], images: list[Image.Image]) -> Callable[[], Any]:
    return lambda: [way(image) for image in images]


def pillow_whole(image: Image.Image) -> np.ndarray:
    """As the stock processor's Pillow backend computes it: the reference."""
    resized = np.asarray(image.resize(RESIZED, Image.Resampling.BICUBIC))
    return resized[:, LEFT : LEFT + SIDE]


def kornia() -> Iterator[tuple[str, Callable[[Image.Image], np.ndarray]]]:
    """kornia_rs, where it is installed."""
    try:
        from kornia_rs import imgproc
    except ModuleNotFoundError:
        return

    def resize(image: Image.Image) -> np.ndarray:
        size = RESIZED[::-1]
        whole = imgproc.resize(np.asarray(image), size, "bicubic", antialias=True)
        return np.asarray(whole)[:, LEFT : LEFT + SIDE]

    yield "resize, kornia_rs, whole image then crop", resize


def differences(way: Callable[[Image.Image], np.ndarray], images: list[Image.Image]) -> str:
    """Against the reference, on the photographs and on noise, which holds the extremes."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    texts = []
    for name, some in (("photographs", images), ("noise", [Image.fromarray(noise)])):
        found = [np.abs(way(i).astype(int) - pillow_whole(i)) for i in some]
        texts.append(f"{name}: {np.mean(found):.4f} grey levels off, {np.max(found)} at most")
    return "; ".join(texts)


# -- Inference -------------------------------------------------------------------------------------


def export(encoder: str, folder: Path, photographs: Path) -> Path:
    """A model folder with random weights, its graphs and its int8 graph."""
    from augself_hub.modeling.quantize import quantize_folder

    write_untrained(encoder, SIDE, folder)
    quantize_folder(folder, "int8", photographs)
    return folder


def inference(
    name: str, folder: Path, photographs: list[Path], threads: int, rounds: int
) -> list[Row]:
    """Images a second on ready tensors, batch 16, and the engine against its own session."""
    images = [preprocess(decode(path.read_bytes()), SIDE) for path in photographs[:BATCH]]
    pixels = np.stack(images)
    sessions = {p: bare_session(folder / graph_of(folder, p), threads) for p in ("fp32", "int8")}
    jobs: dict[str, Callable[[], Any]] = {
        precision: running(session, pixels) for precision, session in sessions.items()
    }
    engine = Engine(folder, "cpu", threads)
    jobs["engine"] = lambda: engine.features(images)
    seconds = in_turn(jobs, rounds)
    speeds = {job: [len(images) / s for s in values] for job, values in seconds.items()}
    median = {job: statistics.median(values) for job, values in seconds.items()}
    compared = {
        "fp32": "",
        "int8": f"{median['fp32'] / median['int8']:.2f} times fp32",
        "engine": f"{100 * (median['engine'] / median['fp32'] - 1):+.1f}% time over bare fp32",
    }
    return [
        (f"{name}, {job}, batch {BATCH}", "images/s", speeds[job], compared[job]) for job in jobs
    ]


def bare_session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the engine's
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def running(session: Any, pixels: np.ndarray) -> Callable[[], Any]:
    return lambda: session.run(["features"], {"images": pixels})


# -- Measuring -------------------------------------------------------------------------------------


def in_turn(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job, round by round; the first round warms up and is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    main()
