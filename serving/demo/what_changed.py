"""The tab "What changed?": cut and colour a photograph twice; the model says what takes a to b.

Views are drawn from the full picture; what the model sees of them is small, as shown in their
corners. Every served model may know other augmentations, so the tab has the controls of all of them
and shows those of the model that is picked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image

from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Spec
from augself_hub.differences import is_gray
from augself_hub.errors import AugSelfError
from serving.demo import answer
from serving.demo.comparison import STYLE as NUMBERS
from serving.demo.comparison import TITLES, compare, table, truth
from serving.demo.controls import Control, Value, controls, labels, parameters, values
from serving.demo.files import Files
from serving.demo.frames import LONGEST_SIDE, boxes
from serving.demo.picks import picked, picks
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

SENTENCE = (
    "Cut and recolour a photograph: that makes b. The model sees a and b as small as in their "
    "corners, and says what changed. From its answer alone b is taken back."
)
WAITING = "<p>Pick a photograph, or upload one.</p>"
SHOWN = 448  # pixels, sides of the views on the page
FIRST = 157  # the draw that b starts with: one that the embedded model tells well

TICKS = ("Mirrored", "Gray")

Kinds = Sequence[tuple[str, str]]  # (kind, label) of every control of one view


class _Parts(NamedTuple):
    """The components of the tab that events read and write."""

    examples: gr.HTML
    photograph: gr.File
    stage: gr.HTML  # a, b and b taken back
    told: gr.HTML
    surprise_me: gr.Button
    reset: gr.Button
    clicks: gr.State  # a draw's number
    settings: list[gr.Slider | gr.Checkbox]
    headings: list[tuple[str, gr.Markdown]]


def tab(models: Models, files: Files, picker: gr.Dropdown) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    kinds = labels(model.spec for model in models.values())
    with gr.Tab("What changed?") as place:
        parts = _layout(kinds, files, next(iter(models.values())).spec)
    changes = _changes(parts, models, files, kinds, picker)
    asked = {
        "fn": partial(pair, models, kinds),
        "inputs": [picker, parts.photograph, *parts.settings],
        "outputs": [parts.stage, parts.told],
        **QUIET,
    }
    gr.on([place.select, parts.photograph.upload], api_name="what_changed", **asked)
    for change in changes:
        change.success(**PRIVATE, **asked)
    gr.on([setting.input for setting in parts.settings], **PRIVATE, **asked)
    parts.photograph.clear(lambda: (WAITING, ""), None, asked["outputs"], **PRIVATE, **QUIET)


def _changes(
    parts: _Parts, models: Models, files: Files, kinds: Kinds, picker: gr.Dropdown
) -> list[Dependency]:
    """What changes the photograph or the controls from elsewhere: new pictures are due after it."""
    quiet = {**PRIVATE, **QUIET}

    def example(event: gr.EventData) -> str:
        return files.shipped(Path(EXAMPLES[picked(event, len(EXAMPLES))]))

    return [
        parts.surprise_me.click(
            partial(surprise, models, kinds),
            [picker, parts.photograph, parts.clicks],
            [parts.clicks, *parts.settings],
            api_name="surprise",
            **QUIET,
        ),
        parts.examples.click(example, None, parts.photograph, **quiet),
        parts.reset.click(partial(_neutral, models, kinds), picker, parts.settings, **quiet),
        picker.input(
            partial(_of_model, models, kinds, [kind for kind, _ in parts.headings]),
            picker,
            [*(heading for _, heading in parts.headings), *parts.settings],
            **quiet,
        ),
    ]


def _layout(kinds: Kinds, files: Files, spec: Spec) -> _Parts:
    """Pictures above; the answer beside the controls, on a phone above them."""
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
            headings, settings = _settings(kinds, spec)
    return _Parts(
        examples,
        photograph,
        stage,
        told,
        surprise_me,
        reset,
        gr.State(1),
        settings,
        headings,
    )


def _settings(
    kinds: Kinds, spec: Spec
) -> tuple[list[tuple[str, gr.Markdown]], list[gr.Slider | gr.Checkbox]]:
    """The controls of view a and of view b, in this order, whatever their place on the page."""
    rows = controls(spec)
    width, height = Image.open(EXAMPLES[0]).size
    drawn = values(rows, draw(spec.policy, (0, 0, FIRST, 1), height, width), height, width)
    first = {row.label: value for row, value in zip(rows, drawn, strict=True)}
    neutral = {row.label: row.neutral for row in rows}
    with gr.Accordion("What is done to b"):
        headings_b, b = _controls(kinds, rows, first)
    with gr.Accordion("What is done to a", open=False):
        headings_a, a = _controls(kinds, rows, neutral)
    return headings_a + headings_b, a + b


def _controls(
    kinds: Kinds, rows: Sequence[Control], start: dict[str, Value]
) -> tuple[list[tuple[str, gr.Markdown]], list[gr.Slider | gr.Checkbox]]:
    """Sliders under a heading for their kind; tick boxes speak for themselves."""
    by_label = {row.label: row for row in rows}
    headings, components = [], []
    for (kind, tick), group in itertools.groupby(kinds, lambda pair: (pair[0], pair[1] in TICKS)):
        if not tick:
            shown = any(row.kind == kind for row in rows)
            headings.append((kind, gr.Markdown(f"**{TITLES[kind]}**", visible=shown)))
        with gr.Row():
            for _, label in group:
                components.append(_control(label, by_label.get(label), start.get(label)))
    return headings, components


def _control(label: str, row: Control | None, value: Value | None) -> gr.Slider | gr.Checkbox:
    """A control the picked model does not have is hidden, with any range."""
    if label in TICKS:
        return gr.Checkbox(bool(value), label=label, visible=row is not None)
    ranges = {"minimum": 0, "maximum": 1} if row is None else _range(row)
    return gr.Slider(**ranges, value=value, label=label, min_width=180, visible=row is not None)


def _range(row: Control) -> dict[str, float]:
    return {"minimum": row.low, "maximum": row.high, "step": row.step}


def _of_model(models: Models, kinds: Kinds, headings: Sequence[str], name: str) -> list[Any]:
    """What picking a model changes: the controls."""
    spec = models[name].spec
    rows = {row.label: row for row in controls(spec)}
    return [
        *(gr.update(visible=kind in spec.heads) for kind in headings),
        *2 * [_updated(rows.get(label)) for _, label in kinds],
    ]


def _updated(row: Control | None) -> Any:
    if row is None:
        return gr.update(visible=False)
    ranges: Any = {} if row.tick else _range(row)
    return gr.update(visible=True, value=row.neutral, **ranges)


def _neutral(models: Models, kinds: Kinds, name: str) -> list[Any]:
    rows = controls(models[name].spec)
    return _shown(kinds, rows, [row.neutral for row in rows]) * 2


def _shown(kinds: Kinds, rows: Sequence[Control], some: Sequence[Value]) -> list[Any]:
    """Values of a model's controls -> of all controls; those it does not have stay as they are."""
    known = {row.label: value for row, value in zip(rows, some, strict=True)}
    return [known.get(label, gr.skip()) for _, label in kinds]


def _chosen(kinds: Kinds, rows: Sequence[Control], some: Sequence[Value]) -> list[Value]:
    """The inverse of `_shown`."""
    by_label = {label: value for (_, label), value in zip(kinds, some, strict=True)}
    return [by_label[row.label] for row in rows]


def surprise(
    models: Models, kinds: Kinds, name: str, photograph: bytes | None, click: int
) -> list[Any]:
    """Keyed random parameters of two views: the same click draws the same for everybody.

    Returns:
        The next click's number, then the values of view a's and view b's controls.
    """
    spec = models[name].spec
    try:
        with models[name].picture(given(photograph)) as image:
            width, height = image.size
    except AugSelfError:  # the pictures' place says it
        return [click, *2 * [gr.skip() for _ in kinds]]
    rows = controls(spec)
    drawn = (draw(spec.policy, (0, 0, click, view), height, width) for view in (0, 1))
    a, b = (_shown(kinds, rows, values(rows, view, height, width)) for view in drawn)
    return [click + 1, *a, *b]


def pair(
    models: Models, kinds: Kinds, name: str, photograph: bytes | None, *settings: Value
) -> tuple[str, str]:
    """A photograph and the values of both views' controls -> the pictures and the answer, as HTML.

    What is no image, or a full server, is said where the pictures would be.
    """
    model, half = models[name], len(settings) // 2
    spec, rows = model.spec, controls(model.spec)
    try:
        with model.picture(given(photograph)) as image:
            a, b = (
                parameters(rows, _chosen(kinds, rows, some), image.height, image.width)
                for some in (settings[:half], settings[half:])
            )
            views = two_views(image, a, b, spec.policy, spec.policy.size)
            shown = two_views(image, a, b, spec.policy, SHOWN)
            whole = small(image, LONGEST_SIDE)
        asked = answer.ask(model, views, one=True)
    except AugSelfError as error:
        return problem(str(error)), ""
    # What counts is what a picture looks like: a photograph may be gray from the start.
    seen_a, seen_b = (
        {**drawn, "gray": np.array([is_gray(view)])}
        for drawn, view in zip((a, b), views, strict=True)
    )
    compared = compare(asked.spec, seen_a, seen_b, asked.predicted, asked.errors)
    back, outlines = None, ""
    if can_undo(asked.spec):
        one = learned(asked.spec, {kind: numbers[0] for kind, numbers in asked.predicted.items()})
        back = undone(shown[1], one, asked.gray, spec.policy, SHOWN)
        outlines = boxes(whole, a, compared)
    told = answer.told_html(asked, truth(compared), table(compared))
    return pictures(shown, views, back), told + outlines
