"""What a visitor gives and is told: photographs, the model that was picked, errors as messages."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from augself_hub.cores import usable_cores
from augself_hub.errors import AugSelfError
from serving.inference.client import ModelClient

Models = dict[str, ModelClient]  # by name; the first is picked when the page opens

FOLDER = Path(__file__).parent / "examples"
EXAMPLES = tuple(
    str(FOLDER / f"{name}.jpg")
    for name in ("fig", "dogs", "brushes", "autumn", "drum", "dandelion")
)
# Each call holds its uploads and their pixels; those beyond wait with their names alone.
AT_ONCE = max(4, usable_cores())
QUIET: dict[str, Any] = {
    "concurrency_id": "page",
    "concurrency_limit": AT_ONCE,
    "show_progress": "hidden",
    # What is asked while an answer is under way is asked when it is there: the last of it. Gradio
    # by itself drops it.
    "trigger_mode": "always_last",
}
BUSY: dict[str, Any] = {**QUIET, "show_progress": "minimal"}  # where one waits a second or more
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def given(data: bytes | None, what: str = "photograph") -> bytes:
    """An upload field's bytes. Raises AugSelfError where the field is empty."""
    if data is None:
        raise AugSelfError(f"there is no {what}: pick an example or upload one")
    return data


def upload(label: str, value: str | None = None, **place: Any) -> gr.File:
    """A field for one picture. What is in it is judged by its bytes, by the same code as /v1's."""
    return gr.File(
        value, type="binary", file_types=["image"], label=label, height=140, min_width=300, **place
    )


def problem(text: str) -> str:
    """What is wrong, as HTML where the picture would be."""
    return f'<p class="problem" role="alert">{escape(text[0].upper() + text[1:])}.</p>'


def pixels_url(view: np.ndarray) -> str:
    """A small view, (S, S, 3) uint8, as it is."""
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def small(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longest side at most `side` pixels, in memory of its own."""
    scale = min(1.0, side / max(image.size))  # a copy of a large picture is large, too
    return image.resize([max(1, round(s * scale)) for s in image.size], reducing_gap=2.0)


def data_url(image: Image.Image, side: int) -> str:
    """A thumbnail that needs no request of its own: the longest side at most `side` pixels."""
    file = io.BytesIO()
    small(image, side).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
