"""docs/use-with.md: each block is run on real pictures, where what it imports is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/use-with.md"
PARTS = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)
FIRST = re.findall(r"```python\n(.*?)```", PARTS[0], re.DOTALL)[0]
BLOCKS = {
    name: re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    for name, text in zip(PARTS[1::2], PARTS[2::2], strict=True)
}
NEAREST = ("usearch", "FAISS", "LanceDB")


@pytest.fixture(scope="module")
def place(tmp_path_factory, photo_folder) -> Path:
    folder = tmp_path_factory.mktemp("use")
    (folder / "PHOTOS").symlink_to(photo_folder)
    shutil.copy(sorted(photo_folder.rglob("*.jpg"))[0], folder / "query.jpg")
    return folder


def printed(block: str, place: Path) -> str:
    command = [sys.executable, "-c", f"{FIRST}\n{block}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [n for n in BLOCKS if not n.startswith("Clients")])
def test_a_block_runs(name, place, photo_folder):
    for package in re.findall(r"^(?:import|from) (\w+)", BLOCKS[name], re.M):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    said = printed(BLOCKS[name], place)
    first = sorted(photo_folder.rglob("*.jpg"))[0].relative_to(photo_folder).as_posix()
    if name in NEAREST:  # the query is in the folder
        assert re.findall(r"'(.*?)'", said)[0] == first and said.count("'") == 6
    elif name == "scikit-learn":
        assert said.strip() == first.split("/")[0]
    else:
        assert "even" in said and "20" in said
