"""The four ways of docs/architecture.md: every file and function that they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAYS = (
    (ROOT / "docs/architecture.md").read_text().partition("## Four ways")[2].partition("\n## ")[0]
)


def defined(path: str) -> set[str]:
    """Functions and classes of a file, and `Class.method`."""
    names = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
        names |= {node.name} if hasattr(node, "name") else set()
    return names


def test_the_ways_lead_through_what_is_there():
    paths, names = [], []
    for word in re.findall(r"`([^`\s]+)`", WAYS.partition("### ")[2]):
        (paths if "/" in word and word.endswith(".py") else names).append(word)
    assert len(paths) > 30 and len(names) > 40
    known = set().union(*(defined(path) for path in paths))
    assert [name for name in names if name not in known | {"Item", "from_pretrained"}] == []
