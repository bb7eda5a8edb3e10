"""The tab "Neighbours": the pictures nearest to one, by features that know colour and others."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from serving.demo.gallery import Gallery, features_of, nearest
from serving.demo.picks import THUMBNAIL, picked, picks
from serving.demo.visitors import BUSY, PRIVATE, Models, data_url, given, readable, upload
from serving.inference.client import Local

SENTENCE = (
    "Which pictures are close to this one? First by features that know colour, then by others."
)
COLORLESS = "the same model, colour taken away"
NOTE = "All pictures were made gray before the model saw them: a stand-in for a colour-blind one."
COUNT = 8  # neighbours on each side


def tab(models: Models, picker: gr.Dropdown, gallery: Gallery) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    names = list(models)
    with gr.Tab("Neighbours") as place:
        gr.Markdown(f"{SENTENCE} {gallery.about}")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                offered = [(gallery.names[n], gallery.open(n)) for n in gallery.picks]
                choice = picks("Pick a picture", offered)
            own = upload("or upload your own", scale=2)
        against = gr.Dropdown(
            [*names, COLORLESS],
            value=names[1] if len(names) > 1 else COLORLESS,
            label="Compare with",
            visible=len(names) > 1,
        )
        number = gr.State(gallery.picks[0])
        query = gr.HTML(css_template=STYLE, apply_default_css=False)
        with gr.Row():
            sides = [_side() for _ in range(2)]
    answer = {
        "fn": partial(search, models, gallery),
        "inputs": [picker, against, own, number],
        "outputs": [query, *sides],
        **BUSY,
    }

    def chosen_number(event: gr.EventData) -> tuple[int, None]:
        """A picked picture takes the upload's place."""
        return gallery.picks[picked(event, len(gallery.picks))], None

    chosen = choice.click(chosen_number, None, [number, own], **PRIVATE, **BUSY)
    gr.on([own.upload, place.select], api_name="neighbours", **answer)
    chosen.success(**PRIVATE, **answer)
    gr.on([own.clear, against.input, picker.input], **PRIVATE, **answer)


def _side() -> gr.HTML:
    """On a phone the two sides stand below each other."""
    with gr.Column(min_width=300):
        return gr.HTML(css_template=STYLE, apply_default_css=False)


def search(
    models: Models, gallery: Gallery, name: str, against: str, own: bytes | None, number: int
) -> tuple[Any, ...]:
    """An uploaded picture, else one of the gallery -> it and its neighbours both ways, as HTML.

    Raises:
        gr.Error: the upload is no image we read, or the server is full.
    """
    model, other = models[name], models.get(against, models[name])
    with readable():
        picture = gallery.open(number) if own is None else model.reduced(given(own))
        but = number if own is None else None
        left = _near(gallery, model, picture, but, colorless=False)
        right = _near(gallery, other, picture, but, colorless=against == COLORLESS)
    heads = (model.name, other.name)
    notes = [_trained(model), _trained(other)]
    if against == COLORLESS:
        heads, notes[1] = (f"{model.name}, with colour", f"{model.name}, colour taken away"), NOTE
    return (
        f'<figure><img src="{data_url(picture, THUMBNAIL)}" alt=""><figcaption>The query'
        "</figcaption></figure>",
        listed(gallery, left, picture, heads[0], notes[0]),
        listed(gallery, right, picture, heads[1], notes[1]),
    )


def _near(
    gallery: Gallery, model: Local, picture: Image.Image, but: int | None, colorless: bool
) -> np.ndarray:
    query = features_of(model, iter([picture]), colorless)[0]
    return nearest(query, gallery.features(model, colorless), but, COUNT)


def _trained(model: Local) -> str:
    """What the model's folder says of AugSelf."""
    augself = model.spec.provenance.get("augself")
    if augself:
        return f"Trained with AugSelf ({augself})."
    return "Trained without AugSelf, as far as its folder says."


def listed(gallery: Gallery, numbers: np.ndarray, query: Image.Image, head: str, note: str) -> str:
    """One side's neighbours as HTML, and how far their colours are from the query's."""
    pictures = [gallery.open(int(number)) for number in numbers]
    items = (
        f'<li><img src="{data_url(picture, THUMBNAIL)}" '
        f'alt="{escape(gallery.names[int(number)], quote=True)}"></li>'
        for number, picture in zip(numbers, pictures, strict=True)
    )
    away = np.mean([np.abs(mean_color(p) - mean_color(query)).mean() for p in pictures])
    return (
        f"<h4>{escape(head)}</h4><p>{escape(note)}</p><ol>{''.join(items)}</ol>"
        f"<p>Their average colour is <b>{away:.0f}</b> of 255 levels away from the query's.</p>"
    )


def mean_color(picture: Image.Image) -> np.ndarray:
    """(3,) mean red, green and blue, 0 to 255."""
    mean: np.ndarray = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), float).mean(
        axis=(0, 1)
    )
    return mean


STYLE = """
h4 { margin: 0; font-weight: 600; }
p { margin: 4px 0 12px; color: var(--body-text-color-subdued); font-size: var(--text-sm); }
b { color: var(--body-text-color); }
ol { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; list-style: none;
  margin: 0 0 8px; padding: 0; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; }
figure { display: flex; align-items: center; gap: 12px; margin: 0; }
figure img { width: 88px; }
"""
