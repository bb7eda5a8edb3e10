"""docs/licences.md: names what is asked for, and every licence is one that was looked at."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from augself_hub.errors import AugSelfError

pytest.importorskip("piplicenses", reason="pip install 'augself-hub[docs]'")
ROOT = Path(__file__).parents[2]
PROGRAM, PAGE = ROOT / "docs/making/licences.py", ROOT / "docs/licences.md"


def test_the_page_names_every_package_that_all_asks_for():
    listed = set(re.findall(r"^\| ([\w.-]+) \|", PAGE.read_text(), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    wanted = re.search(r"\[(.*)\]", everything)[1].split(",")
    names = [*project["dependencies"], *(text for extra in wanted for text in extras[extra])]
    here = [r for r in map(Requirement, names) if r.marker is None or r.marker.evaluate()]
    assert {canonicalize_name(r.name) for r in here} - {"augself-hub"} <= listed


@pytest.mark.parametrize(
    "licence", ["GPLv2", "AGPL-3.0-only", "UNKNOWN", "MIT AND SSPL-1.0", "Proprietary"]
)
def test_a_licence_nobody_looked_at_is_refused_by_name(licence):
    licence_of = runpy.run_path(str(PROGRAM))["licence_of"]
    with pytest.raises(AugSelfError, match=rf"some-package: nobody .* '{licence}'"):
        licence_of({"Name": "some-package", "License": licence})


@pytest.mark.slow
def test_what_is_installed_here_is_compatible(tmp_path):
    command = [sys.executable, str(PROGRAM), "all", str(tmp_path / "licences.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
