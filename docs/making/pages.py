"""Pages of the site that are no files of docs/: made of the code, or lying elsewhere in the tree.

mkdocs calls `on_files` and `on_page_markdown`, and puts this folder on the path for its neighbours.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interfaces import command_line, http, python
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "embedded.md": "augself_hub/pretrained/README.md",
    "curves.png": "augself_hub/pretrained/curves.png",
    "photographs.md": "serving/demo/examples/LICENSES.md",
    "gallery.md": "serving/demo/pictures/LICENSES.md",
    "research.md": "research/README.md",
} | {
    path.relative_to(ROOT / "research").as_posix(): path.relative_to(ROOT).as_posix()
    for kind in ("*.md", "*.png", "*.svg")
    for path in sorted((ROOT / "research").rglob(kind))
    if path.name != "README.md"
}
MADE: dict[str, Callable[[], str]] = {
    "reference/command-line.md": command_line,
    "reference/http.md": http,
    "reference/python.md": python,
}
PROGRAMS = {
    f"examples/{program.stem}.md": f"docs/examples/{program.name}"
    for program in sorted((ROOT / "docs/examples").glob("*.py"))
}
PAGE_OF = {place: page for page, place in (ELSEWHERE | PROGRAMS).items()}
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to the files mkdocs has found."""
    for page, place in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    for page, place in PROGRAMS.items():
        files.append(File.generated(config, page, content=shown(ROOT / place)))
    for page, write in MADE.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links between files of the repository to their pages."""
    own = page.file.src_uri
    folder = posixpath.dirname((ELSEWHERE | PROGRAMS).get(own, f"docs/{own}"))

    def led(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, link[1]))
        target = PAGE_OF.get(place, place.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, posixpath.dirname(own))}{link[2] or ''})"

    return LINK.sub(led, markdown)


def shown(program: Path) -> str:
    """A program as a page."""
    return f"# {program.name}\n\n```python\n{program.read_text()}```\n"
