"""Model folder -> ONNX graphs, written only if they answer as torch does.

    onnx/features.onnx  images (N, S, S, 3) uint8 -> features (N, D); normalisation inside; of a
                        model with a matcher also maps (N, C, S, S)
    onnx/heads.onnx     features_a, features_b (N, D) -> one raw output per head, named by its kind,
                        and log_variance where the model states errors of each pair
    onnx/matcher.onnx   maps_a, maps_b (N, C, S, S) -> crop, log_variance, flip, rot, match, raw

and where it was asked for, for transformers.js and other tools that take a stock model:

    onnx/model.onnx     pixel_values (N, 3, S, S) -> last_hidden_state, pooler_output

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
from augself_hub.atomic import write_json
from augself_hub.configs import read_json
from augself_hub.errors import AugSelfError, MissingExtra
from augself_hub.folder import (
    FEATURES_GRAPH,
    HEADS_GRAPH,
    MATCHER_GRAPH,
    STOCK_GRAPH,
    changed_folder,
    file_sha256,
    read_manifest,
    write_manifest,
)
from augself_hub.modeling.encoders import pooled
from augself_hub.modeling.maps import MapPlace, features_and_map
from augself_hub.modeling.matcher import Matcher
from augself_hub.modeling.model import AugSelfHeads, AugSelfModel
from augself_hub.precision import GRAPHS, GRAPHS_OF_0_1, QUANTIZED, graph_of

TOLERANCE = 1e-4
BATCHES = (1, 2, 17)
OPSET = 20
OUTPUTS = ["last_hidden_state", "pooler_output"]
_IN_FULL = {"dtype": "fp32"}
_OUTPUT = "__output"  # behind an output's name while the exporter chooses names of its own


class EncoderGraph(nn.Module):
    """uint8 images in, features out: a quarter of the bytes, no train/serve skew.

    Of a model with a matcher the maps come out, too.
    """

    def __init__(self, model: AugSelfModel) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder)
        # The exporter cannot take torch's fused attention apart where windows are in the batch.
        self.encoder.set_attn_implementation("eager")
        matcher = model.spec.matcher
        self.place = None if matcher is None else MapPlace.of(matcher)
        self.scale: Tensor
        self.shift: Tensor
        mean, std = (torch.tensor(v) for v in (model.preprocessing.mean, model.preprocessing.std))
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def pixels(self, images: Tensor) -> Tensor:
        """What the stock processor gives of them, (N, 3, S, S)."""
        return images.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.pixels(images)
        if self.place is None:
            return (pooled(self.encoder, x),)
        return features_and_map(self.encoder, x, self.place)


class StockGraph(nn.Module):
    """What `AutoModel` answers to the pixels of its processor, as tools of the Hub expect it."""

    def __init__(self, encoder: EncoderGraph) -> None:
        super().__init__()
        self.encoder = encoder.encoder

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        answer = self.encoder(pixel_values)
        return answer.last_hidden_state, answer.pooler_output


class HeadsGraph(nn.Module):
    """The heads' raw outputs, in the order of `Spec.head_outputs`."""

    def __init__(self, heads: AugSelfHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features_a: Tensor, features_b: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.heads(features_a, features_b).values())


class MatcherGraph(nn.Module):
    """The matcher's raw outputs, in the order of `MatcherSpec.outputs`."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, maps_a: Tensor, maps_b: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(self.matcher(maps_a, maps_b)).values())


def export_folder(folder: Path, stock: bool = False) -> dict[str, float]:
    """Write onnx/ into a model folder, exchanging the folder in one step.

    Quantised graphs stay if they were made from the same fp32 graph; others go. A folder of 0.1
    gets today's names.

    Args:
        stock: also the encoder as transformers.js takes it; one that is there is always renewed.

    Returns:
        The measured parity: the largest norm-relative difference of each part: features, maps,
        heads, matcher, last_hidden_state, pooler_output.

    Raises:
        AugSelfError: a graph differs from torch by more than 1e-4; the folder stays as it was.
        MissingExtra: the export extra is not installed.
    """
    require_export_extra()
    model = AugSelfModel.from_pretrained(folder)
    with changed_folder(folder) as stage:
        if graph_of(stage) == STOCK_GRAPH:  # 0.1's names; fp32 and bf16 share one
            for precision, path in GRAPHS_OF_0_1.items():
                if (stage / path).is_file():
                    (stage / path).rename(stage / GRAPHS[precision])
        parity = write_graphs(model, stage, stock)
        write_manifest(stage, parity | quantized(stage))
        card.write(stage)
    return parity


def quantized(folder: Path) -> dict[str, Any]:
    """The records of quantised graphs that belong to this encoder graph; others are removed."""
    source = file_sha256(folder / FEATURES_GRAPH)
    parity = read_manifest(folder)["parity"]
    records = {p: parity[p] for p in QUANTIZED if p in parity and parity[p]["source"] == source}
    for precision in QUANTIZED:
        if precision not in records:
            (folder / GRAPHS[precision]).unlink(missing_ok=True)
    return records


def write_graphs(model: AugSelfModel, folder: Path, stock: bool = False) -> dict[str, float]:
    """Export the graphs into `folder`/onnx and pass them through the parity gate.

    A model without heads has no heads graph, one without a matcher none of that; what is there of a
    model that had some goes. The stock graph is written where it is asked for or there already.
    """
    spec, size = model.spec, model.preprocessing.size
    stock = stock or ((folder / STOCK_GRAPH).is_file() and graph_of(folder) != STOCK_GRAPH)
    place = folder / FEATURES_GRAPH
    place.parent.mkdir(exist_ok=True)
    for path in (STOCK_GRAPH, HEADS_GRAPH, MATCHER_GRAPH):
        (folder / path).unlink(missing_ok=True)
    encoder = EncoderGraph(model).eval()
    parts: dict[Path, nn.Module] = {place: encoder}
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _one_registry():
        outputs = ["features"] if spec.matcher is None else ["features", "maps"]
        _export(parts[place], {"images": images}, outputs, place)
        if spec.heads:
            place = folder / HEADS_GRAPH
            parts[place] = HeadsGraph(model.heads).eval()
            pair = {f"features_{side}": torch.zeros(2, spec.features) for side in "ab"}
            _export(parts[place], pair, list(spec.head_outputs()), place)
        if model.matcher is not None and spec.matcher is not None:
            place = folder / MATCHER_GRAPH
            parts[place] = MatcherGraph(model.matcher).eval()
            pair = {f"maps_{side}": torch.zeros(2, *spec.matcher.maps) for side in "ab"}
            _export(parts[place], pair, list(spec.matcher.outputs()), place)
        if stock:
            place = folder / STOCK_GRAPH
            parts[place] = StockGraph(encoder).eval()
            pixels = {"pixel_values": torch.zeros(2, 3, size, size)}
            _export(parts[place], pixels, OUTPUTS, place)
            # Browsers would look for an 8-bit graph.
            config = read_json(folder / "config.json") | {"transformers.js_config": _IN_FULL}
            write_json(folder / "config.json", config)
    return _parity(parts, size)


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
        output_names=[name + _OUTPUT for name in outputs],
        dynamic_shapes={name: {0: batch} for name in inputs},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # None is what the older exporter returned
    onnx.save(_anonymous(_named(program.model_proto, outputs)), path)


def _named(model: Any, outputs: list[str]) -> Any:
    """The outputs under their names; what the exporter has called so inside (an operator flip gives
    a value flip) under another.
    """
    names = {name: f"{name}_inside" for name in outputs} | {n + _OUTPUT: n for n in outputs}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    return model


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
def _parity(parts: dict[Path, nn.Module], size: int) -> dict[str, float]:
    """Largest norm-relative difference over batches of 1, 2 and 17 images.

    Args:
        parts: graph -> what it was made of, the encoder's first.
    """
    generator = np.random.default_rng(0)
    worst: dict[str, float] = {}
    (encoder_path, encoder), *others = parts.items()
    assert isinstance(encoder, EncoderGraph)
    for batch in BATCHES:
        images = generator.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        given = dict(zip(("features", "maps"), encoder(torch.from_numpy(images)), strict=False))
        answers = _run(encoder_path, {"images": images})
        measured = {
            name: _difference(values, given[name])
            for name, values in zip(given, answers, strict=True)
        }
        for path, module in others:
            if isinstance(module, StockGraph):
                pixels = encoder.pixels(torch.from_numpy(images))
                answers = _run(path, {"pixel_values": pixels.numpy()})
                for name, values, right in zip(OUTPUTS, answers, module(pixels), strict=True):
                    measured[name] = _difference(values, right)
                continue
            what = "maps" if path.name == MATCHER_GRAPH.name else "features"
            sides = {f"{what}_a": given[what], f"{what}_b": given[what].flip(0)}
            raw = _run(path, {name: value.numpy() for name, value in sides.items()})
            expected = torch.cat(module(**sides), dim=1)
            measured[path.stem] = _difference(np.concatenate(raw, axis=1), expected)
        for part, difference in measured.items():
            worst[part] = max(worst.get(part, 0.0), difference)
    for part, difference in worst.items():
        if not difference <= TOLERANCE:
            raise AugSelfError(
                f"export refused: {part} differ from torch by {difference:.1e}, "
                f"more than {TOLERANCE:.0e} (norm-relative)"
            )
    return worst


def _difference(values: np.ndarray, reference: Tensor) -> float:
    values, expected = values.reshape(len(values), -1), reference.flatten(1).numpy()
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
