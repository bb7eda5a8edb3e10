"""The gates of a quantised graph: what is measured of it beside the fp32 one, and what it must be.

On photographs that took no part in the calibration: features, a linear probe on them, and every
head and the matcher on pairs of views, separately. The bounds are `augself_hub.parity`'s and
PROBE_LOSS.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub import parity
from augself_hub.augmentations.matching import OUTPUTS, matcher_prediction
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import ModelFolderError, first_line
from augself_hub.folder import HEADS_GRAPH, MATCHER_GRAPH, file_sha256, read_spec
from augself_hub.modeling.photographs import Photographs
from augself_hub.parity import cosines, head_change, most_change
from augself_hub.precision import graph_of
from augself_hub.runtime import onnxruntime
from augself_hub.time_limit import LOAD_SECONDS, TimeLimit, time_limit

PROBE_LOSS = 0.005  # of a linear probe's accuracy
PROBE_IMAGES = 200  # with fewer, one image weighs more than PROBE_LOSS: not measured
BATCH = 16
FOLDS, RIDGE = 5, 1.0
ROUNDS = 15


def refuse_endless(folder: Path, images: Photographs) -> None:
    """Run each fp32 graph once, before any is run without a limit: a Loop in one may have no end.

    Raises:
        ModelFolderError: one does not load and answer in time, or not at all.
    """
    known = {"images": images.pixels(images.calibration[:2])}
    for path in (graph_of(folder), HEADS_GRAPH, MATCHER_GRAPH):
        if not (folder / path).is_file():
            continue
        with time_limit(folder / path, LOAD_SECONDS["cpu"]) as limit:
            try:
                session = _session(folder / path, limit)
                wanted = [value.name for value in session.get_inputs()]  # images; maps_a, maps_b
                given = {n: known[n if n in known else n.rpartition("_")[0]] for n in wanted}
                found = session.run(None, given, limit.run)
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                reason = first_line(error)
                raise ModelFolderError(f"{folder / path} cannot be run: {reason}") from error
        known |= dict(zip((value.name for value in session.get_outputs()), found, strict=True))


def measured(folder: Path, precision: str, images: Photographs) -> dict[str, Any]:
    """What the manifest records of one quantised graph."""
    source = folder / graph_of(folder)
    fp32, quantized = (_session(path) for path in (source, folder / graph_of(folder, precision)))
    pixels, labels = images.pixels(images.held_out), images.labels()
    features, found = (_outputs(one, pixels) for one in (fp32, quantized))
    cosine = cosines(features, found)
    return {
        "source": file_sha256(source),
        "calibration_images": len(images.calibration) if precision == "int8" else 0,
        "held_out_images": len(images.held_out),
        "inventory": images.inventory.record(),
        "cosine_mean": float(cosine.mean()),
        "cosine_worst": float(cosine.min()),
        "probe_loss": probe_loss(features, found, labels),
        "heads": _head_changes(folder, fp32, quantized, images),
        **_matcher_changes(folder, fp32, quantized, images),
        "gated_on": "CPUExecutionProvider",
        "speed": _speed(fp32, quantized, pixels[:BATCH]) if precision == "int8" else None,
    }


def failed(measured: dict[str, Any], spec: Spec, require_speedup: float | None) -> str:
    """Every gate that what was measured does not pass, or nothing; NaN passes none."""
    least = {
        "features' cosine on average": (measured["cosine_mean"], parity.MEAN_COSINE),
        "features' cosine at worst": (measured["cosine_worst"], parity.WORST_COSINE),
    }
    if "maps_cosine" in measured:
        least["maps' cosine on average"] = measured["maps_cosine"], parity.MAPS_COSINE
    if require_speedup is not None:
        least["the speed-up"] = measured["speed"]["speedup"], require_speedup
    most = {}
    if measured["probe_loss"] is not None:
        most["the linear probe's loss"] = measured["probe_loss"], PROBE_LOSS
    for kind, change in measured["heads"].items():
        most[f"the change of head {kind}"] = change, most_change(spec.heads[kind].type)
    for kind, change in measured.get("matcher", {}).items():
        bound = most_change("regression" if kind == "crop" else "binary")
        most[f"the change of the matcher's {kind}"] = change, bound
    return "; ".join(
        [f"{n} is {v:.4f}, at least {b} is wanted" for n, (v, b) in least.items() if not v >= b]
        + [f"{n} is {v:.4f}, at most {b} is wanted" for n, (v, b) in most.items() if not v <= b]
    )


def probe_loss(features: np.ndarray, found: np.ndarray, labels: np.ndarray | None) -> float | None:
    """How much accuracy a linear probe loses; None without enough labelled images."""
    if labels is None or len(labels) < PROBE_IMAGES:
        return None
    return probe_accuracy(features, labels) - probe_accuracy(found, labels)


def probe_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of a ridge classifier on standardised features (N, D), each image held out once."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    gram, targets = x @ x.T / x.shape[1], np.eye(labels.max() + 1)[labels]
    fold = np.arange(len(x)) % FOLDS
    right = 0
    for k in range(FOLDS):
        rest, out = fold != k, fold == k
        solved = np.linalg.solve(
            gram[np.ix_(rest, rest)] + RIDGE * np.eye(rest.sum()), targets[rest]
        )
        right += int((np.argmax(gram[np.ix_(out, rest)] @ solved, 1) == labels[out]).sum())
    return right / len(x)


def _head_changes(folder: Path, fp32: Any, quantized: Any, images: Photographs) -> dict[str, float]:
    """kind -> average change of what the head predicts of pairs of views."""
    spec = read_spec(folder)
    if not (folder / HEADS_GRAPH).is_file():
        return {}
    session, views = _session(folder / HEADS_GRAPH), images.views(spec.policy)
    answers = []
    for encoder in (fp32, quantized):
        a, b = (_outputs(encoder, view) for view in views)
        answers.append(session.run(list(spec.heads), {"features_a": a, "features_b": b}))
    pairs = zip(spec.heads, *answers, strict=True)
    return {kind: head_change(spec, kind, raw, other) for kind, raw, other in pairs}


def _matcher_changes(
    folder: Path, fp32: Any, quantized: Any, images: Photographs
) -> dict[str, Any]:
    """The maps' mean cosine, and the average change of what the matcher says of pairs of views.

    Crop in standard deviations of its target, the others in probabilities; nothing without one.
    """
    spec = read_spec(folder)
    if spec.matcher is None or not (folder / MATCHER_GRAPH).is_file():
        return {}
    session, views = _session(folder / MATCHER_GRAPH), images.views(spec.policy)
    answers, sides = [], []
    for encoder in (fp32, quantized):
        a, b = (_outputs(encoder, view, "maps") for view in views)
        both = ({"maps_a": a, "maps_b": b}, {"maps_a": b, "maps_b": a})
        raw = [dict(zip(OUTPUTS, session.run(list(OUTPUTS), pair), strict=True)) for pair in both]
        answers.append(matcher_prediction(spec.matcher, *raw))
        sides.append(np.concatenate([a, b]).reshape(2 * len(a), -1))
    std = np.array([d.std for d in spec.matcher.heads["crop"].dimensions])
    scales = dict.fromkeys([*spec.matcher.heads, "match"], 1.0) | {"crop": std}
    exact, found = answers
    changes = {k: float(np.abs((exact[k] - found[k]) / s).mean()) for k, s in scales.items()}
    return {"maps_cosine": float(cosines(*sides).mean()), "matcher": changes}


def _speed(fp32: Any, quantized: Any, pixels: np.ndarray) -> dict[str, Any]:
    """On ready tensors, one thread, the graphs in turn: what else the machine does hits both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for session, taken in zip((fp32, quantized), seconds, strict=True):
            started = time.perf_counter()
            session.run(["features"], {"images": pixels})
            taken.append(time.perf_counter() - started)
    slow, fast = map(statistics.median, seconds)
    return {
        "speedup": slow / fast,
        "fp32_images_per_second": len(pixels) / slow,
        "images_per_second": len(pixels) / fast,
        "batch": len(pixels),
        "threads": 1,
        "machine": platform.machine(),
    }


def _outputs(session: Any, pixels: np.ndarray, name: str = "features") -> np.ndarray:
    runs = [session.run([name], {"images": batch})[0] for batch in batches(pixels)]
    return np.concatenate(runs)


def batches(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


def _session(path: Path, limit: TimeLimit | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if limit is not None:
        limit.load(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
