"""The tab "Two photographs": what takes one picture to another, in words."""

from __future__ import annotations

import base64
import io
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from augself_hub.differences import describe, is_gray, matching
from augself_hub.sentences import sentences
from serving.demo.files import Files
from serving.demo.picks import picked, picks
from serving.demo.visitors import FOLDER, PRIVATE, QUIET, Models, readable, upload
from serving.demo.words import STYLE, listed

SENTENCE = (
    "Give two pictures of one thing. The model compares their features and says, in words, how b "
    "differs from a, and what it cannot tell."
)
NOTE = (
    "The model sees the middle square of each picture, as shown. It learnt from two views of one "
    "picture, and says so where two pictures look different; what has a number has an error that "
    "holds on average, not for every pair."
)
NOTHING = "<p>The difference appears here once there are two pictures.</p>"
PAIRS = tuple(
    (str(FOLDER / f"{name}.jpg"), str(FOLDER / f"pairs/{name}-{change}.jpg"))
    for name, change in (("dogs", "darker"), ("autumn", "greener"), ("drum", "gray"))
)


def tab(models: Models, files: Files, picker: gr.Dropdown) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    with gr.Tab("Two photographs"):
        gr.Markdown(SENTENCE)
        edited = [(Path(b).stem, Image.open(b)) for _, b in PAIRS]
        examples = picks("Try an edited copy (b) of an example (a)", edited, pressed=None)
        with gr.Row():
            with gr.Column(min_width=280):
                a = upload("Picture a")
                seen_a = _picture()
            with gr.Column(min_width=280):
                b = upload("Picture b")
                seen_b = _picture()
        said = gr.HTML(NOTHING, css_template=STYLE, apply_default_css=False)
        gr.Markdown(NOTE)
    answer = {
        "fn": partial(compare, models),
        "inputs": [picker, a, b],
        "outputs": [seen_a, seen_b, said],
        **QUIET,
    }
    gr.on([a.upload, b.upload], api_name="two_photographs", **answer)
    gr.on(
        [a.clear, b.clear],
        lambda: ("", "", NOTHING),
        None,
        [seen_a, seen_b, said],
        **PRIVATE,
        **QUIET,
    )

    def example(event: gr.EventData) -> tuple[str, str]:
        a, b = (files.shipped(Path(path)) for path in PAIRS[picked(event, len(PAIRS))])
        return a, b

    chosen = examples.click(example, None, [a, b], **PRIVATE, **QUIET)
    chosen.success(**PRIVATE, **answer)
    picker.input(**PRIVATE, **answer)


def _picture() -> gr.HTML:
    return gr.HTML(css_template=PICTURE_STYLE, apply_default_css=False)


def compare(models: Models, name: str, a: bytes | None, b: bytes | None) -> tuple[str, str, str]:
    """Two uploads -> both as the model sees them, and the difference, as HTML.

    Raises:
        gr.Error: an upload is no image we read, or the server is full.
    """
    model = models[name]
    with readable():
        views = {}
        for which, data in (("a", a), ("b", b)):
            if data is not None:
                with model.picture(data) as image:
                    views[which] = model.prepare(image)
        seen = [_figure(which, views[which]) if which in views else "" for which in "ab"]
        if len(views) < 2:
            return seen[0], seen[1], NOTHING
        features = model.features(list(views.values()))
        sides, gray = (features[:1], features[1:]), [is_gray(view) for view in views.values()]
        difference, match = model.differences(*sides), matching(model.spec, *sides, gray)[0]
    one = {kind: values[0] for kind, values in difference.items()}
    unlike = match is not None and match[1]
    described = describe(model.spec, one, any(gray), unlike)
    said = sentences(described, match and match[0], model.spec.convention)
    return seen[0], seen[1], listed(said)


def _figure(which: str, view: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return (
        f'<figure><img src="{url}" alt="picture {which}"><figcaption>Picture {which}, as the model '
        "sees it</figcaption></figure>"
    )


PICTURE_STYLE = """
figure { margin: 0; text-align: center; }
img { width: min(100%, 256px); image-rendering: pixelated; margin: 0 auto 6px;
  border-radius: var(--block-radius); }
figcaption { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
"""
