"""The tab "Two views": augment a photograph twice, and see what the features know about it.

Every served model may know other augmentations, so the tab has the controls of all of them and
shows those of the model that is picked.
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

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters, draw
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.differences import is_gray
from augself_hub.preprocess import crop_resized
from serving.demo.comparison import STYLE, TITLES, Row, compare, table
from serving.demo.controls import Control, Value, controls, labels, parameters, values
from serving.demo.files import Files
from serving.demo.frames import (
    FRAME_SIDE,
    PREDICTED,
    TRUE,
    box_in_frame,
    box_in_pixels,
    enlarged,
    in_frame,
    outlined,
)
from serving.demo.picks import picked, picks
from serving.demo.undo import can_undo, learned, undone
from serving.demo.visitors import EXAMPLES, PRIVATE, QUIET, Models, given, kept, readable, upload

SENTENCE = (
    "Two crops of one photograph, coloured differently. From their **features alone** the model "
    "guesses what takes view a to view b."
)
CAPTIONS = {
    "relative": "What takes view a to view b, as seen in view a.",
    "paper": "View a minus view b, as in the AugSelf paper.",
}
FRAME_CAPTION = (
    f'<i style="background:{TRUE}"></i>where view b is <i style="background:{PREDICTED}"></i>'
    "where the model puts it, drawn over view a"
)
FRAME_STYLE = """
font-size: var(--text-sm); color: var(--body-text-color-subdued);
i { display: inline-block; width: 10px; height: 10px; margin: 0 6px 0 10px; border-radius: 2px; }
i:first-child { margin-left: 0; }
"""
UNDO_CAPTION = (
    "Drag the handle: view a on the left; on the right view b with the predicted difference taken "
    "back. Plain gray is what view b does not show."
)
FIRST = 31  # the draw view b starts with: cropped, mirrored and coloured

TICKS = ("Mirrored", "Gray")

Kinds = Sequence[tuple[str, str]]  # (kind, label) of every control of one view


class _Parts(NamedTuple):
    """The components of the tab that events read and write."""

    examples: gr.HTML
    photograph: gr.File
    pictures: list[gr.Image]
    surprise_me: gr.Button
    reset: gr.Button
    clicks: gr.State  # a draw's number
    caption: gr.Markdown
    comparison: gr.HTML
    in_a: list[Any]  # what is only there for models that say it: view b in a's frame, and undone
    settings: list[gr.Slider | gr.Checkbox]
    headings: list[tuple[str, gr.Markdown]]


def tab(page: gr.Blocks, models: Models, files: Files, picker: gr.Dropdown) -> None:
    """Build the tab inside `page`, which is open, and wire it."""
    kinds = labels(model.spec for model in models.values())
    with gr.Tab("Two views"):
        parts = _layout(kinds, files, next(iter(models.values())).spec)
    changes = _changes(parts, models, files, kinds, picker)
    answer = {
        "fn": partial(pair, models, files, kinds),
        "inputs": [picker, parts.photograph, *parts.settings],
        "outputs": [*parts.pictures, parts.comparison, *parts.in_a[1:]],
        **QUIET,
    }
    gr.on([page.load, parts.photograph.upload], api_name="two_views", **answer)
    for change in changes:
        change.success(**PRIVATE, **answer)
    # While a slider is dragged only its last position is asked for.
    moved = [setting.input for setting in parts.settings]
    gr.on(moved, trigger_mode="always_last", **PRIVATE, **answer)


def _changes(
    parts: _Parts, models: Models, files: Files, kinds: Kinds, picker: gr.Dropdown
) -> list[Dependency]:
    """What changes the photograph or the controls from elsewhere: new pictures are due after it."""
    quiet = {**PRIVATE, **QUIET}

    def example(event: gr.EventData) -> str:
        return files.shipped(Path(EXAMPLES[picked(event, len(EXAMPLES))]))

    known = [parts.caption, parts.in_a[0], *(h for _, h in parts.headings), *parts.settings]
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
            known,
            **quiet,
        ),
    ]


def _layout(kinds: Kinds, files: Files, spec: Spec) -> _Parts:
    """On a phone the columns stand below each other: photograph, answer, controls."""
    gr.Markdown(SENTENCE)
    examples, photograph = _choice(files)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            pictures = _pictures()
            with gr.Row():
                surprise_me = gr.Button("Surprise me", variant="primary", min_width=140)
                reset = gr.Button("Reset", min_width=140)
            in_a = _in_a(spec)
            gr.Markdown("### What the features say")
            caption = gr.Markdown(CAPTIONS[spec.convention])
            comparison = gr.HTML(css_template=STYLE, apply_default_css=False)
        with gr.Column(scale=2, min_width=300):
            headings, settings = _settings(kinds, spec)
    return _Parts(
        examples,
        photograph,
        pictures,
        surprise_me,
        reset,
        gr.State(1),
        caption,
        comparison,
        in_a,
        settings,
        headings,
    )


def _choice(files: Files) -> tuple[gr.HTML, gr.File]:
    """The examples and the upload field. The field holds the photograph, chosen or uploaded."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            named = [(Path(path).stem, Image.open(path)) for path in EXAMPLES]
            examples = picks("Pick a photograph", named)
        photograph = upload("or upload your own", files.shipped(Path(EXAMPLES[0])), scale=2)
    return examples, photograph


def _pictures() -> list[gr.Image]:
    """The photograph with both boxes, view a, view b. The views stay side by side on a phone."""
    picture = partial(gr.Image, interactive=False, buttons=[], min_width=130)
    with gr.Row():
        alt = "the photograph with the boxes of both views"
        photograph = picture(label="Photograph", alt_text=alt)
        with gr.Column(scale=2, min_width=280), gr.Row():
            a = picture(label="View a", alt_text="view a, the reference")
            b = picture(label="View b", alt_text="view b")
    return [photograph, a, b]


def _in_a(spec: Spec) -> list[Any]:
    """View b in view a's frame, and taken back to view a."""
    with gr.Row(visible=can_undo(spec)) as row:
        with gr.Column(min_width=240):
            gr.Markdown("### Where view b lies")
            alt = "view a with two boxes: where view b is, and where the model puts it"
            frame = gr.Image(
                interactive=False,
                buttons=[],
                show_label=False,
                alt_text=alt,
            )
            gr.HTML(FRAME_CAPTION, css_template=FRAME_STYLE, apply_default_css=False)
        with gr.Column(min_width=240):
            gr.Markdown("### Undo")
            slider = gr.ImageSlider(interactive=False, buttons=[], show_label=False, max_height=480)
            gr.HTML(UNDO_CAPTION, css_template=FRAME_STYLE, apply_default_css=False)
    return [row, frame, slider]


def _settings(
    kinds: Kinds, spec: Spec
) -> tuple[list[tuple[str, gr.Markdown]], list[gr.Slider | gr.Checkbox]]:
    """The controls of view a and of view b, in this order, whatever their place on the page."""
    rows = controls(spec)
    width, height = Image.open(EXAMPLES[0]).size
    drawn = values(rows, draw(spec.policy, (0, 0, FIRST, 1), height, width), height, width)
    first = {row.label: value for row, value in zip(rows, drawn, strict=True)}
    neutral = {row.label: row.neutral for row in rows}
    with gr.Accordion("View b"):
        headings_b, b = _controls(kinds, rows, first)
    with gr.Accordion("View a, the reference", open=False):
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
    """What picking a model changes: the caption, the pictures in a's frame, the controls."""
    spec = models[name].spec
    rows = {row.label: row for row in controls(spec)}
    return [
        CAPTIONS[spec.convention],
        gr.update(visible=can_undo(spec)),
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
    with readable(), models[name].picture(given(photograph)) as image:
        width, height = image.size
    rows = controls(spec)
    drawn = (draw(spec.policy, (0, 0, click, view), height, width) for view in (0, 1))
    a, b = (_shown(kinds, rows, values(rows, view, height, width)) for view in drawn)
    return [click + 1, *a, *b]


def pair(
    models: Models,
    files: Files,
    kinds: Kinds,
    name: str,
    photograph: bytes | None,
    *settings: Value,
) -> tuple[Any, ...]:
    """A photograph and the values of both views' controls -> what the tab shows.

    Returns:
        The photograph with the two boxes, view a, view b, the table as HTML; view b's boxes in view
        a's frame, and view a beside view b taken back (None where the model does not say). Pictures
        are files.

    Raises:
        gr.Error: the upload is no image we read, or the server is full.
    """
    model, half = models[name], len(settings) // 2
    spec, rows = model.spec, controls(model.spec)
    with readable():
        with model.picture(given(photograph)) as image:
            a, b = (
                parameters(rows, _chosen(kinds, rows, some), image.height, image.width)
                for some in (settings[:half], settings[half:])
            )
            views = two_views(image, a, b, spec.policy)
            boxes = [box_in_pixels(view["crop"][0], image) for view in (a, b)]
            whole = outlined(image, boxes)
        features = model.features(list(views))
        predicted = model.differences(features[:1], features[1:])
    # What counts is what a picture looks like: a photograph may be gray from the start.
    gray = [is_gray(view) for view in views]
    seen_a, seen_b = ({**p, "gray": np.array([g])} for p, g in zip((a, b), gray, strict=True))
    compared = compare(spec, seen_a, seen_b, predicted)
    return (
        kept(files, whole),
        *(kept(files, enlarged(view)) for view in views),
        table(compared),
        *_in_frame_of_a(spec, files, views, compared, predicted, any(gray)),
    )


def _in_frame_of_a(
    spec: Spec,
    files: Files,
    views: np.ndarray,
    compared: Sequence[Row],
    predicted: dict[str, np.ndarray],
    gray: bool,
) -> tuple[Any, Any]:
    """View b's boxes over view a, and (view a, view b taken back)."""
    if not can_undo(spec):
        return None, None
    # What the model has not learned is left as it is.
    crop = [(row.true, row.predicted or 0.0) for row in compared if row.kind == "crop"]
    boxes = [box_in_frame(np.array(numbers)) for numbers in zip(*crop, strict=True)]
    one = learned(spec, {kind: numbers[0] for kind, numbers in predicted.items()})
    a = np.asarray(Image.fromarray(views[0]).resize((FRAME_SIDE, FRAME_SIDE)))
    back = undone(views[1], one, gray, spec.policy, FRAME_SIDE)
    frame = in_frame(views[0], list(zip((TRUE, PREDICTED), boxes, strict=False)))
    return kept(files, frame), (kept(files, a), kept(files, back))


def two_views(image: Image.Image, a: Parameters, b: Parameters, policy: Policy) -> np.ndarray:
    """The two augmented views of an image, (2, S, S, 3) uint8, made as in training."""
    boxes = (box_in_pixels(view["crop"][0], image) for view in (a, b))
    crops = np.stack([crop_resized(image, box, policy.size) for box in boxes])
    both = {name: np.concatenate([a[name], b[name]]) for name in a}
    views: np.ndarray = augment(crops.transpose(0, 3, 1, 2).astype(np.float32) / 255, both, policy)
    return np.round(views.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
