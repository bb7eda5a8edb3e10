"""The precisions an encoder runs in, and where the graph of each lies in a model folder.

fp32 is what `augself export` writes, and OpenVINO also runs that graph in bf16; `augself export
--quantize` adds the others: int8 for CPUs, fp16 for GPUs. All take the same images and answer
float32 features. The heads are fp32 always.
"""

from __future__ import annotations

from pathlib import Path

from augself_hub.augmentations.spec import Spec
from augself_hub.folder import ENCODER_GRAPH, FEATURES_GRAPH

QUANTIZED = ("int8", "fp16")
PRECISIONS = ("fp32", "bf16", *QUANTIZED)


def _named(graph: Path) -> dict[str, Path]:
    """precision -> file."""
    smaller = {precision: graph.with_stem(f"{graph.stem}_{precision}") for precision in QUANTIZED}
    return {"fp32": graph, "bf16": graph, **smaller}


GRAPHS, GRAPHS_WITH_MAPS = _named(ENCODER_GRAPH), _named(FEATURES_GRAPH)


def graph_of(spec: Spec, precision: str = "fp32") -> Path:
    """Where a model folder has its encoder's graph of a precision.

    With a matcher it also gives feature maps, and is called features.onnx.
    """
    return (GRAPHS if spec.matcher is None else GRAPHS_WITH_MAPS)[precision]


def stale_graphs(spec: Spec) -> list[Path]:
    """Names of graphs that give maps where there is no matcher, or none where there is one."""
    return list((GRAPHS_WITH_MAPS if spec.matcher is None else GRAPHS).values())
