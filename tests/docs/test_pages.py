"""Blocks of Python on pages that no other test runs: each does what it says, as it is written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import same_answers
from serving_process import serving

from augself_hub import DifferenceTable, Encoder, FeatureTable, extract, hub

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {  # by another file of tests
    "convert", "hub", "own-loop", "use-with",
}  # fmt: skip


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)


def run(block: str, **names: object) -> dict[str, object]:
    """What the names of a block are worth in the end."""
    exec(block, names)
    return names


@pytest.fixture
def place(tmp_path, monkeypatch, photographs) -> Path:
    """A working folder with a.jpg, b.jpg, which is the same darker, and c.jpg, of another thing."""
    examples = photographs[0].parent
    for name, photograph in zip("abc", ("dogs", "pairs/dogs-darker", "fig"), strict=True):
        shutil.copy(examples / f"{photograph}.jpg", tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_with_a_block_is_run_somewhere():
    pages = {p.stem for p in DOCS.glob("*.md") if "```python\n" in p.read_text()}
    assert pages - ELSEWHERE == {
        "differences", "extract", "fine-tuning", "heads", "serve", "server",
    }  # fmt: skip


def test_extract_reads_its_tables(place, photo_folder, tiny_model, photographs):
    for split in ("train", "test"):
        shutil.copytree(photo_folder, place / "PHOTOS" / split)
    other = extract(place / "PHOTOS", place / "other")
    reading, by_others, of_pairs = blocks("extract")
    found = run(reading, other=other)["table"]
    assert isinstance(found, FeatureTable) and len(found) == 80 and found.labels.max() == 1
    for line, package in zip(
        by_others.splitlines(), ("pandas", "polars", "duckdb", "datasets"), strict=True
    ):
        names = {package: pytest.importorskip(package)}
        assert len(eval(line, names)) == (2 if package == "duckdb" else 80), line
    (place / "pairs.csv").write_text("a,b,id\na.jpg,b.jpg,7\na.jpg,none.jpg,8\n")
    extract("pairs.csv", "differences", pairs=True)
    table = run(of_pairs)["differences"]
    assert isinstance(table, DifferenceTable) and len(table) == 1
    assert [name for name, _ in table.unreadable] == ["a.jpg -> none.jpg"]


def test_differences_are_said(place, capsys):
    (block,) = blocks("differences")
    names = run(block)
    assert "B is darker" in capsys.readouterr().out
    one = names["encoder"].difference("a.jpg", "c.jpg")
    same_answers(names["found"][1:], [one])
    assert one.unlike and not names["found"][0].unlike


def test_heads_say_errors_of_each_pair(place):
    (block,) = blocks("heads")
    (place / "runs/heads").mkdir(parents=True)
    (place / "runs/heads/model").symlink_to(hub.EMBEDDED)
    a, b = torch.rand(2, 3, 3, 96, 96)
    pair = run(block, a=a, b=b)["pair"]
    assert pair.values["crop"].shape == pair.errors["crop"].shape == (3, 4)


def test_a_model_folder_is_fine_tuned_as_a_stock_checkpoint(place, tiny_model):
    (block,) = blocks("fine-tuning")
    (place / "runs/first").mkdir(parents=True)
    (place / "runs/first/model").symlink_to(tiny_model)
    names = run(block)
    pixels = names["processor"](np.zeros((50, 60, 3), np.uint8), return_tensors="pt").pixel_values
    assert names["network"](pixels).logits.shape == (1, 3)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server with the embedded model."""
    with serving() as address:
        yield address


def test_the_server_s_block_for_v2_gives_the_encoder_s_features(place, address):
    pytest.importorskip("tritonclient.http", reason="pip install 'augself-hub[dev]'")
    (block,) = blocks("server")
    found = run(block.replace("127.0.0.1:7860", address))["features"]
    wanted = Encoder().features(["a.jpg"])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_client_of_the_page_on_serving_asks(place, address):
    (block,) = blocks("serve")
    names = run(block.replace("127.0.0.1:7860", address))
    assert names["features"].shape == (2, 256) and len(names["differences"]) == 2
    same_answers(names["differences"][:1], [names["difference"]])
    assert names["models"][0]["id"] == "embedded"


def test_a_client_of_openai_s_api_asks(place, address):
    pytest.importorskip("openai")
    page = (DOCS / "use-with.md").read_text().partition("## Clients of OpenAI's API")[2]
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copy(place / "a.jpg", place / "query.jpg")
    done = subprocess.run(
        [sys.executable, "-c", block.replace("127.0.0.1:7860", address)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "256\n"
