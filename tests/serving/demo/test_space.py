"""A Hugging Face Space: its requirements are the demo's, and they suffice by themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from huggingface_hub import RepoCard

ROOT = Path(__file__).parents[3]
SPACE = ROOT / "docs/space"


def bare(requirements: list[str]) -> set[str]:
    """Without comments and without what says where a package is needed."""
    lines = (line.partition(";")[0].strip() for line in requirements)
    return {line for line in lines if line and not line.startswith("#")}


def needed(extra: str, project: dict) -> set[str]:
    """An extra and the extras of ours it names, with the base."""
    found = bare(project["dependencies"])
    for requirement in bare(project["optional-dependencies"][extra]):
        ours = re.fullmatch(r"augself-hub\[(.*)\]", requirement)
        found |= needed(ours[1], project) if ours else {requirement}
    return found


def test_a_space_requires_what_the_demo_does():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = bare((SPACE / "requirements.txt").read_text().splitlines())
    assert listed == needed("demo", project) | needed("cpu", project)


def test_the_front_matter_is_what_a_space_needs():
    data = RepoCard.load(SPACE / "README.md", ignore_metadata_errors=True).data.to_dict()
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "apache-2.0")
    assert (ROOT / data["app_file"]).is_file() and len(data["short_description"]) <= 60


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_space_starts_with_nothing_but_its_requirements(launch, tmp_path):
    """The files of a Space in an environment of their own, started as a Space starts them."""
    for name in ("augself_hub", "serving"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (ROOT / "app.py", SPACE / "README.md", SPACE / "requirements.txt"):
        shutil.copy(path, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = str(tmp_path / "env/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run(install, cwd=tmp_path, check=True)
    space = launch(python=python, folder=tmp_path)
    try:
        answer = httpx.get(f"{space.url}/v1/models").json()
        assert [model["id"] for model in answer["data"]] == ["embedded"]
        assert "AugSelf Hub" in httpx.get(space.url).text
    finally:
        assert space.stop() == 0
