"""The tab "Neighbours", which tells what AugSelf is for: one picture, and what is nearest to it by
features that keep colour and place and by features that do not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from html import escape

import gradio as gr
import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError
from serving.demo.gallery import Gallery, nearest, palette
from serving.demo.picks import BUTTONS_JS, picked, picks
from serving.demo.visitors import PRIVATE, QUIET, Models, data_url

COUNT = 8  # neighbours on each side
QUERY, THUMBNAIL = 160, 128  # pixels
Side = tuple[str, str, Callable[[], np.ndarray]]  # title, how it was trained, (N, D) features
WITH, WITHOUT = "with AugSelf", "without AugSelf"
NOTHING = "nothing"


def tab(page: gr.Blocks, models: Models, gallery: Gallery) -> None:
    """Build the tab inside `page`, which is open, and wire it."""
    names = list(sides(models, gallery))
    several = len(models) > 1 or gallery.twins is None
    left, right = names[0], names[1] if len(names) > 1 else NOTHING
    with gr.Tab("Neighbours"):
        board = gr.HTML(
            _board(models, gallery, left, right, gallery.picks[0]) if gallery.twins else "",
            css_template=STYLE,
            js_on_load=BUTTONS_JS,
            apply_default_css=False,
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=280):
                offered = [(gallery.names[n], gallery.open(n)) for n in gallery.picks]
                choice = picks("Try another, or click any picture above", offered)
            with gr.Column(scale=1, min_width=140):
                any_one = gr.Button("A random picture", variant="primary")
        with gr.Row(visible=several):
            one = gr.Dropdown(names, value=left, label="First row: features of")
            other = gr.Dropdown([*names, NOTHING], value=right, label="Second row: features of")
        gr.Markdown(_about(gallery))
        number = gr.State(gallery.picks[0])
    answer = {
        "fn": partial(_board, models, gallery),
        "inputs": [one, other, number],
        "outputs": board,
        **QUIET,
    }

    def of_picks(event: gr.EventData) -> int:
        return gallery.picks[picked(event, len(gallery.picks))]

    def of_board(event: gr.EventData) -> int:
        return picked(event, len(gallery.names))

    for chosen in (
        choice.click(of_picks, None, number, **PRIVATE, **QUIET),
        board.click(of_board, None, number, **PRIVATE, **QUIET),
        any_one.click(
            lambda: secrets.randbelow(len(gallery.names)), None, number, **PRIVATE, **QUIET
        ),
    ):
        chosen.success(**PRIVATE, **answer)
    shown = [one.input, other.input] + ([] if gallery.twins else [page.load])
    gr.on(shown, api_name="neighbours", **answer)


def sides(models: Models, gallery: Gallery) -> dict[str, Side]:
    """What pictures can be near by: the two models trained alike first, then those served."""
    found: dict[str, Side] = {}
    if (twins := gallery.twins) is not None:
        how, other = "trained with AugSelf", "the same training without AugSelf"
        found[WITH] = ("Features that keep colour and place", how, lambda: twins.augself)
        found[WITHOUT] = ("Features that learned to ignore them", other, lambda: twins.plain)
    for name, model in models.items():
        augself = model.spec.provenance.get("augself")
        how = f"trained with AugSelf ({augself})" if augself not in (None, "", "none") else (
            "trained without AugSelf, as far as its folder says")  # fmt: skip
        found[name] = (f"Features of {name}", how, partial(gallery.features, model))
    return found


def _board(models: Models, gallery: Gallery, left: str, right: str, number: int) -> str:
    """One picture and its neighbours by one kind of features and another, as HTML."""
    known = sides(models, gallery)
    try:
        rows = [known[name] for name in (left, right) if name != NOTHING]
        query = gallery.open(number)
        near = []
        for _, _, features in rows:
            some = features()
            near.append(nearest(some[number], some, number, COUNT))
    except AugSelfError as error:
        return f'<p class="problem" role="alert">{escape(str(error))}</p>'
    shares = [_shared(gallery, query, numbers) for numbers in near]
    parts = [
        _row(gallery, row, numbers, share)
        for row, numbers, share in zip(rows, near, shares, strict=True)
    ]
    line = _seen(gallery, known, left, right, shares)
    return (
        f'<p class="seen">{line}</p><div class="board"><figure>'
        f'<img src="{data_url(query, QUERY)}" alt="{escape(gallery.names[number], quote=True)}">'
        f"<figcaption>this picture</figcaption></figure><div>{''.join(parts)}</div></div>"
    )


def _shared(gallery: Gallery, query: Image.Image, numbers: np.ndarray) -> float:
    own = palette(query)
    others = np.stack([palette(gallery.open(int(number))) for number in numbers])
    return float(np.minimum(own, others).sum(axis=1).mean())


def _seen(
    gallery: Gallery, known: dict[str, Side], left: str, right: str, shares: Sequence[float]
) -> str:
    """What is seen, in one line, and what holds for the whole gallery beside it."""
    if len(shares) == 1:
        return f"The nearest pictures share <b>{shares[0]:.0%}</b> of this picture's colours."
    said = {WITH: "With AugSelf", WITHOUT: "without"}
    names = [said.get(name, f"By {escape(name)}'s features") for name in (left, right)]
    line = (
        f"{names[0]}, the nearest pictures share <b>{shares[0]:.0%}</b> of this picture's colours; "
        f"{names[1]}, <b>{shares[1]:.0%}</b>."
    )
    if gallery.twins is None or (left, right) != (WITH, WITHOUT):
        return line
    one, other = (gallery.twins.about[name]["shared"] for name in ("augself", "plain"))
    return f"{line} Over all {len(gallery.names)} pictures: {one:.0%} and {other:.0%}."


def _row(gallery: Gallery, side: Side, numbers: np.ndarray, share: float) -> str:
    title, how, _ = side
    items = (
        f'<li><button type="button" data-index="{number}" aria-label="'
        f'{escape(gallery.names[int(number)], quote=True)}: show its nearest pictures">'
        f'<img src="{data_url(gallery.open(int(number)), THUMBNAIL)}" alt=""></button></li>'
        for number in numbers
    )
    return (
        f"<section><h3>{escape(title)}</h3><p>{escape(how)}</p><ol>{''.join(items)}</ol></section>"
    )


def _about(gallery: Gallery) -> str:
    """What the pictures and the two models are, in small print."""
    text = (
        f"{gallery.about}. Nearest: the largest cosine of the features. Colours shared: the "
        "overlap of both pictures' colour histograms."
    )
    if gallery.twins is None:
        return f"<small>{text}</small>"
    one = gallery.twins.about["augself"]
    return (
        f"<small>{text} Both models are small ({one['parameters']:,} weights, 48 pixels) and were "
        f"trained on the same pictures from the same start, {one['trained']['steps']:,} steps; "
        "the first also learned to say how two crops of a picture differ. The pictures offered are "
        "those where the difference is largest.</small>"
    )


STYLE = """
.seen { font-size: 1.25rem; line-height: 1.5; margin: 0 0 16px; color: var(--body-text-color); }
.board { display: grid; grid-template-columns: minmax(150px, 1fr) 4fr; gap: 24px; }
figure { margin: 0; align-self: center; text-align: center; }
figure img { width: 100%; max-width: 240px; aspect-ratio: 1; object-fit: cover; border-radius: 10px;
  display: block; margin: 0 auto; }
figcaption { margin-top: 6px; color: var(--body-text-color-subdued); font-size: var(--text-md); }
section + section { margin-top: 18px; }
h3 { display: inline; margin: 0; font-size: 1.05rem; font-weight: 600;
  color: var(--body-text-color); }
section p { display: inline; margin: 0 0 0 10px; color: var(--body-text-color-subdued); }
ol { display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; list-style: none;
  margin: 8px 0 0; padding: 0; }
button { display: block; width: 100%; padding: 0; border: 0; border-radius: 8px; cursor: pointer;
  background: none; }
button:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 2px; }
button img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px;
  border: 1px solid var(--border-color-primary); box-sizing: border-box; }
@media (max-width: 760px) {
  .board { grid-template-columns: 1fr; gap: 12px; }
  .seen { font-size: 1.05rem; }
  figure img { width: 120px; }
  ol { grid-template-columns: repeat(4, 1fr); }
  section p { display: block; margin: 0; }
}
"""
