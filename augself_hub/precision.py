"""The precisions an encoder runs in, and where the graph of each lies in a model folder.

fp32 is what `augself export` writes, and OpenVINO also runs that graph in bf16; `augself export
--quantize` adds the others: int8 for CPUs, fp16 for GPUs. All take the same images and answer
float32 features. The heads are fp32 always.
"""

from __future__ import annotations

from pathlib import Path

from augself_hub.folder import FEATURES_GRAPH, STOCK_GRAPH

QUANTIZED = ("int8", "fp16")
FORMATS = ("transformers.js",)  # of an encoder beside that of serving
PRECISIONS = ("fp32", "bf16", *QUANTIZED)


def _named(graph: Path) -> dict[str, Path]:
    """precision -> file."""
    smaller = {precision: graph.with_stem(f"{graph.stem}_{precision}") for precision in QUANTIZED}
    return {"fp32": graph, "bf16": graph, **smaller}


GRAPHS, GRAPHS_OF_0_1 = _named(FEATURES_GRAPH), _named(STOCK_GRAPH)


def graph_of(folder: Path, precision: str = "fp32") -> Path:
    """Where a model folder has, or would have, the graph that gives features of uint8 images.

    Folders of 0.1 call it model.onnx, the name that transformers.js looks for. `augself export`
    never writes that one without features.onnx, so a folder without features.onnx is of 0.1; that
    its graph takes `images` is checked where it is run.

    Returns:
        The path inside the folder.
    """
    of_0_1 = not (folder / FEATURES_GRAPH).is_file() and (folder / STOCK_GRAPH).is_file()
    return (GRAPHS_OF_0_1 if of_0_1 else GRAPHS)[precision]
