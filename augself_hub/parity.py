"""How near to its fp32 graph an encoder must answer that computes with fewer bits, or elsewhere.

`augself export --quantize` holds new graphs to it on photographs, and the server a provider that
compiles graphs its own way, at every start. Heads have bounds of their own: they see small
differences of features, which the features' bounds would let pass.
"""

from __future__ import annotations

import numpy as np

from augself_hub.augmentations.difference import deviations, to_physical
from augself_hub.augmentations.spec import HeadType, Spec

MEAN_COSINE, WORST_COSINE = 0.99, 0.97  # of an image's features with its fp32 features: int8, fp16
MAPS_COSINE = 0.97  # of an image's map on average; what a matcher makes of it has its own bounds
HEAD_TOLERANCE = 0.1  # average change of a regression head, in standard deviations of its target
PROBABILITY_TOLERANCE = 0.05  # average change of a probability


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows (N, D) of both -> (N,)."""
    cosines: np.ndarray = (a * b).sum(1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12
    )
    return cosines


def head_change(spec: Spec, kind: str, raw: np.ndarray, other: np.ndarray) -> float:
    """How far two raw answers (N, outputs) of one head are apart on average: regression in standard
    deviations of the target, other heads in probabilities.
    """
    head = spec.heads[kind]
    scale = deviations(spec, kind) if head.type == "regression" else 1.0
    return float((np.abs(to_physical(head, raw) - to_physical(head, other)) / scale).mean())


def most_change(type: HeadType) -> float:
    """The greatest `head_change` that a head of this type may suffer."""
    return HEAD_TOLERANCE if type == "regression" else PROBABILITY_TOLERANCE
