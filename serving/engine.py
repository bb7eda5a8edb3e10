"""A model folder's two ONNX graphs, run by ONNX Runtime.

    onnx/model.onnx   images (N, S, S, 3) uint8 -> features (N, D); normalisation inside
    onnx/heads.onnx   features_a, features_b (N, D) -> one raw output (N, outputs) a head

Sessions may be run from several threads at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from augself_hub import hub
from augself_hub.augmentations.difference import both_orders, to_physical
from augself_hub.errors import ModelFolderError
from augself_hub.folder import ENCODER_GRAPH, HEADS_GRAPH, read_manifest, read_spec
from augself_hub.preprocess import Preprocessing
from serving.cores import usable_cores
from serving.providers import open_sessions

MAX_BATCH = 32  # images in one run: ONNX Runtime's arena keeps the memory of its largest batch
EMBEDDED_NAME = "embedded"


class Engine:
    """One model, ready to run.

    Args:
        folder: a model folder with its graphs (see `load` for names and Hub ids).
        device: auto, cpu, cuda or tensorrt (see `providers`).
        threads: of ONNX Runtime; None: as many as there are usable cores.
        name: what the model is called in answers; None: the folder's name.

    Attributes:
        spec: the augmentations and heads. preprocessing: side, mean and std.
        sha256: of onnx/model.onnx. provider: what the sessions run on, ONNX Runtime's name.

    Raises:
        ModelFolderError: a graph is missing or is not the one the folder describes.
        AugSelfError: the device cannot be had.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        folder = Path(folder)
        self.name = name or folder.resolve().name
        self.sha256 = _sha256(folder)
        self.spec = read_spec(folder)
        self.preprocessing = Preprocessing.from_folder(folder)
        graphs = (folder / ENCODER_GRAPH, folder / HEADS_GRAPH)
        self._encoder, self._heads = open_sessions(graphs, device, threads or usable_cores())
        self.provider: str = self._encoder.get_providers()[0]
        self._check(folder)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N >= 1 preprocessed images, each (S, S, 3) uint8 -> (N, D) float32."""
        chunks = (images[i : i + MAX_BATCH] for i in range(0, len(images), MAX_BATCH))
        runs = [self._encoder.run(["features"], {"images": np.stack(c)})[0] for c in chunks]
        return np.concatenate(runs)

    def differences(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """What takes a to b: features (N, D) of N pairs -> kind -> (N, outputs), physical units.

        Both orders of a pair are run and averaged for the antisymmetric dimensions.
        """
        n = len(features_a)
        there_and_back = {
            "features_a": np.concatenate([features_a, features_b]),
            "features_b": np.concatenate([features_b, features_a]),
        }
        raw = self._heads.run(list(self.spec.heads), there_and_back)
        heads = self.spec.heads.items()
        physical = {k: to_physical(head, r) for (k, head), r in zip(heads, raw, strict=True)}
        return {k: both_orders(head, physical[k][:n], physical[k][n:]) for k, head in heads}

    def _check(self, folder: Path) -> None:
        """The graphs must be those the folder's other files describe."""
        side, heads = self.preprocessing.size, self.spec.heads
        image = self._encoder.get_inputs()[0]
        found = {image.name: image.shape[1:]}
        for output in (*self._encoder.get_outputs(), *self._heads.get_outputs()):
            found[output.name] = output.shape[1:]
        described = {"images": [side, side, 3], "features": [self.spec.features]}
        described |= {kind: [head.outputs] for kind, head in heads.items()}
        if list(found.items()) != list(described.items()):
            raise ModelFolderError(
                f"{folder} describes {described}, its graphs have {found}: "
                f"augself export --model {folder}"
            )


def load(model: str | None = None, device: str = "auto", threads: int | None = None) -> Engine:
    """A folder, a Hub id (`org/name@revision`) or None, the embedded model -> its engine.

    Raises:
        ModelFolderError, AugSelfError: see `hub.resolve` and `Engine`.
    """
    folder = hub.resolve(model)
    if model is None:
        return Engine(folder, device, threads, EMBEDDED_NAME)
    # A Hub id's folder is named after a commit; the id is the better name.
    return Engine(folder, device, threads, None if Path(model).is_dir() else model)


def _sha256(folder: Path) -> str:
    """Of the encoder's graph, as the manifest has it; both graphs have to be there."""
    files = read_manifest(folder)["files"]
    for graph in (ENCODER_GRAPH, HEADS_GRAPH):
        if graph.as_posix() not in files or not (folder / graph).is_file():
            raise ModelFolderError(
                f"{folder} has no {graph.as_posix()}: augself export --model {folder}"
            )
    return files[ENCODER_GRAPH.as_posix()]
