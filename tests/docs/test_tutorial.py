"""docs/tutorial.md and docs/making: the commands, in their order, and the figures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from augself_hub.cli import augself

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("git", "python3", "pip", "curl", "augself push", "augself serve")  # run by other tests


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    """With one epoch instead of ten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where evaluate keeps its tables
    for line in commands():
        program, *words = shlex.split(line.replace("--epochs 10", "--epochs 1"))
        if line.startswith(ELSEWHERE):
            continue
        if program == "augself":
            augself.main(words, prog_name="augself", standalone_mode=False)
        else:
            assert program == "python"
            words[0] = words[0].replace("docs/", f"{ROOT}/docs/")
            subprocess.run([sys.executable, *words], check=True)
    assert "brightness" in capsys.readouterr().out
    assert {p.name for p in Path("comparison").iterdir()} >= {"comparison.md", "comparison.png"}


@pytest.mark.slow
def test_the_figures_are_drawn_by_their_program(tmp_path):
    program = ROOT / "docs/making/figures.py"
    subprocess.run([sys.executable, str(program), str(tmp_path)], check=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/figures").iterdir()}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in drawn)
