"""Where transformers.js is installed, for the tests that ask it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGE = "@huggingface/transformers"


def node_modules() -> Path:
    """The folder of packages that holds transformers.js; skips where there is none, or no Node."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no node: apt-get install nodejs npm")
    given = [Path(p) for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p]
    around = [
        Path(__file__).parents[2] / "node_modules",
        Path(node).parents[1] / "lib/node_modules",
    ]
    for place in (*given, *around):
        if (place / PACKAGE / "package.json").is_file():
            return place
    pytest.skip(f"npm install --global --ignore-scripts {PACKAGE}")
