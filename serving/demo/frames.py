"""Boxes in a photograph and in view a's frame, and pictures put into them.

A frame is a view's own square, 1 wide and 1 high; a box in it may reach outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from augself_hub.augmentations.sampling import Parameters
from augself_hub.preprocess import Box
from serving.demo.comparison import Row
from serving.demo.visitors import data_url

LONGEST_SIDE = 640  # of the photograph as it is shown with the boxes
TRUE, PREDICTED = "#0d9488", "#a855f7"  # the page's two colours: what is true, what the model says
NOTHING = "#8b93a1"  # where a view shows nothing
_FARTHEST = 2.0  # frames; what a head places farther away ends there


def box_in_pixels(crop: np.ndarray, image: Image.Image) -> Box:
    """(4,) top, left, height, width as fractions -> left, top, right, bottom, not rounded."""
    top, left, height, width = (float(v) for v in crop)
    return (
        left * image.width,
        top * image.height,
        (left + width) * image.width,
        (top + height) * image.height,
    )


def box_in_frame(difference: np.ndarray) -> Box:
    """(4,) y, x, log height, log width of b relative to a -> b's box in a's frame."""
    y, x = np.clip(difference[:2], -_FARTHEST, _FARTHEST) + 0.5
    height, width = np.exp(np.clip(difference[2:], -_FARTHEST, _FARTHEST))
    left, top = x - width / 2, y - height / 2
    return float(left), float(top), float(left + width), float(top + height)


def box_in_photograph(box: Box, a: Parameters) -> Box:
    """A box in a's displayed frame -> the same in shares of the photograph.

    A view is cut, then mirrored, then turned to the left: this goes back through all three.
    """
    corners = np.array([box[:2], box[2:]])
    for _ in range(int(a["rot"][0])):  # a turn to the right: what was above is on the right
        corners = np.stack([1 - corners[:, 1], corners[:, 0]], 1)
    if a["flip"][0]:
        corners[:, 0] = 1 - corners[:, 0]
    top, left, height, width = a["crop"][0]
    placed = corners * (width, height) + (left, top)
    (x0, y0), (x1, y1) = placed.min(0), placed.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def overlay(image: Image.Image, a: Box, true: Box, predicted: Box) -> str:
    """The photograph as SVG with a's box, b's true box and the one the model says."""
    height = 1000 * image.height / image.width
    shapes = (
        ("white", "", a, 5.0),
        (TRUE, "", true, 9.0),
        (PREDICTED, ' stroke-dasharray="26 12"', predicted, 9.0),
    )
    drawn = "".join(
        f'<rect x="{1000 * x0:.0f}" y="{height * y0:.0f}" width="{1000 * (x1 - x0):.0f}" '
        f'height="{height * (y1 - y0):.0f}" fill="none" stroke="{color}" '
        f'stroke-width="{width}"{dash}/>'
        for color, dash, (x0, y0, x1, y1), width in shapes
    )
    return (
        f'<svg viewBox="0 0 1000 {height:.0f}" role="img" aria-label="the photograph with the '
        f'boxes of a and b"><image href="{data_url(image, LONGEST_SIDE)}" width="1000" '
        f'height="{height:.0f}"/>{drawn}</svg>'
    )


def boxes(image: Image.Image, a: Parameters, rows: Sequence[Row]) -> str:
    """The photograph, a's box, and where b is in truth and by the model."""
    crop = [(row.true, row.predicted or 0.0) for row in rows if row.kind == "crop"]
    if not crop:
        return ""
    true, predicted = (
        box_in_photograph(box_in_frame(np.array(numbers)), a) for numbers in zip(*crop, strict=True)
    )
    caption = (
        '<figcaption>The photograph: the white box is a, <i class="true"></i>where b really is, '
        '<i class="predicted"></i>where the model puts it.</figcaption>'
    )
    whole = box_in_photograph((0.0, 0.0, 1.0, 1.0), a)
    return f'<figure class="boxes">{overlay(image, whole, true, predicted)}{caption}</figure>'


def placed(view: np.ndarray, box: Box, side: int) -> np.ndarray:
    """A view at its box in a's frame of side x side pixels; plain gray where it shows nothing."""
    left, top, right, bottom = (round(v * side) for v in box)
    size = (max(1, right - left), max(1, bottom - top))
    frame = Image.new("RGB", (side, side), NOTHING)
    frame.paste(Image.fromarray(view).resize(size, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(frame)
