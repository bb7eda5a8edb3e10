"""A model folder's ONNX graphs, run by ONNX Runtime.

    onnx/features.onnx  images (N, S, S, 3) uint8 -> features (N, D); normalisation inside; of a
                        model with a matcher also maps (N, C, S, S), where they are asked for
    onnx/heads.onnx     features_a, features_b (N, D) -> one raw output (N, outputs) a head, and
                        log_variance (N, n) where the model states errors of each pair
    onnx/matcher.onnx   maps_a, maps_b (N, C, S, S) -> crop, log_variance, flip, rot, match, raw

The encoder comes in several precisions (see `augself_hub.precision`).

Sessions may be run from several threads at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub import hub
from augself_hub.augmentations.matching import Prediction, prediction_of
from augself_hub.cores import usable_cores
from augself_hub.differences import Answered
from augself_hub.errors import ModelFolderError, UsageError, first_line
from augself_hub.folder import HEADS_GRAPH, MATCHER_GRAPH, read_manifest, read_spec
from augself_hub.precision import PRECISIONS, QUANTIZED, graph_of
from augself_hub.preprocess import Preprocessing
from augself_hub.time_limit import LOAD_SECONDS, time_limit
from serving.inference.parity import refuse_unlike
from serving.inference.provider_options import BUCKETS
from serving.inference.providers import (
    CPU,
    ON_CPUS,
    PROVIDERS,
    Graph,
    device_of,
    open_graphs,
)

MAX_BATCH = BUCKETS[-1]  # images in one run: ONNX Runtime keeps the memory of its largest batch
LANE_IMAGES = 4  # in one run in a lane; on one thread more are no faster
DIGESTS = {  # of all that decides what an engine says: its attribute -> what it is the sha256 of
    "sha256": "the model",
    "heads_sha256": "the model's heads",
    "matcher_sha256": "the model's matcher",
    "spec_sha256": "what the model's augself/config.json says",
}


@dataclass(frozen=True)
class Encoded:
    """What an encoder gives of N images; sliced like an array.

    Args:
        features: (N, D) float32.
        maps: (N, C, S, S) float32 for the matcher; None of a model without one.
    """

    features: np.ndarray
    maps: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> Encoded:
        return Encoded(self.features[rows], None if self.maps is None else self.maps[rows])


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
        sha256, heads_sha256, matcher_sha256: of the encoder's graph, of the heads' and of the
            matcher's (None: there are none). spec_sha256: of `spec`, provenance apart.
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
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"there is no precision {precision!r}: give one of {known}")
        if type(threads) is not int or threads < 1:
            raise UsageError(f"{threads!r} threads cannot run a model: give at least 1, or none")
        folder, device = Path(folder), device_of(device, precision)
        self.folder = folder
        self.name, self.precision = name or folder.resolve().name, precision
        self.spec = read_spec(folder)
        self._outputs = ["features"] if self.spec.matcher is None else ["features", "maps"]
        self.preprocessing = replace(Preprocessing.from_folder(folder), decode=decode)
        graphs = graphs_of(folder, precision)
        self.sha256 = graphs[0].sha256
        if device == "openvino":  # a graph that never ends is ended here
            on_cpu = "int8" if precision == "int8" else "fp32"
            plain = {p: Engine(folder, "cpu", threads, precision=p) for p in {"fp32", on_cpu}}
        of = {graph.path.name: graph.sha256 for graph in graphs}
        self.heads_sha256, self.matcher_sha256 = (
            of.get(path.name) for path in (HEADS_GRAPH, MATCHER_GRAPH)
        )
        decisive = replace(self.spec, provenance={}).to_json()
        self.spec_sha256 = hashlib.sha256(decisive.encode()).hexdigest()
        runners = dict(zip(of, open_graphs(graphs, device, threads), strict=True))
        self._encoder = runners[graphs[0].path.name]
        self._heads, self._matcher = (
            runners.get(path.name) for path in (HEADS_GRAPH, MATCHER_GRAPH)
        )
        self.provider: str = self._encoder.session.get_providers()[0]
        self.lanes = threads if in_lanes and self.provider in ON_CPUS else 1
        if self.lanes > 1:
            self._lane = open_graphs(graphs[:1], "cpu" if self.provider == CPU else device, 1)[0]
        self._check(folder)
        if device == "openvino":
            refuse_unlike(self, plain["fp32"])

    @property
    def digests(self) -> dict[str, str | None]:
        """Of all that decides what it says, by their names in DIGESTS."""
        return {name: getattr(self, name) for name in DIGESTS}

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N >= 1 preprocessed images, each (S, S, 3) uint8 -> (N, D) float32."""
        return self._encoder.run({"images": np.stack(images)}, outputs=["features"])[0]

    def encode(self, images: Sequence[np.ndarray]) -> Encoded:
        """The same with the maps that a matcher compares, where there is one."""
        return Encoded(*self._encoder.run({"images": np.stack(images)}, outputs=self._outputs))

    def features_in_lane(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The same on one thread, for `lanes` > 1: so many at once lose nothing to waiting for each
        other, as the threads of one run do at every layer.
        """
        return self._in_lane(images, ["features"])[0]

    def encode_in_lane(self, images: Sequence[np.ndarray]) -> Encoded:
        """`encode`, likewise."""
        return Encoded(*self._in_lane(images, self._outputs))

    def _in_lane(self, images: Sequence[np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        return self._lane.run({"images": np.stack(images)}, outputs=outputs, most=LANE_IMAGES)

    def predict(self, images: Sequence[np.ndarray], encoded: Encoded | None = None) -> Answered:
        """What takes the first picture of each of N pairs to the second.

        Args:
            images: 2 N preprocessed ones, all first ones, then all second ones.
            encoded: theirs; None: not computed yet.
        """
        encoded = self.encode(images) if encoded is None else encoded
        pairs = len(images) // 2
        a, b = encoded[:pairs], encoded[pairs:]
        return Answered.of(self.spec, images, encoded.features, self.predict_pair(a, b))

    def predict_pair(self, a: Encoded, b: Encoded) -> Prediction:
        """What takes a to b, N pairs of encoded pictures, by whichever head answers.

        Both orders of a pair are run, each once.
        """
        n, by_matcher = len(a.features), None
        if self._matcher is not None and a.maps is not None and b.maps is not None:
            raw = self.matcher(np.concatenate([a.maps, b.maps]), np.concatenate([b.maps, a.maps]))
            by_matcher = _halves(raw, n)
        first, second = a.features, b.features
        raw = self.heads(np.concatenate([first, second]), np.concatenate([second, first]))
        return prediction_of(self.spec, _halves(raw, n), by_matcher)

    def differences(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """The same of stored features (N, D) alone, which the matcher cannot answer: kind -> (N,
        outputs) in physical units. Empty where the model has no heads.
        """
        return self.predict_pair(Encoded(features_a), Encoded(features_b)).values

    def heads(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """Features (N, D) of N pairs -> the graph's outputs by name, raw (`Spec.head_outputs`).

        Empty where the model has no heads.
        """
        if self._heads is None:
            return {}
        raw = self._heads.run({"features_a": features_a, "features_b": features_b})
        return dict(zip(self.spec.head_outputs(), raw, strict=True))

    def matcher(self, maps_a: np.ndarray, maps_b: np.ndarray) -> dict[str, np.ndarray]:
        """Maps (N, C, S, S) of N pairs -> the matcher's outputs by name, raw (`MatcherSpec`)."""
        assert self._matcher is not None and self.spec.matcher is not None, "there is no matcher"
        raw = self._matcher.run({"maps_a": maps_a, "maps_b": maps_b})
        return dict(zip(self.spec.matcher.outputs(), raw, strict=True))

    def _check(self, folder: Path) -> None:
        """The graphs must be those the folder's other files describe, and answer as they must."""
        side, matcher = self.preprocessing.size, self.spec.matcher
        image = self._encoder.session.get_inputs()[0]
        found = {image.name: (image.type, image.shape[1:])}
        graphs = {"": self._encoder, "heads: ": self._heads, "matcher: ": self._matcher}
        for part, graph in graphs.items():
            for output in graph.session.get_outputs() if graph else ():
                found[part + output.name] = (output.type, output.shape[1:])
        described: dict[str, Any] = {"images": ("tensor(uint8)", [side, side, 3])}
        described["features"] = ("tensor(float)", [self.spec.features])
        if matcher is not None:
            described["maps"] = ("tensor(float)", list(matcher.maps))
        widths = {f"heads: {name}": width for name, width in self.spec.head_outputs().items()}
        if matcher is not None:
            widths |= {f"matcher: {name}": width for name, width in matcher.outputs().items()}
        described |= {name: ("tensor(float)", [width]) for name, width in widths.items()}
        if list(found.items()) != list(described.items()):
            raise ModelFolderError(
                f"{folder} describes {described}, its graphs have {found}: "
                f"augself export --model {folder}"
            )
        device = next(d for d, name in PROVIDERS.items() if name == self.provider)
        random = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
        random[0], random[1] = 0, 255
        try:
            with time_limit(folder, LOAD_SECONDS[device]) as limit:
                features, *maps = self._encoder.run({"images": random}, limit)
                if self.lanes > 1:
                    self._lane.run({"images": random[:2]}, limit)
                if self._heads is not None:
                    self._heads.run({"features_a": features, "features_b": features[::-1]}, limit)
                if self._matcher is not None:
                    self._matcher.run({"maps_a": maps[0], "maps_b": maps[0][::-1]}, limit)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = first_line(error)
            raise ModelFolderError(f"{folder} does not answer test images: {reason}") from error


def _halves(raw: dict[str, np.ndarray], n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of 2 N ordered pairs -> those of the first N, and of the others."""
    return {name: v[:n] for name, v in raw.items()}, {name: v[n:] for name, v in raw.items()}


def graphs_of(folder: Path, precision: str) -> list[Graph]:
    """The encoder's graph, the heads' and the matcher's, where the model has them, in this order;
    there, as the manifest says.

    Raises:
        ModelFolderError: one is missing.
    """
    spec, side = read_spec(folder), Preprocessing.from_folder(folder).size
    encoder, files = graph_of(folder, precision), read_manifest(folder)["files"]
    pair = {f"features_{which}": (spec.features,) for which in "ab"}
    wanted: list[tuple[Path, str, dict[str, tuple[int, ...]]]]
    wanted = [(encoder, precision, {"images": (side, side, 3)})]
    if spec.heads:
        wanted.append((HEADS_GRAPH, "fp32", {**pair}))
    if spec.matcher is not None:
        maps = {f"maps_{which}": spec.matcher.maps for which in "ab"}
        wanted.append((MATCHER_GRAPH, "fp32", {**maps}))
    for path, quantize, _ in wanted:
        if path.as_posix() not in files or not (folder / path).is_file():
            option = f" --quantize {quantize} --calibration PHOTOGRAPHS"
            raise ModelFolderError(
                f"{folder} has no {path.as_posix()}: augself export --model {folder}"
                f"{option if quantize in QUANTIZED else ''}"
            )
    return [
        Graph(folder / path, files[path.as_posix()], precision, shapes)
        for path, precision, shapes in wanted
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
    return Engine(hub.resolve(model), device, threads, hub.name_of(model), precision, decode)
