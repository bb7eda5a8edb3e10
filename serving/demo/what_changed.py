"""The tab "What changed?": cut and colour a photograph twice; the model says what takes a to b.

A change of any slider or tick box calls `show` (see `tab`), and `pictures_and_answer` does the
rest, one call after the other:

    sliders.py     labelled             the call's values -> {label: value} of view a and of view b
    controls.py    parameters           -> augmentation parameters of each view
    views.py       two_views            photograph, parameters -> views, large and as the model sees
    answer.py      ask                  views -> what the model predicts
    comparison.py  compare, table       predicted beside true -> rows -> numbers and bars
    undo.py        undone               view b, the prediction taken back
    frames.py      boxes                where b lies in the photograph, in truth and by the model
    stage.py       pictures             a, b, b taken back -> HTML

Views are drawn from the full picture; what the model sees of them is small, as shown in their
corners.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from augself_hub.augmentations.sampling import Parameters, draw
from augself_hub.augmentations.spec import Spec
from augself_hub.differences import is_gray
from augself_hub.errors import AugSelfError
from serving.demo import answer
from serving.demo.comparison import STYLE as NUMBERS
from serving.demo.comparison import compare, table, truth
from serving.demo.controls import Value, controls, parameters, values
from serving.demo.files import Files
from serving.demo.frames import LONGEST_SIDE, boxes
from serving.demo.picks import picked, picks
from serving.demo.sliders import Sliders, Updates, Values, neutral
from serving.demo.stage import SLIDE_JS, STYLE, pictures
from serving.demo.undo import can_undo, learned, undone
from serving.demo.views import two_views
from serving.demo.visitors import (
    EXAMPLES,
    PRIVATE,
    QUIET,
    Models,
    given,
    problem,
    small,
    upload,
)
from serving.inference.client import ModelClient

SENTENCE = (
    "Cut and recolour a photograph: that makes b. The model sees a and b as small as in their "
    "corners, and says what changed. From its answer alone b is taken back."
)
WAITING = "<p>Pick a photograph, or upload one.</p>"
SHOWN = 448  # pixels, sides of the views on the page
FIRST = 157  # the draw that b starts with: one that the embedded model tells well


# -- The page --------------------------------------------------------------------------------------


class _Parts(NamedTuple):
    """The components of the tab that events read and write."""

    examples: gr.HTML
    photograph: gr.File
    stage: gr.HTML  # a, b and b taken back
    told: gr.HTML
    surprise_me: gr.Button
    reset: gr.Button
    sliders: Sliders
    clicks: gr.State  # the number of the next draw


def tab(models: Models, files: Files, picker: gr.Dropdown) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    with gr.Tab("What changed?") as place:
        parts = _layout([model.spec for model in models.values()], files)
    sliders, quiet = parts.sliders, {**PRIVATE, **QUIET}

    # What is called. `name` is that of the model which is picked.
    def show(name: str, photograph: bytes | None, *values: Value) -> tuple[str, str]:
        """The two views of a photograph and what the model says of them, as HTML."""
        return pictures_and_answer(models[name], photograph, *sliders.labelled(values))

    def surprise(name: str, photograph: bytes | None, click: int) -> Updates:
        """Random values of both views' sliders: the same click draws the same for everybody."""
        try:
            a, b = drawn(models[name], photograph, click)
        except AugSelfError:  # the pictures' place says it
            return {parts.clicks: click}
        return {parts.clicks: click + 1} | sliders.a.set_to(a) | sliders.b.set_to(b)

    def reset(name: str) -> Updates | None:
        start = neutral(models[name].spec)
        return sliders.a.set_to(start) | sliders.b.set_to(start) or None  # None: there are none

    def pick_model(name: str) -> Updates | None:
        spec = models[name].spec
        return sliders.a.show_those_of(spec) | sliders.b.show_those_of(spec) or None

    def pick_example(event: gr.EventData) -> str:
        return files.shipped(Path(EXAMPLES[picked(event, len(EXAMPLES))]))

    # When. What changes the photograph or the sliders by program shows new pictures after it.
    asked: dict[str, Any] = {
        "fn": show,
        "inputs": [picker, parts.photograph, *sliders.components],
        "outputs": [parts.stage, parts.told],
        **QUIET,
    }
    changes = (
        parts.surprise_me.click(
            surprise,
            [picker, parts.photograph, parts.clicks],
            [parts.clicks, *sliders.components],
            api_name="surprise",
            **QUIET,
        ),
        parts.examples.click(pick_example, None, parts.photograph, **quiet),
        parts.reset.click(reset, picker, sliders.components, **quiet),
        picker.input(pick_model, picker, [*sliders.headings, *sliders.components], **quiet),
    )
    gr.on([place.select, parts.photograph.upload], api_name="what_changed", **asked)
    for change in changes:
        change.success(**PRIVATE, **asked)
    gr.on([component.input for component in sliders.components], **PRIVATE, **asked)
    parts.photograph.clear(lambda: (WAITING, ""), None, asked["outputs"], **quiet)


def _layout(specs: list[Spec], files: Files) -> _Parts:
    """Pictures above; the answer beside the sliders, on a phone above them."""
    gr.Markdown(SENTENCE)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            named = [(Path(path).stem, Image.open(path)) for path in EXAMPLES]
            examples = picks("A photograph", named)
        photograph = upload("or your own", files.shipped(Path(EXAMPLES[0])), scale=2)
    stage = gr.HTML(WAITING, css_template=STYLE, js_on_load=SLIDE_JS, apply_default_css=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            told = gr.HTML(css_template=f"{NUMBERS}{answer.STYLE}{STYLE}", apply_default_css=False)
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                surprise_me = gr.Button("Surprise me", variant="primary", min_width=120)
                reset = gr.Button("Reset", min_width=100)
            first = _values_of_draw(specs[0], *named[0][1].size, draw_number=FIRST, view=1)
            sliders = Sliders(specs, a=neutral(specs[0]), b=first)
    clicks = gr.State(1)
    return _Parts(examples, photograph, stage, told, surprise_me, reset, sliders, clicks)


# -- What its events compute -----------------------------------------------------------------------


def pictures_and_answer(
    model: ModelClient, photograph: bytes | None, of_a: Values, of_b: Values
) -> tuple[str, str]:
    """A photograph and the values of both views' sliders -> the pictures and the answer, as HTML.

    What is no image, or a full server, is said where the pictures would be.
    """
    rows, policy = controls(model.spec), model.spec.policy
    try:
        with model.picture(given(photograph)) as image:
            a, b = (
                parameters(rows, [chosen[row.label] for row in rows], image.height, image.width)
                for chosen in (of_a, of_b)
            )
            seen = two_views(image, a, b, policy, policy.size)
            shown = two_views(image, a, b, policy, SHOWN)
            whole = small(image, LONGEST_SIDE)
        said = answer.ask(model, seen, one=True)
    except AugSelfError as error:
        return problem(str(error)), ""
    compared = compare(
        said.spec, _as_seen(a, seen[0]), _as_seen(b, seen[1]), said.predicted, said.errors
    )
    told = answer.told_html(said, truth(compared), table(compared))
    if not can_undo(said.spec):
        return pictures(shown, seen, None), told
    predicted = {kind: numbers[0] for kind, numbers in said.predicted.items()}
    back = undone(shown[1], learned(said.spec, predicted), said.gray, policy, SHOWN)
    return pictures(shown, seen, back), told + boxes(whole, a, compared)


def _as_seen(view: Parameters, pixels: np.ndarray) -> Parameters:
    """A view is gray if it looks so: a photograph may be gray from the start."""
    return {**view, "gray": np.array([is_gray(pixels)])}


def drawn(model: ModelClient, photograph: bytes | None, number: int) -> tuple[Values, Values]:
    """Where the sliders of view a and of view b show a random draw, keyed by its number.

    Raises:
        AugSelfError: there is no photograph, it is no image, or the server is full.
    """
    with model.picture(given(photograph)) as image:
        width, height = image.size
    a, b = (
        _values_of_draw(model.spec, width, height, draw_number=number, view=view) for view in (0, 1)
    )
    return a, b


def _values_of_draw(spec: Spec, width: int, height: int, draw_number: int, view: int) -> Values:
    """Where the sliders show one view of a draw, for a photograph of width x height pixels."""
    rows, key = controls(spec), (0, 0, draw_number, view)
    shown = values(rows, draw(spec.policy, key, height, width), height, width)
    return {row.label: value for row, value in zip(rows, shown, strict=True)}
