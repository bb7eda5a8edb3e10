"""a and b side by side, each with what the model sees of it, and b taken back under a handle."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from serving.demo.visitors import data_url, pixels_url

UNDO = (
    "a on the left; on the right b with the predicted change taken back (gray: b does not show it)"
)
NO_UNDO = (
    "This model says differences as the paper does, in the photograph's frame: b stays as it is."
)


def pictures(shown: np.ndarray, seen: np.ndarray, back: np.ndarray | None) -> str:
    """a and b at full resolution, each with what the model sees of it, and b taken back."""
    urls = [data_url(Image.fromarray(view), shown.shape[1]) for view in shown]
    views = "".join(
        f'<figure><div class="view"><img src="{url}" alt="{alt}"><img class="seen" '
        f'src="{pixels_url(small)}" alt="{name} as the model sees it"></div>'
        f"<figcaption><b>{name}</b>{note}</figcaption></figure>"
        for name, url, small, alt, note in (
            ("a", urls[0], seen[0], "a, the reference", "; the corner: what the model sees"),
            ("b", urls[1], seen[1], "b, cut and recoloured", ", cut and recoloured"),
        )
    )  # fmt: skip
    if back is None:
        return f'<div class="stage">{views}<p>{NO_UNDO}</p></div>'
    taken_back = data_url(Image.fromarray(back), shown.shape[1])
    undo = (
        f'<figure class="undo"><div class="view"><img src="{taken_back}" '
        f'alt="b taken back to a"><img class="over" src="{urls[0]}" alt="">'
        '<input type="range" min="0" max="100" value="50" aria-label="how much of a covers b taken '
        f'back"></div><figcaption><b>Undone</b>: {escape(UNDO)}</figcaption></figure>'
    )
    return f'<div class="stage">{views}{undo}</div>'


SLIDE_JS = """
element.addEventListener('input', (event) => {
  if (event.target.type === 'range')
    event.target.parentElement.style.setProperty('--at', event.target.value + '%');
});
"""
STYLE = """
.stage { display: grid; grid-template-columns: 1fr 1fr 1.25fr; gap: 16px; align-items: start; }
figure { margin: 0; }
figcaption { margin-top: 6px; color: var(--body-text-color-subdued); font-size: var(--text-sm); }
figcaption b { color: var(--body-text-color); }
figcaption i { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 8px;
  border-radius: 2px; }
.view { position: relative; --at: 50%; }
.view img { display: block; width: 100%; aspect-ratio: 1; border-radius: 8px; }
.view img.seen { position: absolute; right: 8px; bottom: 8px; width: 22%;
  image-rendering: pixelated; border: 2px solid white; border-radius: 4px; box-sizing: border-box; }
.view img.over { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.undo .view::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at);
  width: 3px; margin-left: -1.5px; background: white; box-shadow: 0 0 3px black;
  pointer-events: none; }
.view input { position: absolute; inset: auto 0 8px 0; width: 100%; margin: 0;
  cursor: ew-resize; accent-color: #374151; }
.boxes { margin-top: 16px; max-width: 420px; }
.boxes svg { display: block; width: 100%; height: auto; border-radius: 8px; }
.problem { padding: 48px 16px; text-align: center; font-size: 1.1rem; border-radius: 8px;
  border: 1px dashed var(--border-color-primary); color: var(--body-text-color); }
@media (max-width: 760px) {
  .stage { grid-template-columns: 1fr 1fr; gap: 10px; }
  .stage .undo { grid-column: 1 / -1; }
}
"""
