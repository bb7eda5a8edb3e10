"""The table of controls: what a visitor may turn on each view, and which parameter it sets.

One row a slider or tick box. A model's demo has the rows of the augmentations it knows, so a new
augmentation is new rows here, and a title in comparison.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from augself_hub.augmentations.sampling import Parameters, unchanged
from augself_hub.augmentations.spec import Policy, Spec

Value = float | bool


@dataclass(frozen=True)
class Control:
    """One slider, or a tick box where `neutral` is a bool.

    Args:
        kind: the augmentation it belongs to. label: what the visitor reads.
        parameter, column: where its value goes in `Parameters`; no column for (N,) arrays.
        neutral: the value that changes nothing. low, high, step: of a slider.
    """

    kind: str
    label: str
    parameter: str
    column: tuple[int, ...]
    neutral: Value
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01

    @property
    def tick(self) -> bool:
        return isinstance(self.neutral, bool)

    def nearest(self, value: float) -> Value:
        """The value of this control that is nearest to a drawn one."""
        if self.tick:
            return bool(value)
        steps = round(float(np.clip(value, self.low, self.high)) / self.step)
        return round(steps * self.step, 3)


def controls(spec: Spec) -> list[Control]:
    """The rows of the table for the augmentations a model knows, in the table's order.

    The crop is placed rather than given as a box, so that no combination of sliders leaves the
    photograph: see `box`.
    """
    policy = spec.policy
    smallest = float(np.floor(100 * np.sqrt(policy.scale[0])) / 100)
    shapes = (round(policy.ratio[0], 2), round(policy.ratio[1], 2))
    table = (
        Control("crop", "Across", "place", (0,), 0.5),
        Control("crop", "Down", "place", (1,), 0.5),
        Control("crop", "Size", "place", (2,), 1.0, smallest),
        Control("crop", "Aspect", "place", (3,), 1.0, *shapes),
        Control("flip", "Mirrored", "flip", (), False),
        *(_factor(policy, column) for column in range(3)),
        Control("color", "Hue (turns)", "color", (3,), 0.0, -policy.hue, policy.hue),
        Control("color", "Gray", "gray", (), False),
        Control("blur", "Blur (sigma, pixels)", "blur", (), 0.0, 0.0, policy.sigma[1]),
        Control("rot", "Quarter turns to the left", "rot", (), 0.0, 0.0, 3.0, 1.0),
        Control("sol", "Solarize from (1: nothing)", "sol", (), 1.0),
    )
    return [control for control in table if control.kind in spec.heads]


def labels(specs: Iterable[Spec]) -> list[tuple[str, str]]:
    """(kind, label) of every control that at least one of several models has, models in order."""
    rows = (row for spec in specs for row in controls(spec))
    return list(dict.fromkeys((row.kind, row.label) for row in rows))


def _factor(policy: Policy, column: int) -> Control:
    name = ("brightness", "contrast", "saturation")[column]
    return Control("color", name.capitalize(), "color", (column,), 1.0, *policy.factors(name))


def parameters(
    rows: Sequence[Control], values: Sequence[Value], height: int, width: int
) -> Parameters:
    """Values of the controls -> the parameters of one view of a height x width photograph."""
    settings = {**unchanged(1), "place": np.array([[0.5, 0.5, 1.0, 1.0]])}
    for control, value in zip(rows, values, strict=True):
        settings[control.parameter][(0, *control.column)] = value
    return {**settings, "crop": box(settings.pop("place"), height, width)}


def values(rows: Sequence[Control], drawn: Parameters, height: int, width: int) -> list[Value]:
    """The inverse of `parameters`, to the nearest step: where the controls show a drawn view."""
    settings = {**drawn, "place": place(drawn["crop"], height, width)}
    return [c.nearest(settings[c.parameter][(0, *c.column)]) for c in rows]


def box(placed: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 4) across, down, size, shape -> (N, 4) top, left, height, width as fractions.

    Across and down say where the box lies in the room it leaves free, in [0, 1]; shape is its
    width / height in pixels; size is its side as a share of the largest box of that shape.
    """
    across, down, size, shape = placed.T
    box_width = size * np.minimum(width, height * shape) / width
    box_height = box_width * width / shape / height
    return np.stack([down * (1 - box_height), across * (1 - box_width), box_height, box_width], 1)


def place(crop: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `box`. A box that leaves no room in one direction is in its middle."""
    top, left, box_height, box_width = crop.T
    shape = box_width * width / (box_height * height)
    size = box_width * width / np.minimum(width, height * shape)
    return np.stack([_share(left, 1 - box_width), _share(top, 1 - box_height), size, shape], 1)


def _share(part: np.ndarray, room: np.ndarray) -> np.ndarray:
    return np.where(room > 1e-9, part / np.maximum(room, 1e-9), 0.5)
