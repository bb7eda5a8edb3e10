"""Links between pages lead to files and headings, in the repository as on the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
    *(ROOT / p for p in ("augself_hub/pretrained/README.md", "serving/demo/examples/LICENSES.md")),
    ROOT / "serving/demo/pictures/LICENSES.md",
]
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Those that GitHub and the site give its headings: they agree on plain words."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for place, anchor in LINK.findall(FENCED.sub("", page.read_text())):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{place} is on no disk"
        assert not anchor or anchor in anchors(target), (place, anchor)
