"""A predicted difference as the demo lists it: sentences under a heading for each augmentation."""

from __future__ import annotations

from html import escape

from augself_hub.sentences import Sentence
from serving.demo.comparison import TITLES


def listed(said: list[Sentence]) -> str:
    """The sentences as HTML, under a heading for each augmentation."""
    if not said:
        return "<p>This model has no AugSelf heads, so it says nothing about differences.</p>"
    parts, kind = [], ""
    for sentence in said:
        if sentence.kind != kind:
            parts.append(f"{'</ul>' if kind else ''}<h4>{TITLES[sentence.kind]}</h4><ul>")
        kind = sentence.kind
        mark = "told" if sentence.told else "untold"
        number = f"<small>{escape(sentence.number)}</small>"
        parts.append(f'<li class="{mark}">{escape(sentence.text)}{number}</li>')
    return f"{''.join(parts)}</ul>"


STYLE = """
h4 { margin: 16px 0 4px; font-weight: 600; border-bottom: 1px solid var(--border-color-primary); }
ul { list-style: none; margin: 0; padding: 0; }
li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px;
  padding: 4px 0; }
li.untold { color: var(--body-text-color-subdued); }
small { color: var(--body-text-color-subdued); font-size: var(--text-sm);
  font-variant-numeric: tabular-nums; }
"""
