"""The precisions an encoder's graph comes in, and where each lies in a model folder.

fp32 is what `augself export` writes; `augself export --quantize` adds the others: int8 for CPUs,
fp16 for GPUs. All take the same images and answer float32 features. The heads are fp32 always.
"""

from __future__ import annotations

from augself_hub.folder import ENCODER_GRAPH

QUANTIZED = ("int8", "fp16")
PRECISIONS = ("fp32", *QUANTIZED)
GRAPHS = {
    "fp32": ENCODER_GRAPH,
    "int8": ENCODER_GRAPH.with_stem("model_int8"),
    "fp16": ENCODER_GRAPH.with_stem("model_fp16"),
}
