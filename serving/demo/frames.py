"""Pictures about pictures: boxes in a photograph, view b in view a's frame, what was taken back.

A frame is a view's own square, 1 wide and 1 high; a box in it may reach outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from augself_hub.preprocess import Box

LONGEST_SIDE = 640  # of the photograph as it is shown with the two boxes
SMALLEST_VIEW = 256  # smaller views are shown with larger pixels
FRAME_SIDE = 480  # of what is shown in view a's frame
COLORS = ("#2563eb", "#ea580c")  # of the boxes of view a and view b
TRUE, PREDICTED = "#0d9488", "#a855f7"  # as in the bars
NOTHING = "#8b93a1"  # where a view shows nothing
_FARTHEST = 2.0  # frames; what a head places farther away ends there
_FRAME: Box = (0.0, 0.0, 1.0, 1.0)


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


def outlined(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image, small enough to show, with the boxes of view a and view b drawn in."""
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    shown = image.resize([max(1, round(side * scale)) for side in image.size])
    pen, font = ImageDraw.Draw(shown), ImageFont.load_default(28)
    for name, color, box in zip("ab", COLORS, boxes, strict=True):
        left, top, right, bottom = (v * scale for v in box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, color, 5)
        # a's name stands at its lower left, b's at its lower right: equal boxes show both.
        corner = (left if name == "a" else right - 30, bottom - 34)
        pen.rectangle((*corner, corner[0] + 29, corner[1] + 33), color)
        pen.text((corner[0] + 15, corner[1] + 16), name, "white", font, "mm")
    return shown


def enlarged(view: np.ndarray) -> np.ndarray:
    """A small view with every pixel repeated: what the model sees, not a smoothed picture."""
    times = -(-SMALLEST_VIEW // view.shape[0])
    return view.repeat(times, axis=0).repeat(times, axis=1)


def in_frame(view_a: np.ndarray, boxes: Sequence[tuple[str, Box]]) -> Image.Image:
    """View a, (S, S, 3) uint8, and around and over it boxes in its frame, each in its colour.

    Returns:
        A square RGBA image as large as it takes to show all of them, transparent elsewhere.
    """
    corners = np.array([_FRAME, *(box for _, box in boxes)])
    low, high = corners[:, :2].min(), corners[:, 2:].max()
    margin = 0.03 * (high - low)
    scale = FRAME_SIDE / (high - low + 2 * margin)
    shown = Image.new("RGBA", (FRAME_SIDE, FRAME_SIDE))
    pen = ImageDraw.Draw(shown)
    left, top, right, bottom = _pixels(_FRAME, low - margin, scale)
    side = (max(1, right - left), max(1, bottom - top))
    shown.paste(Image.fromarray(view_a).resize(side, Image.Resampling.NEAREST), (left, top))
    for color, box in boxes:
        pen.rectangle(_pixels(box, low - margin, scale), None, color, 5)
    return shown


def _pixels(box: Box, low: float, scale: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round((v - low) * scale) for v in box)
    return left, top, max(left, right), max(top, bottom)


def placed(view: np.ndarray, box: Box, side: int) -> np.ndarray:
    """A view at its box in a's frame of side x side pixels; plain gray where it shows nothing."""
    left, top, right, bottom = (round(v * side) for v in box)
    size = (max(1, right - left), max(1, bottom - top))
    frame = Image.new("RGB", (side, side), NOTHING)
    frame.paste(Image.fromarray(view).resize(size, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(frame)
