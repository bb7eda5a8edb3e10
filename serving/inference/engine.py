"""A model folder's two ONNX graphs, run by ONNX Runtime.

    onnx/model.onnx   images (N, S, S, 3) uint8 -> features (N, D); normalisation inside
    onnx/heads.onnx   features_a, features_b (N, D) -> one raw output (N, outputs) a head

The encoder comes in several precisions (see `augself_hub.precision`).

Sessions may be run from several threads at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub import hub
from augself_hub.augmentations.difference import both_orders, to_physical
from augself_hub.cores import usable_cores
from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.folder import HEADS_GRAPH, read_manifest, read_spec
from augself_hub.precision import GRAPHS, PRECISIONS, QUANTIZED
from augself_hub.preprocess import Preprocessing
from serving.inference.parity import refuse_unlike
from serving.inference.provider_options import BUCKETS
from serving.inference.providers import (
    CPU,
    ON_CPUS,
    PROVIDERS,
    Graph,
    device_of,
    open_graphs,
    time_limit,
)

MAX_BATCH = BUCKETS[-1]  # images in one run: ONNX Runtime keeps the memory of its largest batch
EMBEDDED_NAME = "embedded"


class Engine:
    """One model, ready to run.

    Args:
        folder: a model folder with its graphs (see `load` for names and Hub ids).
        device: auto, cpu, openvino, cuda or tensorrt (see `providers`).
        threads: of ONNX Runtime; None: as many as there are usable cores.
        name: what the model is called in answers; None: the folder's name.
        precision: of the encoder: fp32, bf16 (OpenVINO), int8 (CPUs) or fp16 (GPUs).
        decode: exact or fast (see `Preprocessing`).
        in_lanes: on a CPU, also open a session for runs of one thread each, side by side.

    Attributes:
        folder: where it is. spec: the augmentations and heads.
        preprocessing: side, mean, std and decode.
        sha256, heads_sha256: of the encoder's graph and of the heads' (None: no heads).
        provider: what the sessions run on, ONNX Runtime's name.
        lanes: how many runs of one thread make use of all threads; 1: there are no such runs.

    Raises:
        ModelFolderError: a graph is missing or is not the one the folder describes.
        UsageError: no such precision or device, or not together; no threads.
        AugSelfError: the device cannot be had, or answers otherwise than the CPU does.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        name: str | None = None,
        precision: str = "fp32",
        decode: str = "exact",
        in_lanes: bool = False,
    ) -> None:
        threads = usable_cores() if threads is None else threads
        _refuse_unknown(precision, threads)
        folder, device = Path(folder), device_of(device, precision)
        self.folder = folder
        self.name, self.precision = name or folder.resolve().name, precision
        self.spec = read_spec(folder)
        self.preprocessing = replace(Preprocessing.from_folder(folder), decode=decode)
        graphs = graphs_of(folder, precision)
        self.sha256 = graphs[0].sha256
        self.heads_sha256 = graphs[1].sha256 if self.spec.heads else None
        if device == "openvino":  # a graph that never ends is ended here
            on_cpu = "int8" if precision == "int8" else "fp32"
            plain = {p: Engine(folder, "cpu", threads, precision=p) for p in {"fp32", on_cpu}}
        self._encoder, *heads = open_graphs(graphs, device, threads)
        self._heads = heads[0] if heads else None
        self.provider: str = self._encoder.session.get_providers()[0]
        self.lanes = threads if in_lanes and self.provider in ON_CPUS else 1
        if self.lanes > 1:
            self._lane = open_graphs(graphs[:1], "cpu" if self.provider == CPU else device, 1)[0]
        self._check(folder)
        if device == "openvino":
            refuse_unlike(self, plain["fp32"])

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N >= 1 preprocessed images, each (S, S, 3) uint8 -> (N, D) float32."""
        chunks = (images[i : i + MAX_BATCH] for i in range(0, len(images), MAX_BATCH))
        runs = [self._encoder.run({"images": np.stack(chunk)})[0] for chunk in chunks]
        return np.concatenate(runs)

    def features_in_lane(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The same on one thread, for `lanes` > 1: so many at once lose nothing to waiting for each
        other, as the threads of one run do at every layer.
        """
        return self._lane.run({"images": np.stack(images)})[0]

    def differences(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """What takes a to b: features (N, D) of N pairs -> kind -> (N, outputs), physical units.

        Both orders of a pair are run and averaged for the antisymmetric dimensions. Empty where the
        model has no heads.
        """
        n = len(features_a)
        there, back = (features_a, features_b), (features_b, features_a)
        raw = self.heads(*(np.concatenate(sides) for sides in zip(there, back, strict=True)))
        heads = self.spec.heads.items()
        physical = {kind: to_physical(head, raw[kind]) for kind, head in heads}
        return {k: both_orders(head, physical[k][:n], physical[k][n:]) for k, head in heads}

    def heads(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """Features (N, D) of N pairs -> kind -> (N, outputs) as the graph gives them, raw.

        Empty where the model has no heads.
        """
        if self._heads is None:
            return {}
        raw = self._heads.run({"features_a": features_a, "features_b": features_b})
        return dict(zip(self.spec.heads, raw, strict=True))

    def _check(self, folder: Path) -> None:
        """The graphs must be those the folder's other files describe, and answer as they must."""
        side, heads = self.preprocessing.size, self.spec.heads
        image = self._encoder.session.get_inputs()[0]
        found = {image.name: (image.type, image.shape[1:])}
        for graph in (self._encoder, self._heads):
            for output in graph.session.get_outputs() if graph else ():
                found[output.name] = (output.type, output.shape[1:])
        described: dict[str, Any] = {"images": ("tensor(uint8)", [side, side, 3])}
        described["features"] = ("tensor(float)", [self.spec.features])
        described |= {kind: ("tensor(float)", [head.outputs]) for kind, head in heads.items()}
        if list(found.items()) != list(described.items()):
            raise ModelFolderError(
                f"{folder} describes {described}, its graphs have {found}: "
                f"augself export --model {folder}"
            )
        device = next(d for d, name in PROVIDERS.items() if name == self.provider)
        random = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
        random[0], random[1] = 0, 255
        try:
            with time_limit(folder, device) as limit:
                features = self._encoder.run({"images": random}, limit)[0]
                if self.lanes > 1:
                    self._lane.run({"images": random[:2]}, limit)
                if self._heads is not None:
                    self._heads.run({"features_a": features, "features_b": features[::-1]}, limit)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelFolderError(f"{folder} does not answer test images: {reason}") from error


def graphs_of(folder: Path, precision: str) -> list[Graph]:
    """The encoder's graph and, of a model with heads, theirs; there, as the manifest says.

    Raises:
        ModelFolderError: one is missing.
    """
    spec, side = read_spec(folder), Preprocessing.from_folder(folder).size
    encoder, files = GRAPHS[precision], read_manifest(folder)["files"]
    wanted = [(encoder, precision), (HEADS_GRAPH, "fp32")][: 2 if spec.heads else 1]
    for path, quantize in wanted:
        if path.as_posix() not in files or not (folder / path).is_file():
            option = f" --quantize {quantize} --calibration PHOTOGRAPHS"
            raise ModelFolderError(
                f"{folder} has no {path.as_posix()}: augself export --model {folder}"
                f"{option if quantize in QUANTIZED else ''}"
            )
    inputs: list[dict[str, tuple[int, ...]]] = [
        {"images": (side, side, 3)},
        {"features_a": (spec.features,), "features_b": (spec.features,)},
    ]
    return [
        Graph(folder / path, files[path.as_posix()], precision, shapes)
        for (path, precision), shapes in zip(wanted, inputs, strict=False)
    ]


def load(
    model: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    decode: str = "exact",
) -> Engine:
    """A folder, a Hub id (`org/name@revision`) or None, the embedded model -> its engine.

    Raises:
        ModelFolderError, AugSelfError: see `hub.resolve` and `Engine`.
    """
    return Engine(hub.resolve(model), device, threads, name_of(model), precision, decode)


def name_of(model: str | None) -> str:
    """What a model is called in answers: a folder's name, a Hub id, `embedded`."""
    if model is None:
        return EMBEDDED_NAME
    # A Hub id's folder is named after a commit; the id is the better name.
    return Path(model).resolve().name if Path(model).is_dir() else model


def _refuse_unknown(precision: str, threads: int) -> None:
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UsageError(f"there is no precision {precision!r}: give one of {known}")
    if threads < 1:
        raise UsageError(f"{threads} threads cannot run a model: give at least 1, or none")
