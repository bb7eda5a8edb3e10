"""The precisions an encoder runs in, and where the graph of each lies in a model folder.

fp32 is what `augself export` writes, and OpenVINO also runs that graph in bf16; `augself export
--quantize` adds the others: int8 for CPUs, fp16 for GPUs. All take the same images and answer
float32 features. The heads are fp32 always.
"""

from __future__ import annotations

from augself_hub.folder import ENCODER_GRAPH

QUANTIZED = ("int8", "fp16")
PRECISIONS = ("fp32", "bf16", *QUANTIZED)
GRAPHS = {
    "fp32": ENCODER_GRAPH,
    "bf16": ENCODER_GRAPH,
    "int8": ENCODER_GRAPH.with_stem("model_int8"),
    "fp16": ENCODER_GRAPH.with_stem("model_fp16"),
}
