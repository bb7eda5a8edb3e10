"""The tab "The model": what is served, its card, and where the API is described."""

from __future__ import annotations

import base64
import re
from html import escape

import gradio as gr

from augself_hub.augmentations.spec import Spec
from augself_hub.folder import CURVES
from serving.demo.comparison import TITLES
from serving.demo.visitors import PRIVATE, QUIET, Models
from serving.inference.client import ModelClient

SENTENCE = (
    "What answers on this page, and programs: [the API is described at /docs](docs), "
    "[what is served at /v1/models](v1/models)."
)
STYLE = """
.facts { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 8px 48px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0;
  align-content: start; }
dt { color: var(--body-text-color-subdued); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; color: var(--body-text-color); }
th, td { text-align: left; padding: 3px 12px 3px 0; font-weight: 400; color: var(--body-text-color);
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
thead th { color: var(--body-text-color-subdued); }
@media (max-width: 760px) { .facts { grid-template-columns: minmax(0, 1fr); }
  th, td { padding-right: 6px; font-size: var(--text-sm); } }
"""
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_TITLE = re.compile(r"^# .*\n", re.MULTILINE)  # the page has a title of its own
# Inside there is no second beginning of one, so that no text is looked through twice.
_IMAGE = re.compile(r"!\[([^\[\]]*)\]\(([^()]*)\)")
CARD_BYTES, CURVES_BYTES = 2**20, 2**23


def tab(models: Models, picker: gr.Dropdown) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    first = next(iter(models.values()))
    with gr.Tab("The model"):
        known = gr.HTML(facts(first), css_template=STYLE, apply_default_css=False)
        gr.Markdown(SENTENCE)
        with gr.Accordion("The whole model card", open=False):
            shown = gr.Markdown(card(first), elem_classes="card")
    picker.input(
        lambda name: (facts(models[name]), card(models[name])),
        picker,
        [known, shown],
        **PRIVATE,
        **QUIET,
    )


def facts(model: ModelClient) -> str:
    """What the model says of a pair and how well, and the model in a few lines, as HTML."""
    heads = ", ".join(TITLES[kind].lower() for kind in model.spec.answering()) or "none"
    lines = {
        "Name": model.name,
        "Picture": f"{model.side} x {model.side} pixels",
        "Features": f"{model.spec.features} numbers a picture",
        "Tells": heads,
        "Limits": f"{model.limits.items} pictures a request, {model.limits.pixels:,} pixels a "
        f"picture, {model.limits.body_bytes // 2**20} MB an upload",
        "Fingerprint": model.sha256[:16],
    }
    rows = (f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in lines.items())
    return f'<div class="facts">{measured(model.spec)}<dl>{"".join(rows)}</dl></div>'


def measured(spec: Spec) -> str:
    """The table that matters: of each thing the heads say, how well they do on held-out pairs."""
    rows = []
    for kind, (_, head) in spec.answering().items():
        for d in head.dimensions:
            name = "accuracy" if d.unit == "probability" else "R²"
            score = "not measured" if d.score is None else f"{name} {d.score:.2f}"
            learned = {True: "yes", False: "no", None: "not known"}[d.learned]
            error = "" if d.standard_error is None else f"± {d.standard_error:.2f} {d.unit}"
            cells = (f"<td>{escape(text)}</td>" for text in (score, error, learned))
            what = f"{TITLES[kind].lower()}: {d.name.replace('_', ' ')}"
            rows.append(f'<tr><th scope="row">{escape(what)}</th>{"".join(cells)}</tr>')
    if not rows:
        return "<p>This model has no AugSelf heads: it gives features and says no differences.</p>"
    return (
        "<table><caption>How well it says what changed, on pairs it was not trained on</caption>"
        '<thead><tr><th scope="col">difference</th><th scope="col">score</th>'
        '<th scope="col">error</th><th scope="col">learned</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def card(model: ModelClient) -> str:
    """README.md of the model's folder, without its metadata and without pictures from elsewhere.

    Its curves are put into the text, once; any other picture becomes its description.
    """
    path = model.folder / "README.md"
    if not path.is_file():
        return "This model has no card."
    if path.stat().st_size > CARD_BYTES:
        return f"This model's card has more than {CARD_BYTES} bytes and is not shown."
    text = path.read_text("utf-8", errors="replace")
    text = _TITLE.sub("", _FRONT_MATTER.sub("", text), count=1)
    curves = _curves(model)

    def picture(found: re.Match[str]) -> str:
        nonlocal curves
        if found[2] != CURVES.as_posix() or not curves:
            return found[1]
        url, curves = curves, ""
        return f"![{found[1]}]({url})"

    return _IMAGE.sub(picture, text)


def _curves(model: ModelClient) -> str:
    """The training curves as a data: URL; nothing where there are none."""
    path = model.folder / CURVES
    if not path.is_file() or path.stat().st_size > CURVES_BYTES:
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
