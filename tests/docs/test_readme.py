"""README.md: every block is run as it is written, and what it prints is what stands below it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving_process import serving

from augself_hub.cli import augself

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
LINES = [
    line.split(" #")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
]
SMALL = "--encoder resnet18-w16 --size 32 --batch-size 16 --epochs 1 --workers 0 --report-to none"
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"


def lines(program: str) -> list[str]:
    return [line for line in LINES if line.split()[0] == program]


def block_with(text: str) -> str:
    (block,) = [block for _, block in BLOCKS if text in block]
    return block


NUMBER = re.compile(r"[+-]?\d+\.\d+")


def same(printed: str, shown: str) -> bool:
    """Word by word; numbers, which depend a little on the processor, to about a hundredth."""
    texts = [NUMBER.sub("#", text).split() for text in (printed, shown)]
    numbers, wanted = ([float(n) for n in NUMBER.findall(text)] for text in (printed, shown))
    return texts[0] == texts[1] and numbers == pytest.approx(wanted, abs=0.02)


def run_python(block: str, place: Path) -> str:
    done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path, photographs, photo_folder) -> Path:
    """A folder with the files that README names: the demo's dogs and their darker copy."""
    examples = photographs[0].parent
    for name, source in (("a", "dogs.jpg"), ("b", "pairs/dogs-darker.jpg"), ("photo", "fig.jpg")):
        shutil.copy(examples / source, tmp_path / f"{name}.jpg")
    (tmp_path / "PHOTOS").symlink_to(photo_folder)
    return tmp_path


def test_every_line_is_run_below():
    programs = {line.split()[0] for line in LINES}
    assert programs == {"make", "curl", "augself", "pip", "python3"}  # the last: a venv
    assert [len(lines(program)) for program in ("make", "curl", "augself")] == [2, 2, 6]
    assert len([1 for language, _ in BLOCKS if language == "python"]) == 3


def test_the_extras_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (line,) = lines("pip")
    rows = re.findall(r"^\| `([\w,]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 3
    for text in (*rows, re.findall(r"\[(.*)\]", line)[0]):
        assert set(text.split(",")) <= set(extras)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("line", lines("make"))
def test_the_two_commands_are_targets(line):
    """Not run inside the tests: one is what runs them, both install what is here already."""
    shown = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert {"serve": "augself serve --demo", "test": "pytest"}[line.split()[1]] in shown.stdout


def test_the_first_block_runs_without_torch_and_prints_what_stands_below(place):
    block = block_with("encoder = Encoder()")
    printed = run_python(f"{WITHOUT_TORCH}{block}\nprint(features.shape)", place)
    table, _, shape = printed.rstrip().rpartition("\n")
    assert same(table, block_with("augmentation  name")), table
    assert shape == "(2, 256)" and f"# {shape}" in block


def test_a_folder_becomes_a_table(place):
    printed = run_python(f"{WITHOUT_TORCH}{block_with('import extract')}", place)
    assert len(re.findall(r"\d\d\.(?:jpg|png)", printed)) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_server_answers_curl_and_client(place):
    with serving() as address:
        answers = [
            subprocess.run(
                shlex.split(line.replace("localhost:7860", address)),
                cwd=place, capture_output=True, check=True,
            ).stdout
            for line in lines("curl")
        ]  # fmt: skip
        block = block_with("import Client").replace("localhost:7860", address)
        printed = run_python(f"{WITHOUT_TORCH}{block}", place)
    embedding, differences = (json.loads(answer)["data"][0] for answer in answers)
    assert len(embedding["embedding"]) > 100
    assert set(differences["differences"]) == {"crop", "color", "flip"}
    assert same(printed, block_with("B is darker")), printed


def photographs_of(folder: Path, examples: list[Path], count: int) -> Path:
    """So many squares of 640 pixels, cut from the demo's photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        image = Image.open(examples[number % len(examples)]).convert("RGB")
        side = int(random.uniform(0.5, 0.9) * min(image.size))
        left, top = (int(random.integers(0, length - side)) for length in image.size)
        image = image.crop((left, top, left + side, top + side)).resize((640, 640))
        image.save(folder / f"{number:02}.jpg", quality=90)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_training_command_works_on_96_photographs(tmp_path, photographs, monkeypatch):
    """All of it, and what it prints, up to the times and the losses."""
    monkeypatch.chdir(tmp_path)
    photographs_of(tmp_path / "PHOTOS", photographs, 96)
    _, *words = shlex.split(lines("augself")[1])
    command = [sys.executable, "-m", "augself_hub.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = f"{done.stderr}\n{done.stdout}"
    shown = block_with("wrote runs/first/model").replace("...\n", "")
    for line in shown.splitlines():
        head = re.split(r"[\d:]", line)[0].rstrip()
        assert head in said, head


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_follow_each_other(place, monkeypatch, capsys):
    """In order, on forty small pictures, and small: one epoch of a small encoder."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))  # where evaluate keeps its tables
    for line in lines("augself"):
        _, command, *options = shlex.split(line)
        if command == "serve":
            with serving() as address:
                models = httpx.get(f"http://{address}/v1/models").json()["data"]
            assert models[0]["dimension"] == 256
            continue
        options += shlex.split(SMALL) if command == "pretrain" else []
        augself.main([command, *options], prog_name="augself", standalone_mode=False)
    assert Path("features/manifest.json").is_file()
    assert "linear" in Path("runs/first/model/evaluation.json").read_text()
    assert "brightness" in capsys.readouterr().out
