"""Model folder -> ONNX graphs, written only if they answer as torch does.

    onnx/model.onnx   images (N, S, S, 3) uint8 -> features (N, D); normalisation inside
    onnx/heads.onnx   features_a, features_b (N, D) -> one raw output per head, named by its kind

The parity gate compares ONNX Runtime with torch per image, norm-relative: ||f - g|| / ||g||. The
same weights give the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from augself_hub import card
from augself_hub.errors import AugSelfError, MissingExtra
from augself_hub.folder import (
    ENCODER_GRAPH,
    HEADS_GRAPH,
    changed_folder,
    file_sha256,
    read_manifest,
    write_manifest,
)
from augself_hub.modeling.encoders import pooled
from augself_hub.modeling.model import AugSelfHeads, AugSelfModel
from augself_hub.precision import GRAPHS, QUANTIZED

TOLERANCE = 1e-4
BATCHES = (1, 2, 17)
OPSET = 20


class EncoderGraph(nn.Module):
    """uint8 images in, features out: a quarter of the bytes, no train/serve skew."""

    def __init__(self, model: AugSelfModel) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder)
        # The exporter cannot take torch's fused attention apart where windows are in the batch.
        self.encoder.set_attn_implementation("eager")
        self.scale: Tensor
        self.shift: Tensor
        mean, std = (torch.tensor(v) for v in (model.preprocessing.mean, model.preprocessing.std))
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        return pooled(self.encoder, x)


class HeadsGraph(nn.Module):
    """The heads' raw outputs in the spec's order."""

    def __init__(self, heads: AugSelfHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features_a: Tensor, features_b: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.heads(features_a, features_b).values())


def export_folder(folder: Path) -> dict[str, float]:
    """Write onnx/ into a model folder, exchanging the folder in one step.

    Quantised graphs stay if they were made from the same fp32 graph; others go.

    Returns:
        The measured parity: the largest norm-relative difference of features and heads.

    Raises:
        AugSelfError: a graph differs from torch by more than 1e-4; the folder stays as it was.
        MissingExtra: the export extra is not installed.
    """
    require_export_extra()
    model = AugSelfModel.from_pretrained(folder)
    with changed_folder(folder) as stage:
        parity = write_graphs(model, stage)
        write_manifest(stage, parity | _quantized(stage))
        card.write(stage)
        write_manifest(stage)
    return parity


def _quantized(folder: Path) -> dict[str, Any]:
    """The records of quantised graphs that belong to this encoder graph; others are removed."""
    source = file_sha256(folder / ENCODER_GRAPH)
    parity = read_manifest(folder)["parity"]
    records = {p: parity[p] for p in QUANTIZED if p in parity and parity[p]["source"] == source}
    for precision in QUANTIZED:
        if precision not in records:
            (folder / GRAPHS[precision]).unlink(missing_ok=True)
    return records


def write_graphs(model: AugSelfModel, folder: Path) -> dict[str, float]:
    """Export the graphs into `folder`/onnx and pass them through the parity gate.

    A model without heads has no heads graph.
    """
    (folder / ENCODER_GRAPH).parent.mkdir(exist_ok=True)
    size, width = model.preprocessing.size, model.spec.features
    encoder, heads = EncoderGraph(model).eval(), HeadsGraph(model.heads).eval()
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    features = torch.zeros(2, width)
    kinds = list(model.spec.heads)
    with _one_registry():
        _export(encoder, {"images": images}, ["features"], folder / ENCODER_GRAPH)
        if kinds:
            pair = {"features_a": features, "features_b": features.clone()}
            _export(heads, pair, kinds, folder / HEADS_GRAPH)
    return _parity(encoder, heads, folder, size)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Lets torch's exporter make its table of operators once: 1.1 s of CPU, for each graph.

    It has no public switch for that; a torch whose exporter is made otherwise is left as it is.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        before, made = vars(ONNXRegistry)["from_torchlib"], ONNXRegistry.from_torchlib
    except (ImportError, KeyError):
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(made))  # type: ignore
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = before  # type: ignore


def _export(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    import onnx

    warnings.filterwarnings("ignore", message=".*The axis name: batch will not be used")
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        graph,
        kwargs=inputs,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes={name: {0: batch} for name in inputs},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None is what the older exporter returned
    onnx.save(_anonymous(program.model_proto), path)


def _anonymous(model: Any) -> Any:
    """The exporter notes source paths and stack traces in the graph: not for publication."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return model


@torch.no_grad()
def _parity(encoder: nn.Module, heads: HeadsGraph, folder: Path, size: int) -> dict[str, float]:
    """Largest norm-relative difference over batches of 1, 2 and 17 images."""
    generator = np.random.default_rng(0)
    worst = {"features": 0.0}
    for batch in BATCHES:
        images = generator.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        reference = encoder(torch.from_numpy(images))
        (features,) = _run(folder / ENCODER_GRAPH, {"images": images})
        worst["features"] = max(worst["features"], _difference(features, reference))
        if heads.heads:
            difference = _heads_difference(heads, reference, folder)
            worst["heads"] = max(worst.get("heads", 0.0), difference)
    for part, difference in worst.items():
        if not difference <= TOLERANCE:
            raise AugSelfError(
                f"export refused: {part} differ from torch by {difference:.1e}, "
                f"more than {TOLERANCE:.0e} (norm-relative)"
            )
    return worst


def _heads_difference(heads: nn.Module, features: Tensor, folder: Path) -> float:
    pair = {"features_a": features.numpy(), "features_b": features.flip(0).numpy()}
    raw = np.concatenate(_run(folder / HEADS_GRAPH, pair), axis=1)
    return _difference(raw, torch.cat(heads(features, features.flip(0)), dim=1))


def _difference(values: np.ndarray, reference: Tensor) -> float:
    expected = reference.numpy()
    norms = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(values - expected, axis=1) / np.maximum(norms, 1e-12)).max())


def _run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    from augself_hub.runtime import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, inputs)
    return outputs


def require_export_extra() -> None:
    """Raises MissingExtra where exporting is not installed."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise MissingExtra(name, "export")
