"""Encoder graph -> a smaller one, written only if it answers nearly as the fp32 graph does.

    onnx/model_int8.onnx   for CPUs: static QDQ, uint8 activations, 7-bit weights per channel
    onnx/model_fp16.onnx   for GPUs: half precision inside, float32 features

Of a model with a matcher they are features_int8.onnx and features_fp16.onnx, and give maps as well.

Activations are uint8 and weights keep one bit free (`reduce_range`): without VNNI, ONNX Runtime
multiplies with an instruction that saturates at 16 bits, and full 8-bit weights then give wrong
features on an older CPU after passing every gate on a newer one. Signed activations cost the
whole gain on such a CPU. The graph made here answers alike on both.

The first layers lose most and, with few channels, gain least: one of them stays in fp32, and more
where the gates ask for it (`FP32_LAYERS`).

Gates, on photographs that took no part in the calibration (`augself_hub.parity` and `PROBE_LOSS`):
features, a linear probe on them, and every head and the matcher on pairs of views, separately.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.matching import OUTPUTS, matcher_prediction
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.errors import AugSelfError, ImageError, ModelFolderError
from augself_hub.folder import (
    HEADS_GRAPH,
    MATCHER_GRAPH,
    changed_folder,
    file_sha256,
    read_manifest,
    read_spec,
    write_manifest,
)
from augself_hub.images import Listing, open_source
from augself_hub.modeling.export import require_export_extra
from augself_hub.modeling.views import two_crops
from augself_hub.parity import (
    HEAD_TOLERANCE,
    MAPS_COSINE,
    MEAN_COSINE,
    PROBABILITY_TOLERANCE,
    WORST_COSINE,
    cosines,
    head_change,
)
from augself_hub.precision import graph_of
from augself_hub.preprocess import Preprocessing, decode, preprocess

log = logging.getLogger(__name__)
PROBE_LOSS = 0.005  # of a linear probe's accuracy
PROBE_IMAGES = 200  # with fewer, one image weighs more than PROBE_LOSS: not measured
FP32_LAYERS = {"int8": (1, 5, 9), "fp16": (0,)}  # how many of the first ones, tried in turn
MIN_IMAGES = 24
CALIBRATION_IMAGES, HELD_OUT_IMAGES, PAIRS = 128, 1024, 256  # at most
BATCH = 16
FOLDS, RIDGE = 5, 1.0
ROUNDS = 15


def quantize_folder(
    folder: Path, precision: str, photographs: str | Path, require_speedup: float | None = None
) -> dict[str, Any]:
    """Add a quantised graph to a model folder, exchanging the folder in one step.

    Args:
        precision: int8 or fp16.
        photographs: any source of images that can be listed (docs/data-sources.md).
        require_speedup: int8 only: times the fp32 graph's images a second.

    Returns:
        What was measured, as the manifest records it under `parity`: cosines, the probe's loss in
        accuracy (None: not measured), the change of each head, speed (None for fp16).

    Raises:
        AugSelfError: a gate failed, and which; the folder stays as it was.
        ModelFolderError: the folder has no fp32 graph.
        MissingExtra: the export extra is not installed.
    """
    require_export_extra()
    source = graph_of(read_spec(folder))
    if not (folder / source).is_file():
        raise ModelFolderError(f"{folder} has no {source}: augself export --model {folder}")
    images = Photographs.split(photographs, Preprocessing.from_folder(folder).size)
    with changed_folder(folder) as stage:
        measured = _quantize(stage, precision, images, require_speedup)
        write_manifest(stage, read_manifest(stage)["parity"] | {precision: measured})
    return measured


@dataclass(frozen=True)
class Photographs:
    """Real images, some to calibrate with, others to judge by.

    Args:
        listing: all of them. side: of a preprocessed image, in pixels.
        calibration, held_out: positions, disjoint.
    """

    listing: Listing
    side: int
    calibration: Sequence[int]
    held_out: Sequence[int]

    @classmethod
    def split(cls, source: str | Path, side: int) -> Photographs:
        """A third of the images, at most 128, calibrate; at most 1024 others judge."""
        opened = open_source(source)
        log.info("%s", opened.inventory.text())
        listing = opened.listing()
        positions = list(range(len(listing.names)))
        if len(positions) < MIN_IMAGES:
            raise AugSelfError(
                f"{source} holds {len(positions)} images: quantisation needs at least {MIN_IMAGES} "
                "photographs like those the model will see"
            )
        random.Random(0).shuffle(positions)
        cut = min(CALIBRATION_IMAGES, len(positions) // 3)
        return cls(listing, side, positions[:cut], positions[cut : cut + HELD_OUT_IMAGES])

    def decoded(self, position: int) -> Image.Image:
        try:
            return decode(self.listing.read(position))
        except (ImageError, OSError) as error:
            raise AugSelfError(f"{self.listing.names[position]}: {error}") from error

    def pixels(self, positions: Sequence[int]) -> np.ndarray:
        """(N, S, S, 3) uint8."""
        return np.stack([preprocess(self.decoded(position), self.side) for position in positions])

    def labels(self) -> np.ndarray | None:
        """The held-out images' classes (N,), or None where there are not two of them."""
        labels = np.array([self.listing.labels[position] for position in self.held_out])
        present = np.unique(labels)
        if len(present) < 2 or present[0] < 0:
            return None
        return np.searchsorted(present, labels)

    def views(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Two views of held-out images as the heads met them in training, each (N, S, S, 3)."""
        policy = dataclasses.replace(policy, size=self.side)
        pairs = [
            two_crops(self.decoded(position), policy, 0, 0, index)
            for index, position in enumerate(self.held_out[:PAIRS])
        ]
        a, b = (_augmented([pair[view] for pair in pairs], policy) for view in (0, 1))
        return a, b


def _augmented(views: list[tuple[np.ndarray, Any]], policy: Policy) -> np.ndarray:
    crops = np.stack([crop for crop, _ in views]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    names = views[0][1]
    parameters = {name: np.concatenate([row[name] for _, row in views]) for name in names}
    augmented: np.ndarray = augment(crops, parameters, policy).transpose(0, 2, 3, 1)
    return np.round(augmented * 255).astype(np.uint8)


# -- The graphs ------------------------------------------------------------------------------------


def _quantize(
    folder: Path, precision: str, images: Photographs, require_speedup: float | None
) -> dict[str, Any]:
    """Write the graph with as few fp32 layers as the gates allow; what was measured of it."""
    spec, failed = read_spec(folder), ""
    source, target = (folder / graph_of(spec, p) for p in ("fp32", precision))
    for layers in FP32_LAYERS[precision]:
        _WRITERS[precision](source, target, images, layers)
        measured = _measured(folder, precision, images) | {"fp32_layers": layers}
        failed = _failed(measured, spec, require_speedup)
        if not failed:
            return measured
    raise AugSelfError(f"{precision} refused, the folder is as it was: {failed}")


def _write_int8(source: Path, target: Path, images: Photographs, fp32_layers: int) -> None:
    """Static QDQ: calibrated by minimum and maximum, per channel."""
    from augself_hub.runtime import with_quantization

    tools = with_quantization().quantization
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"  # batch norms folded, shapes known
        tools.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        tools.quantize_static(
            prepared,
            target,
            _Reader(images.pixels(images.calibration)),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=_first_nodes(prepared, fp32_layers),
        )


def _write_fp16(source: Path, target: Path, images: Photographs, fp32_layers: int) -> None:
    """Needs no photographs; its signature is the table's."""
    import onnx

    from augself_hub.runtime import with_quantization

    float16 = with_quantization().transformers.float16
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


_WRITERS = {"int8": _write_int8, "fp16": _write_fp16}


class _Reader:
    """What the calibration asks for batches, until there is none."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._batches = _batches(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _first_nodes(path: Path, layers: int) -> list[str]:
    """The normalisation and everything up to the end of the first layers."""
    import onnx

    nodes = onnx.load(path).graph.node
    places = [i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm")]
    end = places[layers] if layers < len(places) else len(nodes)
    return [node.name for node in nodes[:end]]


# -- The gates -------------------------------------------------------------------------------------


def _measured(folder: Path, precision: str, images: Photographs) -> dict[str, Any]:
    """What the manifest records of one quantised graph."""
    spec = read_spec(folder)
    source = folder / graph_of(spec)
    fp32, quantized = (_session(path) for path in (source, folder / graph_of(spec, precision)))
    pixels, labels = images.pixels(images.held_out), images.labels()
    features, found = _features(fp32, pixels), _features(quantized, pixels)
    cosine = cosines(features, found)
    return {
        "source": file_sha256(source),
        "calibration_images": len(images.calibration) if precision == "int8" else 0,
        "held_out_images": len(images.held_out),
        "cosine_mean": float(cosine.mean()),
        "cosine_worst": float(cosine.min()),
        "probe_loss": _probe_loss(features, found, labels),
        "heads": _head_changes(folder, fp32, quantized, images),
        **_matcher_changes(folder, fp32, quantized, images),
        "gated_on": "CPUExecutionProvider",
        "speed": _speed(fp32, quantized, pixels[:BATCH]) if precision == "int8" else None,
    }


def _failed(measured: dict[str, Any], spec: Spec, require_speedup: float | None) -> str:
    """Every gate that failed, or nothing; a number that is none fails too."""
    return "; ".join(
        f"{name} is {found:.4f}, {limit} is wanted"
        for name, found, passed, limit in _gates(measured, spec, require_speedup)
        if not passed
    )


def _gates(
    measured: dict[str, Any], spec: Spec, require_speedup: float | None
) -> Iterator[tuple[str, float, bool, str]]:
    """(what, measured, passed, what is wanted) of every gate that was measured."""
    mean, worst, loss = (measured[k] for k in ("cosine_mean", "cosine_worst", "probe_loss"))
    yield "features' cosine on average", mean, mean >= MEAN_COSINE, f"at least {MEAN_COSINE}"
    yield "features' cosine at worst", worst, worst >= WORST_COSINE, f"at least {WORST_COSINE}"
    if loss is not None:
        yield "the linear probe's loss", loss, loss <= PROBE_LOSS, f"at most {PROBE_LOSS}"
    for kind, change in measured["heads"].items():
        most = HEAD_TOLERANCE if spec.heads[kind].type == "regression" else PROBABILITY_TOLERANCE
        yield f"the change of head {kind}", change, change <= most, f"at most {most}"
    for kind, change in measured.get("matcher", {}).items():
        most = HEAD_TOLERANCE if kind == "crop" else PROBABILITY_TOLERANCE
        yield f"the change of the matcher's {kind}", change, change <= most, f"at most {most}"
    if (cosine := measured.get("maps_cosine")) is not None:
        yield "maps' cosine on average", cosine, cosine >= MAPS_COSINE, f"at least {MAPS_COSINE}"
    if require_speedup is not None:
        times = measured["speed"]["speedup"]
        yield "the speed-up", times, times >= require_speedup, f"at least {require_speedup}"


def _probe_loss(features: np.ndarray, found: np.ndarray, labels: np.ndarray | None) -> float | None:
    """How much accuracy a linear probe loses; None without enough labelled images."""
    if labels is None or len(labels) < PROBE_IMAGES:
        return None
    return _probe(features, labels) - _probe(found, labels)


def _probe(features: np.ndarray, labels: np.ndarray) -> float:
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
        a, b = (_features(encoder, view) for view in views)
        answers.append(session.run(list(spec.heads), {"features_a": a, "features_b": b}))
    pairs = zip(spec.heads.items(), *answers, strict=True)
    return {kind: head_change(head, raw, other) for (kind, head), raw, other in pairs}


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
    seconds = [[_seconds(session, pixels) for session in (fp32, quantized)] for _ in range(ROUNDS)]
    slow, fast = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "speedup": slow / fast,
        "fp32_images_per_second": len(pixels) / slow,
        "images_per_second": len(pixels) / fast,
        "batch": len(pixels),
        "threads": 1,
        "machine": platform.machine(),
    }


def _seconds(session: Any, pixels: np.ndarray) -> float:
    started = time.perf_counter()
    session.run(["features"], {"images": pixels})
    return time.perf_counter() - started


def _features(session: Any, pixels: np.ndarray) -> np.ndarray:
    return _outputs(session, pixels, "features")


def _outputs(session: Any, pixels: np.ndarray, name: str) -> np.ndarray:
    runs = [session.run([name], {"images": batch})[0] for batch in _batches(pixels)]
    return np.concatenate(runs)


def _batches(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


def _session(path: Path) -> Any:
    from augself_hub.runtime import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
