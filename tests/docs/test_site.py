"""The site: builds without a warning, shows what the code says, asks nothing of other servers."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import augself_hub
from augself_hub.cli import COMMANDS

pytest.importorskip("mkdocs", reason="pip install 'augself-hub[docs]'")
ROOT = Path(__file__).parents[2]
RESEARCH = sorted((ROOT / "research").rglob("*.md"))
FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)|<link([^>]+)>")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def text(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_the_reference_has_every_command_every_route_and_every_name(site):
    commands = text(site / "reference/command-line/index.html")
    assert all(f"Usage: augself {name}" in commands for name in COMMANDS)
    routes = text(site / "reference/http/index.html")
    assert all(f"POST /v1/{name}" in routes for name in ("embeddings", "augmentations"))
    names = (site / "reference/python/index.html").read_text()
    assert all(f'id="augself_hub.{n}"' in names for n in augself_hub.__all__ if n[0] != "_")


def test_every_page_is_of_one_kind():
    """Tutorials, how-to guides, reference, explanation; apart from them our own experiments."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    (home,), *sections = (list(part.items()) for part in nav)
    assert home == ("Home", "index.md")
    names = [name for ((name, _),) in sections]
    assert names == ["Tutorials", "How-to guides", "Reference", "Explanation", "Research"]
    pages = re.findall(r"[\w/-]+\.md", str(sections))
    assert len(pages) == len(set(pages))
    own = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    research = {p.relative_to(ROOT / "research").as_posix() for p in RESEARCH}
    assert own - {"space/README.md"} <= set(pages)
    assert research - {"README.md"} <= set(re.findall(r"[\w/-]+\.md", str(sections[-1])))


def test_an_example_stands_on_its_page_as_it_is_in_its_file(site):
    program = ROOT / "docs/examples/retrieval.py"
    assert program.read_text() in text(site / "examples/retrieval/index.html")


def test_nothing_is_fetched_from_elsewhere(site):
    """Links lead out; scripts, styles, fonts and pictures do not."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for source, link in FETCHED.findall(page.read_text()):
            if 'rel="stylesheet"' in link or "rel=stylesheet" in link:
                source = re.search(r"href=\"?([^\s\">]+)", link)[1]
            assert not source.startswith(("http:", "https:", "//")), (page, source)
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style
