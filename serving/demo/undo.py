"""The predicted difference, applied backwards to view b: what the model takes for view a.

A difference of convention `relative` is what takes a to b, so its inverse is a set of augmentation
parameters too, and the training code applies it. What blur, solarize and gray have destroyed stays
destroyed.
"""

from __future__ import annotations

import numpy as np

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters, unchanged
from augself_hub.augmentations.spec import Policy, Spec
from serving.demo.frames import box_in_frame, placed

Differences = dict[str, np.ndarray]  # kind -> (outputs,) in physical units, of one pair
_STAY = {"crop": np.zeros(4), "color": np.zeros(4), "flip": np.zeros(1), "rot": np.array([1.0])}


def can_undo(spec: Spec) -> bool:
    """Convention `paper` says differences of the photograph's frame, which pictures do not show."""
    return spec.convention == "relative" and bool(spec.heads)


def learned(spec: Spec, difference: Differences) -> Differences:
    """The difference, and none in what the model has not learned."""
    known = {}
    for kind, values in difference.items():
        is_learned = [d.learned is not False for d in spec.heads[kind].dimensions]
        if len(is_learned) == len(values):
            known[kind] = np.where(is_learned, values, 0.0)
        elif is_learned[0]:  # a head with classes has one dimension, for all of them
            known[kind] = values
    return known


def backwards(difference: Differences, gray: bool) -> Parameters:
    """The parameters that take view b's colours, mirroring and rotation back to view a's.

    Args:
        gray: of a gray picture saturation and hue are left alone.

    b is a, mirrored, then turned by k; so a is b, turned by -k, then mirrored, which is the same as
    mirrored, then turned by k. Colours are undone in the opposite order.
    """
    known = _STAY | difference
    color = np.append(np.exp(-known["color"][:3]), -known["color"][3])
    if gray:
        color[2:] = 1.0, 0.0
    mirrored, turns = bool(known["flip"][0] > 0.5), int(known["rot"].argmax())
    return {
        **unchanged(1),
        "flip": np.array([mirrored]),
        "color": color[None],
        "order": np.array([[3, 2, 1, 0]]),
        "rot": np.array([turns if mirrored else -turns % 4]),
    }


def undone(
    view_b: np.ndarray, difference: Differences, gray: bool, policy: Policy, side: int
) -> np.ndarray:
    """View b, (S, S, 3) uint8, put back into view a's frame of side x side pixels."""
    views = view_b.transpose(2, 0, 1)[None].astype(np.float32) / 255
    back = augment(views, backwards(difference, gray), policy)[0].transpose(1, 2, 0)
    box = box_in_frame((_STAY | difference)["crop"])
    return placed(np.round(back * 255).astype(np.uint8), box, side)
