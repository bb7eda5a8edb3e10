"""Features of N images on a map: the two directions in which they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, SIDE = 720, 460, 60  # of the map and of a picture on it
COLORS = ("#0d9488", "#a855f7", "#ea580c", "#2563eb", "#ca8a04", "#db2777", "#4d7c0f", "#0891b2")
OTHERS = "#6b7280"


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
    points: np.ndarray, names: Sequence[str], groups: Sequence[str], thumbnails: Sequence[str]
) -> str:
    """The map as HTML: every picture at its place, framed in its group's colour; a legend.

    Args:
        points: (N, 2) in [-1, 1]. thumbnails: as data: URLs.
    """
    colors = dict(zip(dict.fromkeys(groups), COLORS, strict=False))
    pictures = (
        _picture(point, name, colors.get(group, OTHERS), url)
        for point, name, group, url in zip(points, names, groups, thumbnails, strict=True)
    )
    others = {"others": OTHERS} if len(set(groups)) > len(COLORS) else {}
    legend = (
        f'<li><i style="background:{color}"></i>{escape(group)}</li>'
        for group, color in (colors | others).items()
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="a map of {len(names)} '
        f'pictures">{"".join(pictures)}</svg><ul>{"".join(legend)}</ul>'
    )


def _picture(point: np.ndarray, name: str, color: str, url: str) -> str:
    half = SIDE / 2
    x = WIDTH / 2 + point[0] * (WIDTH / 2 - half - 4)
    y = HEIGHT / 2 - point[1] * (HEIGHT / 2 - half - 4)
    place = f'x="{x - half:.1f}" y="{y - half:.1f}" width="{SIDE}" height="{SIDE}"'
    return (
        f'<g><title>{escape(name)}</title><image href="{url}" {place} '
        f'preserveAspectRatio="xMidYMid slice"/>'
        f'<rect {place} fill="none" stroke="{color}" stroke-width="4" rx="2"/></g>'
    )


STYLE = """
svg { display: block; width: 100%; max-width: 760px; height: auto;
  border-radius: var(--block-radius); border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); }
ul { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 8px 0 0; padding: 0; }
i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; }
"""
