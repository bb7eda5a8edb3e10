"""Model folder -> a model repository for NVIDIA's Triton Inference Server.

    DIR/NAME/config.pbtxt, 1/model.onnx          images -> features
    DIR/NAME_heads/config.pbtxt, 1/model.onnx    features_a, features_b -> one raw output a head
    DIR/NAME_matcher/config.pbtxt, 1/model.onnx  maps_a, maps_b -> crop, flip ..., raw

With a matcher the first gives maps as well.

The graphs are the folder's own, byte for byte; types and shapes in config.pbtxt are read from them.
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augself_hub import hub
from augself_hub.errors import AugSelfError, MissingExtra, ModelFolderError, UsageError
from augself_hub.folder import HEADS_GRAPH, MATCHER_GRAPH, new_folder, read_spec
from augself_hub.precision import graph_of

# What stands behind a model's name, as the server of this project calls them under /v2.
HEADS_SUFFIX, MATCHER_SUFFIX = "_heads", "_matcher"
MAX_BATCH = 32  # as our own server: ONNX Runtime keeps the memory of its largest batch
MAX_WAITING = 256  # images in the queue; more are refused, as our own server does
DEADLINE = 30_000_000  # microseconds in the queue
INSTANCE_KINDS = {"fp32": "KIND_AUTO", "int8": "KIND_CPU", "fp16": "KIND_GPU"}

_CONFIG = """\
name: {name}
backend: "onnxruntime"
max_batch_size: {batch}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{
  default_queue_policy {{
    max_queue_size: {waiting}
    default_timeout_microseconds: {deadline}
    timeout_action: REJECT
  }}
}}
instance_group [ {{ count: 1 kind: {kind} }} ]
# A GPU would try every convolution algorithm at every new batch size; 1 chooses by rule.
parameters {{ key: "cudnn_conv_algo_search" value {{ string_value: "1" }} }}
model_warmup [
{warmup}
]
"""


@dataclass(frozen=True)
class _Tensor:
    """An input or output as Triton wants it: its shape without the batch."""

    name: str
    datatype: str
    dims: list[int]

    def text(self) -> str:
        return f"name: {json.dumps(self.name)} {self.value()}"

    def value(self) -> str:
        return f"data_type: {self.datatype} dims: {self.dims}"


def write_repository(model: str, destination: Path, precision: str = "fp32") -> list[Path]:
    """Add a model's graphs to the repository `destination`, made if need be.

    Args:
        model: a model folder or a Hub id.
        precision: of the encoder's graph, one that the folder has.

    Returns:
        The folders written, one a graph.

    Raises:
        ModelFolderError: there is no graph of this precision.
        UsageError: the repository would lie in the model folder.
        AugSelfError: the repository has a model of this name.
        MissingExtra: the export extra is not installed.
    """
    folder = hub.resolve(model)
    if destination.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{destination} lies in the model folder: write the repository elsewhere")
    # A folder's name; of a Hub id the last part, without its revision.
    own = Path(model).is_dir()
    name = Path(model).resolve().name if own else model.partition("@")[0].rpartition("/")[2]
    spec = read_spec(folder)
    graphs = [(name, folder / graph_of(folder, precision), INSTANCE_KINDS[precision])]
    if spec.heads:
        graphs.append((name + HEADS_SUFFIX, folder / HEADS_GRAPH, INSTANCE_KINDS["fp32"]))
    if spec.matcher is not None:
        graphs.append((name + MATCHER_SUFFIX, folder / MATCHER_GRAPH, INSTANCE_KINDS["fp32"]))
    for called, graph, _ in graphs:
        _refuse(destination / called, folder, graph, precision)
    for called, graph, kind in graphs:
        inputs, outputs = _tensors(graph)
        with new_folder(destination / called) as stage:
            (stage / "1").mkdir()
            shutil.copyfile(graph, stage / "1/model.onnx")
            (stage / "config.pbtxt").write_text(_config(called, inputs, outputs, kind))
    return [destination / called for called, *_ in graphs]


def _refuse(place: Path, folder: Path, graph: Path, precision: str) -> None:
    if place.exists():
        raise AugSelfError(f"{place} exists: choose another repository or remove it")
    if not graph.is_file():
        option = "" if precision == "fp32" else f" --quantize {precision} --calibration PHOTOGRAPHS"
        raise ModelFolderError(
            f"{folder} has no {graph.relative_to(folder).as_posix()}: "
            f"augself export --model {folder}{option}"
        )


def _tensors(graph: Path) -> tuple[list[_Tensor], list[_Tensor]]:
    """Inputs and outputs of a graph file."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "export") from error

    types = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}

    def tensor(value: Any) -> _Tensor:
        found = value.type.tensor_type
        return _Tensor(
            value.name, types[found.elem_type], [d.dim_value for d in found.shape.dim[1:]]
        )

    read = onnx.load(graph).graph
    return [tensor(v) for v in read.input], [tensor(v) for v in read.output]


def _config(name: str, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor], kind: str) -> str:
    return _CONFIG.format(
        name=json.dumps(name),
        batch=MAX_BATCH,
        inputs=_list(f"  {{ {tensor.text()} }}" for tensor in inputs),
        outputs=_list(f"  {{ {tensor.text()} }}" for tensor in outputs),
        waiting=MAX_WAITING,
        deadline=DEADLINE,
        kind=kind,
        warmup=_list(_warmup(batch, inputs) for batch in (1, MAX_BATCH)),
    )


def _warmup(batch: int, inputs: Sequence[_Tensor]) -> str:
    """Zeros, so that the first request pays for nothing."""
    zeros = (
        f"inputs {{ key: {json.dumps(t.name)} value {{ {t.value()} zero_data: true }} }}"
        for t in inputs
    )
    return f'  {{ name: "batch of {batch}" batch_size: {batch} {" ".join(zeros)} }}'


def _list(items: Iterable[str]) -> str:
    return ",\n".join(items)
