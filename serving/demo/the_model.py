"""The tab "The model": what is served, its card, and where the API is described."""

from __future__ import annotations

import base64
import re
from html import escape

import gradio as gr

from augself_hub.folder import CURVES
from serving.demo.visitors import PRIVATE, QUIET, Models
from serving.inference.client import Local

SENTENCE = (
    "What answers on this page. The same models answer programs: "
    "[the API is described at /docs](docs), [what is served at /v1/models](v1/models)."
)
STYLE = """
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--body-text-color-subdued); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
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
        gr.Markdown(SENTENCE)
        known = gr.HTML(facts(first), css_template=STYLE, apply_default_css=False)
        shown = gr.Markdown(card(first), elem_classes="card")
    picker.input(
        lambda name: (facts(models[name]), card(models[name])),
        picker,
        [known, shown],
        **PRIVATE,
        **QUIET,
    )


def facts(model: Local) -> str:
    """The model in a few lines of HTML."""
    heads = ", ".join(model.spec.heads) or "none"
    lines = {
        "Name": model.name,
        "Picture": f"{model.side} x {model.side} pixels",
        "Features": f"{model.spec.features} numbers a picture",
        "Heads": heads,
        "Limits": f"{model.limits.items} pictures a request, {model.limits.pixels:,} pixels a "
        f"picture, {model.limits.body_bytes // 2**20} MB an upload",
        "Fingerprint": model.sha256[:16],
    }
    rows = (f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in lines.items())
    return f"<dl>{''.join(rows)}</dl>"


def card(model: Local) -> str:
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


def _curves(model: Local) -> str:
    """The training curves as a data: URL; nothing where there are none."""
    path = model.folder / CURVES
    if not path.is_file() or path.stat().st_size > CURVES_BYTES:
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
