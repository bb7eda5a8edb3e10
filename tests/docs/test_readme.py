"""README.md: every block is run as it is written; those without a language are a record."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from augself_hub.cli import augself

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
LINES = [
    line.split(" #")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
]
SMALL = "--encoder resnet18-w16 --size 32 --batch-size 16 --epochs 1 --workers 0 --report-to none"


def lines(program: str) -> list[str]:
    return [line for line in LINES if line.split()[0] == program]


def test_every_line_is_run_below():
    assert {line.split()[0] for line in LINES} == {"make", "curl", "augself"}
    assert [len(lines(program)) for program in ("make", "curl", "augself")] == [2, 2, 6]


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """`augself serve` on a free port, ready; its host:port."""
    command = [sys.executable, "-m", "augself_hub.cli", "serve", *options, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = iter(process.stderr.readline, "")
            (found,) = next(
                filter(None, (re.findall(r"listening on http://(\S+)", x) for x in log))
            )
            while httpx.get(f"http://{found}/health/ready").status_code != 200:
                pass
            yield found
        finally:
            process.terminate()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("line", lines("make"))
def test_the_two_commands_are_targets(line):
    """Not run inside the tests: one is what runs them, both install what is here already."""
    shown = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert {"serve": "augself serve --demo", "test": "pytest"}[line.split()[1]] in shown.stdout


def test_the_first_block_runs_without_torch(photographs, tmp_path):
    """As it is written, where `make serve` alone was run: torch and transformers are not there."""
    (block,) = [block for language, block in BLOCKS if language == "python"]
    for name, photograph in zip(("a", "b"), photographs, strict=False):
        shutil.copy(photograph, tmp_path / f"{name}.jpg")
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
    program = f"{absent}{block}\nprint(features.shape)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0].startswith("augmentation  name")
    assert printed[-1] == "(2, 256)" and "# (2, 256)" in block


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_server_answers_the_two_requests(photographs, tmp_path):
    for name, photograph in zip(("photo", "a", "b"), photographs, strict=False):
        shutil.copy(photograph, tmp_path / f"{name}.jpg")
    with serving() as address:
        answers = [
            subprocess.run(
                shlex.split(line.replace("localhost:7860", address)),
                cwd=tmp_path, capture_output=True, check=True,
            ).stdout
            for line in lines("curl")
        ]  # fmt: skip
    embedding, differences = (json.loads(answer)["data"][0] for answer in answers)
    assert len(embedding["embedding"]) > 100
    assert set(differences["differences"]) == {"crop", "color", "flip"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_follow_each_other(photo_folder, photographs, tmp_path, monkeypatch, capsys):
    """In order, on forty small pictures, and small: one epoch of a small encoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where evaluate keeps its tables
    Path("PHOTOS").symlink_to(photo_folder)
    for name, photograph in zip(("a", "b"), photographs, strict=False):
        shutil.copy(photograph, f"{name}.jpg")
    for line in lines("augself"):
        _, command, *options = shlex.split(line)
        if command == "serve":
            with serving(*options) as address:
                models = httpx.get(f"http://{address}/v1/models").json()["data"]
            assert models[0]["dimension"] == 128
            continue
        options += shlex.split(SMALL) if command == "pretrain" else []
        augself.main([command, *options], prog_name="augself", standalone_mode=False)
    assert Path("features/manifest.json").is_file()
    assert "linear" in Path("runs/first/model/evaluation.json").read_text()
    assert "brightness" in capsys.readouterr().out
