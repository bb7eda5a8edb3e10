"""The tab "Two views": augment a photograph twice, and see what the features know about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image, ImageDraw, ImageFont

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters, draw
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.errors import AugSelfError
from augself_hub.preprocess import Box, crop_resized, decode
from serving.client import Local
from serving.demo.comparison import STYLE, TITLES, compare, table
from serving.demo.controls import Control, Value, controls, parameters, values
from serving.differences import is_gray

FOLDER = Path(__file__).parent / "examples"
EXAMPLES = tuple(
    str(FOLDER / f"{name}.jpg")
    for name in ("fig", "dogs", "brushes", "autumn", "drum", "dandelion")
)
CAPTIONS = {
    "relative": "What takes view a to view b, as seen in view a.",
    "paper": "View a minus view b, as in the AugSelf paper.",
}
COLORS = ("#2563eb", "#ea580c")  # of the boxes of view a and view b
FIRST = 31  # the draw view b starts with: cropped, mirrored and coloured
LONGEST_SIDE = 640  # of the photograph as it is shown with the two boxes
SMALLEST_VIEW = 256  # smaller views are shown with larger pixels
_QUIET = {"concurrency_limit": None, "show_progress": "hidden"}  # the server's own queue limits


class _Parts(NamedTuple):
    """The components of the tab that events read and write."""

    examples: gr.Dataset
    photograph: gr.File
    pictures: list[gr.Image]
    surprise_me: gr.Button
    reset: gr.Button
    comparison: gr.HTML
    settings: list[gr.Slider | gr.Checkbox]


def tab(page: gr.Blocks, client: Local) -> None:
    """Build the tab inside `page`, which is open, and wire it."""
    rows = controls(client.engine.spec)
    with gr.Tab("Two views"):
        parts = _layout(rows, client.engine.spec)
    changes = _changes(parts, rows, client.engine.spec.policy)
    answer = {
        "fn": partial(pair, client, rows),
        "inputs": [parts.photograph, *parts.settings],
        "outputs": [*parts.pictures, parts.comparison],
        **_QUIET,
    }
    gr.on([page.load, parts.photograph.upload], api_name="two_views", **answer)
    for change in changes:
        change.success(api_visibility="private", **answer)
    # While a slider is dragged only its last position is asked for.
    moved = [setting.input for setting in parts.settings]
    gr.on(moved, trigger_mode="always_last", api_visibility="private", **answer)


def _changes(parts: _Parts, rows: Sequence[Control], policy: Policy) -> list[Dependency]:
    """What changes the photograph or the controls from elsewhere: new pictures are due after it."""
    clicks = gr.State(1)
    drawn = parts.surprise_me.click(
        partial(surprise, rows, policy),
        [parts.photograph, clicks],
        [clicks, *parts.settings],
        api_name="surprise",
        **_QUIET,
    )
    private = {"api_visibility": "private", **_QUIET}
    return [
        drawn,
        parts.examples.click(EXAMPLES.__getitem__, parts.examples, parts.photograph, **private),
        parts.reset.click(partial(_neutral, rows), None, parts.settings, **private),
    ]


def _layout(rows: Sequence[Control], spec: Spec) -> _Parts:
    """On a phone the columns stand below each other: photograph, answer, controls."""
    examples, photograph = _choice()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            pictures = _pictures()
            with gr.Row():
                surprise_me = gr.Button("Surprise me", variant="primary", min_width=140)
                reset = gr.Button("Reset", min_width=140)
            gr.Markdown(f"### What the features say\n{CAPTIONS[spec.convention]}")
            comparison = gr.HTML(css_template=STYLE, apply_default_css=False)
        with gr.Column(scale=2, min_width=300):
            settings = _settings(rows, spec.policy)
    return _Parts(examples, photograph, pictures, surprise_me, reset, comparison, settings)


def _choice() -> tuple[gr.Dataset, gr.File]:
    """The examples and the upload field. The field holds the photograph, chosen or uploaded."""
    with gr.Row():
        examples = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[path] for path in EXAMPLES],
            type="index",
            label="Pick a photograph",
            scale=3,
            min_width=300,
        )
        photograph = gr.File(
            EXAMPLES[0],
            type="binary",
            file_types=["image"],
            label="or upload your own",
            height=140,
            scale=2,
            min_width=300,
        )
    return examples, photograph


def _pictures() -> list[gr.Image]:
    """The photograph with both boxes, view a, view b. The views stay side by side on a phone."""
    picture = partial(gr.Image, interactive=False, buttons=[], min_width=130, format="png")
    with gr.Row():
        alt = "the photograph with the boxes of both views"
        photograph = picture(label="Photograph", alt_text=alt)
        with gr.Column(scale=2, min_width=280), gr.Row():
            a = picture(label="View a", alt_text="view a, the reference")
            b = picture(label="View b", alt_text="view b")
    return [photograph, a, b]


def _settings(rows: Sequence[Control], policy: Policy) -> list[gr.Slider | gr.Checkbox]:
    """The controls of view a and of view b, in this order, whatever their place on the page."""
    width, height = Image.open(EXAMPLES[0]).size
    first = values(rows, draw(policy, (0, 0, FIRST, 1), height, width), height, width)
    with gr.Accordion("View b"):
        b = _controls(rows, first)
    with gr.Accordion("View a, the reference", open=False):
        a = _controls(rows, [row.neutral for row in rows])
    return a + b


def _controls(rows: Sequence[Control], start: Sequence[Value]) -> list[gr.Slider | gr.Checkbox]:
    """Sliders under a heading for their kind; tick boxes speak for themselves."""
    components = []
    pairs = zip(rows, start, strict=True)
    for (kind, tick), group in itertools.groupby(pairs, lambda pair: (pair[0].kind, pair[0].tick)):
        if not tick:
            gr.Markdown(f"**{TITLES[kind]}**")
        with gr.Row():
            components += [_control(row, value) for row, value in group]
    return components


def _control(row: Control, value: Value) -> gr.Slider | gr.Checkbox:
    if row.tick:
        return gr.Checkbox(value, label=row.label)
    return gr.Slider(row.low, row.high, value, step=row.step, label=row.label, min_width=180)


def _neutral(rows: Sequence[Control]) -> list[Value]:
    return 2 * [row.neutral for row in rows]


def surprise(
    rows: Sequence[Control], policy: Policy, photograph: bytes | None, click: int
) -> list[Value]:
    """Keyed random parameters of two views: the same click draws the same for everybody.

    Returns:
        The next click's number, then the values of view a's and view b's controls.
    """
    with _readable():
        width, height = _decoded(photograph).size
    drawn = (draw(policy, (0, 0, click, view), height, width) for view in (0, 1))
    a, b = (values(rows, view, height, width) for view in drawn)
    return [click + 1, *a, *b]


def pair(
    client: Local, rows: Sequence[Control], photograph: bytes | None, *settings: Value
) -> tuple[Image.Image, np.ndarray, np.ndarray, str]:
    """A photograph and the values of both views' controls -> what the tab shows.

    Returns:
        The photograph with the two boxes, view a, view b, and the table as HTML.

    Raises:
        gr.Error: the upload is no image we read, or the server is full.
    """
    with _readable():
        image = _decoded(photograph)
        half = len(settings) // 2
        a, b = (
            parameters(rows, some, image.height, image.width)
            for some in (settings[:half], settings[half:])
        )
        view_a, view_b = two_views(image, a, b, client.engine.spec.policy)
        features = client.features([view_a, view_b])
    predicted = client.differences(features[:1], features[1:])
    # What counts is what a picture looks like: a photograph may be gray from the start.
    seen_a, seen_b = ({**p, "gray": np.array([is_gray(v)])} for p, v in ((a, view_a), (b, view_b)))
    compared = compare(client.engine.spec, seen_a, seen_b, predicted)
    boxes = [box_in_pixels(view["crop"][0], image) for view in (a, b)]
    return outlined(image, boxes), enlarged(view_a), enlarged(view_b), table(compared)


def _decoded(photograph: bytes | None) -> Image.Image:
    if photograph is None:
        raise AugSelfError("there is no photograph: pick an example or upload one")
    return decode(photograph)


@contextmanager
def _readable() -> Iterator[None]:
    """Our errors are one line for people: the page shows them as they are."""
    try:
        yield
    except AugSelfError as error:
        raise gr.Error(str(error), print_exception=False) from error


def two_views(image: Image.Image, a: Parameters, b: Parameters, policy: Policy) -> np.ndarray:
    """The two augmented views of an image, (2, S, S, 3) uint8, made as in training."""
    boxes = (box_in_pixels(view["crop"][0], image) for view in (a, b))
    crops = np.stack([crop_resized(image, box, policy.size) for box in boxes])
    both = {name: np.concatenate([a[name], b[name]]) for name in a}
    views = augment(crops.transpose(0, 3, 1, 2).astype(np.float32) / 255, both, policy)
    return np.round(views.transpose(0, 2, 3, 1) * 255).astype(np.uint8)


def box_in_pixels(crop: np.ndarray, image: Image.Image) -> Box:
    """(4,) top, left, height, width as fractions -> left, top, right, bottom, not rounded."""
    top, left, height, width = (float(v) for v in crop)
    return (
        left * image.width,
        top * image.height,
        (left + width) * image.width,
        (top + height) * image.height,
    )


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
