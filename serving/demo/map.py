"""Features of N images on a map: the two directions in which they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, SIDE = 1200, 560, 72  # of the map and of a picture on it


def principal(features: np.ndarray) -> tuple[np.ndarray, float]:
    """(N, D) -> the first two principal components (N, 2), each in [-1, 1], and their share.

    The share is of the variance, in [0, 1]; 1 where there is none. A component's sign is free: the
    entry of largest size is made positive, so that the same pictures give the same map.
    """
    centred = features.astype(np.float64) - features.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    sizes, directions = _two(sizes), _two(directions)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[[0, 1], largest] < 0, -1, 1)[:, None]
    points = centred @ directions.T
    total = float((centred**2).sum())
    share = float((sizes**2).sum()) / total if total else 1.0
    return points / np.maximum(np.abs(points).max(axis=0), 1e-9), share


def _two(rows: np.ndarray) -> np.ndarray:
    """The first two rows; zeros where there are fewer."""
    padding = [(0, max(0, 2 - len(rows)))] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, padding)[:2]


def drawn(
    points: np.ndarray,
    share: float,
    names: Sequence[str],
    thumbnails: Sequence[str],
    near: Sequence[np.ndarray],
) -> str:
    """The map as HTML: every picture at its place, and beside it the one that is pointed at with
    those nearest to it.

    Args:
        points: (N, 2) in [-1, 1]. share: of the variance they hold. thumbnails: as data: URLs.
        near: of each picture the numbers of its nearest ones.
    """
    pictures = "".join(
        f'<g tabindex="0" role="button" aria-label="{escape(name, quote=True)}" '
        f'data-x="{x:.4f}" data-y="{-y:.4f}" data-near="{" ".join(map(str, some))}" '
        f'transform="{_place(x, -y)}"><image href="{url}" x="{-SIDE / 2}" y="{-SIDE / 2}" '
        f'width="{SIDE}" height="{SIDE}" preserveAspectRatio="xMidYMid slice"/>'
        f'<rect x="{-SIDE / 2}" y="{-SIDE / 2}" width="{SIDE}" height="{SIDE}" rx="4"/></g>'
        for (x, y), name, url, some in zip(points, names, thumbnails, near, strict=True)
    )
    items = "".join(f'<li><img src="{thumbnails[n]}" alt="{escape(names[n], quote=True)}"></li>'
                    for n in near[0])  # fmt: skip
    return (
        f'<div class="map"><div><div class="tools"><button type="button" data-zoom="1.5" '
        'aria-label="zoom in">+</button><button type="button" data-zoom="0.667" '
        'aria-label="zoom out">&minus;</button><button type="button" data-zoom="0">whole map'
        f'</button></div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="a map of {len(names)} pictures">{pictures}</svg>'
        f"<p>{len(names)} pictures; near means alike to the model. The "
        f"map's two directions hold {share:.0%} of their differences. Drag to move it.</p></div>"
        f'<aside aria-live="polite"><img class="large" src="{thumbnails[0]}" alt=""><b>'
        f"{escape(names[0])}</b><p>nearest to it</p><ol>{items}</ol></aside></div>"
    )


def _place(x: float, y: float) -> str:
    half = SIDE / 2 + 6
    across, down = WIDTH / 2 + x * (WIDTH / 2 - half), HEIGHT / 2 + y * (HEIGHT / 2 - half)
    return f"translate({across:.1f} {down:.1f})"


MAP_JS = f"const W = {WIDTH}, H = {HEIGHT}, HALF = {SIDE // 2 + 6};\n"
MAP_JS += """
let k = 1, dx = 0, dy = 0, from = null;
const groups = () => [...element.querySelectorAll('.map g')];
const draw = () => groups().forEach((g) => {
  const x = W / 2 + (g.dataset.x * k + dx) * (W / 2 - HALF);
  const y = H / 2 + (g.dataset.y * k + dy) * (H / 2 - HALF);
  g.setAttribute('transform', `translate(${x} ${y})`);
});
const zoom = (factor) => {
  const before = k;
  k = factor ? Math.min(20, Math.max(1, k * factor)) : 1;
  dx *= factor ? k / before : 0;
  dy *= factor ? k / before : 0;
  draw();
};
const picture = (g) => g.querySelector('image').getAttribute('href');
const show = (g) => {
  const aside = element.querySelector('aside'), all = groups();
  aside.querySelector('.large').src = picture(g);
  aside.querySelector('b').textContent = g.getAttribute('aria-label');
  const near = g.dataset.near.split(' ').filter(Boolean);
  aside.querySelector('ol').replaceChildren(...near.map((n) => {
    const item = document.createElement('li'), image = document.createElement('img');
    image.src = picture(all[n]);
    image.alt = all[n].getAttribute('aria-label');
    item.append(image);
    return item;
  }));
};
const pointed = (event) => event.target.closest && event.target.closest('.map g');
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-zoom]');
  if (button) zoom(Number(button.dataset.zoom));
});
for (const kind of ['pointerover', 'focusin', 'click'])
  element.addEventListener(kind, (event) => { if (pointed(event)) show(pointed(event)); });
element.addEventListener('wheel', (event) => {
  if (!event.ctrlKey || !event.target.closest('svg')) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
}, {passive: false});
element.addEventListener('pointerdown', (event) => {
  if (event.target.closest('svg')) from = [event.clientX, event.clientY, dx, dy];
});
window.addEventListener('pointermove', (event) => {
  const svg = element.querySelector('.map svg');
  if (!from || !svg) return;
  const width = svg.clientWidth / 2, height = svg.clientHeight / 2;
  dx = from[2] + (event.clientX - from[0]) / width;
  dy = from[3] + (event.clientY - from[1]) / height;
  draw();
});
window.addEventListener('pointerup', () => { from = null; });
"""
STYLE = """
.map { display: grid; grid-template-columns: 1fr 210px; gap: 16px; }
.map svg { display: block; width: 100%; height: auto; border-radius: 8px; cursor: grab;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.map g { cursor: pointer; outline: none; }
.map g rect { fill: none; stroke: var(--border-color-primary); stroke-width: 1.5; }
.map g:hover rect, .map g:focus-visible rect { stroke: var(--body-text-color); stroke-width: 5; }
.map p { margin: 6px 0; color: var(--body-text-color-subdued); }
.tools { display: flex; gap: 8px; margin-bottom: 8px; }
.tools button { min-width: 36px; padding: 4px 10px; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); }
aside { color: var(--body-text-color); overflow-wrap: anywhere; }
aside img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; }
aside ol { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
ol, ul { list-style: none; margin: 0; padding: 0; }
.left-out { margin-bottom: 12px; color: var(--body-text-color); }
section { margin-top: 16px; }
section h3 { margin: 0 0 8px; font-size: 1.05rem; font-weight: 600; color: var(--body-text-color);
  overflow-wrap: anywhere; }
section ol { display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; }
section img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px;
  border: 1px solid var(--border-color-primary); box-sizing: border-box; }
.pair { display: grid; grid-template-columns: 1fr 1fr 1.4fr; gap: 16px; align-items: start; }
figure { margin: 0; }
figcaption { margin-top: 6px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
figcaption b { color: var(--body-text-color); }
.view { position: relative; }
.view img { display: block; width: 100%; border-radius: 8px; }
.view img.seen { position: absolute; right: 8px; bottom: 8px; width: 22%;
  image-rendering: pixelated; border: 2px solid white; border-radius: 4px; box-sizing: border-box; }
table { border-collapse: collapse; }
th, td { text-align: left; font-weight: 400; padding: 2px 14px 2px 0; color: var(--body-text-color);
  font-variant-numeric: tabular-nums; }
.problem { padding: 48px 16px; text-align: center; font-size: 1.1rem; border-radius: 8px;
  border: 1px dashed var(--border-color-primary); color: var(--body-text-color); }
@media (max-width: 760px) {
  .map { grid-template-columns: 1fr; }
  aside { display: grid; grid-template-columns: 96px 1fr; gap: 4px 12px; align-items: center; }
  aside ol { grid-column: 1 / -1; grid-template-columns: repeat(5, 1fr); }
  section ol { grid-template-columns: repeat(4, 1fr); }
  .pair { grid-template-columns: 1fr 1fr; }
  .pair > div { grid-column: 1 / -1; }
}
"""
