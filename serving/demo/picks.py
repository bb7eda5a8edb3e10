"""Pictures to pick from, as buttons with names: reachable by keyboard, told by screen readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr
from PIL import Image

from serving.demo.visitors import data_url

THUMBNAIL = 112
BUTTONS_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.hasAttribute('aria-pressed')) element.querySelectorAll('button[aria-pressed]')
    .forEach((b) => b.setAttribute('aria-pressed', b === button));
  trigger('click', {index: Number(button.dataset.index)});
});
"""
_STYLE = """
display: grid; grid-template-columns: repeat(auto-fill, minmax(68px, 1fr)); gap: 8px;
button { padding: 0; border: 3px solid transparent; border-radius: 8px; cursor: pointer;
  background: none; }
button[aria-pressed="true"] { border-color: var(--body-text-color); }
button:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 1px; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px; }
"""


def picks(
    title: str, pictures: Sequence[tuple[str, Image.Image]], pressed: int | None = 0
) -> gr.HTML:
    """A titled row of (name, picture); its click event brings the place, see `picked`.

    Args:
        pressed: the one that is picked at first.
    """
    gr.Markdown(f"**{title}**")
    buttons = (
        f'<button type="button" data-index="{place}" '
        f'aria-pressed="{"true" if place == pressed else "false"}" '
        f'aria-label="{escape(name, quote=True)}">'
        f'<img src="{data_url(picture, THUMBNAIL)}" alt=""></button>'
        for place, (name, picture) in enumerate(pictures)
    )
    return gr.HTML(
        "".join(buttons), css_template=_STYLE, js_on_load=BUTTONS_JS, apply_default_css=False
    )


def picked(event: gr.EventData, count: int) -> int:
    """The place of the picture that was clicked, one of `count`."""
    place = int(event.index)
    if not 0 <= place < count:
        raise gr.Error(f"there is no picture {place}", print_exception=False)
    return place
