"""Whether OpenVINO answers as the plain CPU provider does: asked at every start, of each model.

It compiles a graph in a way of its own, and may compile it wrongly: of the embedded model's int8
graph it made features whose cosine with fp32 was 0.35 for some photographs and 0.61 on average,
without an error (ONNX Runtime 1.24.1, OpenVINO 2025.4.1; the plain provider's were at 0.9994 at
worst). It also computes in fp32 what was asked for in bf16 where the processor has no such numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from augself_hub.errors import AugSelfError
from augself_hub.parity import (
    MAPS_COSINE,
    MEAN_COSINE,
    WORST_COSINE,
    cosines,
    head_change,
    most_change,
)
from augself_hub.preprocess import decode, preprocess

if TYPE_CHECKING:
    from serving.inference.engine import Engine

EXAMPLES = Path(__file__).parents[1] / "demo/examples"
# Cosine of a photograph's features with those of fp32 on the plain provider: on average, at worst.
BOUNDS = {
    "fp32": (0.99999, 0.9999),
    "bf16": (0.9999, 0.999),
    "int8": (MEAN_COSINE, WORST_COSINE),
}
NO_ROUNDING = 1e-5  # norm-relative; bf16 keeps 8 bits and is some 1e-3 away
logger = logging.getLogger(__name__)


def refuse_unlike(engine: Engine, reference: Engine) -> None:
    """Run the demo's photographs through both, and through a lane in batches as lanes have them.

    Args:
        engine: on OpenVINO. reference: the same model in fp32 on the plain provider.

    Raises:
        AugSelfError: features, maps or predicted differences are too far apart, and how far; or
            bf16 was asked for and is not what it computes in.
    """
    images = _photographs(engine.preprocessing.size)
    plain = reference.encode(images)
    for encode in [engine.encode] + [engine.encode_in_lane] * (engine.lanes > 1):
        encoded = encode(images)
        found, expected = encoded.features, plain.features
        failed = [
            *_failed(engine, reference, found, expected),
            *_maps_failed(engine, encoded.maps, plain.maps),
        ]
        if failed:
            raise AugSelfError(
                f"--device openvino cannot be used for {engine.name} in {engine.precision}, held "
                f"against fp32 on the plain provider: {'; '.join(failed)}: give another "
                "--precision, or --device cpu"
            )
        apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        if engine.precision == "bf16" and apart.max() < NO_ROUNDING:
            raise AugSelfError(
                "--precision bf16 cannot be had: this processor has no bf16 numbers, OpenVINO "
                "computes in fp32 on it: give --precision fp32 or int8"
            )
    logger.info(
        "%s in %s on OpenVINO: features' cosine with fp32 is %.5f at worst",
        *(engine.name, engine.precision, cosines(found, expected).min()),
    )


def _failed(
    engine: Engine, reference: Engine, found: np.ndarray, expected: np.ndarray
) -> Iterator[str]:
    """Every bound that features (N, D) and what the heads make of them do not keep."""
    cosine, (mean, worst) = cosines(found, expected), BOUNDS[engine.precision]
    for which, value, least in (
        ("on average", cosine.mean(), mean),
        ("at worst", cosine.min(), worst),
    ):
        if not value >= least:
            yield f"the features' cosine is {value:.5f} {which}, at least {least} is wanted"
    answers, wanted = (
        each.heads(features, np.roll(features, 1, axis=0))
        for each, features in ((engine, found), (reference, expected))
    )
    for kind, head in engine.spec.heads.items():
        change = head_change(engine.spec, kind, answers[kind], wanted[kind])
        most = most_change(head.type)
        if not change <= most:
            yield f"the change of head {kind} is {change:.3f}, at most {most} is wanted"


def _maps_failed(
    engine: Engine, found: np.ndarray | None, expected: np.ndarray | None
) -> Iterator[str]:
    """The same of the maps (N, C, S, S) that a matcher compares, where there is one."""
    if found is None or expected is None:
        return
    least = MAPS_COSINE if engine.precision == "int8" else BOUNDS[engine.precision][0]
    mean = cosines(*(m.reshape(len(m), -1) for m in (found, expected))).mean()
    if not mean >= least:
        yield f"the maps' cosine is {mean:.5f} on average, at least {least} is wanted"


def _photographs(side: int) -> list[np.ndarray]:
    """Each of the demo's, whole, its upper left quarter, its lower right one: (S, S, 3) uint8."""
    images = []
    for path in sorted(EXAMPLES.rglob("*.jpg")):
        picture = decode(path.read_bytes())
        width, height = picture.size
        middle = width // 2, height // 2
        for box in ((0, 0, width, height), (0, 0, *middle), (*middle, width, height)):
            images.append(preprocess(picture.crop(box), side))
    return images
