"""Encoder graph -> a smaller one, written only if it answers nearly as the fp32 graph does.

    onnx/features_int8.onnx   for CPUs: static QDQ, uint8 activations, 7-bit weights per channel
    onnx/features_fp16.onnx   for GPUs: half precision inside, float32 features

Of a model with a matcher they give maps as well.

Activations are uint8 and weights keep one bit free (`reduce_range`): without VNNI, ONNX Runtime
multiplies with an instruction that saturates at 16 bits, and full 8-bit weights then give wrong
features on an older CPU after passing every gate on a newer one. Signed activations cost the
whole gain on such a CPU. The graph made here answers alike on both.

The first layers lose most and, with few channels, gain least: one of them stays in fp32, and more
where the gates ask for it (`FP32_LAYERS`).

What is held against the fp32 graph, and how far it may be off, is in `gates`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub import card
from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.folder import changed_folder, read_manifest, read_spec, verify, write_manifest
from augself_hub.images import AS_FOUND, Options
from augself_hub.modeling import gates
from augself_hub.modeling.export import require_export_extra
from augself_hub.modeling.photographs import Photographs
from augself_hub.precision import graph_of
from augself_hub.preprocess import Preprocessing

FP32_LAYERS = {"int8": (1, 5, 9), "fp16": (0,)}  # how many of the first ones, tried in turn


def quantize_folder(
    folder: Path,
    precision: str,
    photographs: str | Path,
    require_speedup: float | None = None,
    options: Options = AS_FOUND,
) -> dict[str, Any]:
    """Add a quantised graph to a model folder, exchanging the folder in one step.

    Args:
        precision: int8 or fp16.
        photographs: any source of images that can be listed (docs/data-sources.md).
        require_speedup: int8 only: times the fp32 graph's images a second.
        options: how the photographs are read.

    Returns:
        What was measured, as the manifest records it under `parity`: cosines, the probe's loss in
        accuracy (None: not measured), the change of each head, speed (None for fp16).

    Raises:
        AugSelfError: a gate failed, and which; the folder stays as it was.
        ModelFolderError: the folder has no fp32 graph or is not what its manifest says, or a graph
            of it cannot be run in time.
        MissingExtra: the export extra is not installed.
    """
    require_export_extra()
    spec = read_spec(verify(folder))  # a manifest is written over what is there
    source = graph_of(folder)
    if not (folder / source).is_file():
        raise ModelFolderError(f"{folder} has no {source}: augself export --model {folder}")
    images = Photographs.split(photographs, Preprocessing.from_folder(folder).size, options)
    gates.refuse_endless(folder, images)
    with changed_folder(folder) as stage:
        for layers in FP32_LAYERS[precision]:
            if precision == "int8":
                _write_int8(stage / source, stage / graph_of(stage, precision), images, layers)
            else:
                _write_fp16(stage / source, stage / graph_of(stage, precision))
            measured = gates.measured(stage, precision, images) | {"fp32_layers": layers}
            failed = gates.failed(measured, spec, require_speedup)
            if not failed:
                write_manifest(stage, read_manifest(stage)["parity"] | {precision: measured})
                card.write(stage)
                return measured
        raise AugSelfError(f"{precision} refused, the folder is as it was: {failed}")


def _write_int8(source: Path, target: Path, images: Photographs, fp32_layers: int) -> None:
    """Static QDQ: calibrated by minimum and maximum, per channel."""
    import onnx

    from augself_hub.runtime import with_quantization

    tools = with_quantization().quantization
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"  # batch norms folded, shapes known
        tools.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        # The normalisation and everything up to the end of the first layers.
        nodes = onnx.load(prepared).graph.node
        layers = [i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm")]
        end = layers[fp32_layers] if fp32_layers < len(layers) else len(nodes)
        tools.quantize_static(
            prepared,
            target,
            _Reader(images.pixels(images.calibration)),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes[:end]],
        )


def _write_fp16(source: Path, target: Path) -> None:
    import onnx

    from augself_hub.runtime import with_quantization

    float16 = with_quantization().transformers.float16
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


class _Reader:
    """What the calibration asks for batches, until there is none."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._batches = gates.batches(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
