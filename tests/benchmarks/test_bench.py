"""benchmarks/bench.py: findings go where the document has their place, and nowhere else."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import click
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOUND = {
    "parts": ["A machine; 3 rounds", "| row | images/s |\n| --- | --- |\n| ours | 2.00 |"],
    "unit": "images a second",
    "bars": {"ours": [1.0, 2.0, 4.0], "theirs": [1.0]},
}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench

    yield bench
    for name in ("bench", "findings"):
        del sys.modules[name]


def test_what_was_found_replaces_what_stood_there_and_nothing_else(bench, tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(
        "# Performance\n\n<!-- bench: engine -->\nold\n<!-- end -->\n\nAims.\n\n"
        "<!-- bench: server -->\nkept\n<!-- end -->\n"
    )
    for _ in range(2):
        bench.replace(document, "engine", FOUND)
    text = document.read_text()
    assert text.startswith(
        "# Performance\n\n<!-- bench: engine -->\n\nA machine; 3 rounds\n\n| row"
    )
    assert text.endswith("Aims.\n\n<!-- bench: server -->\nkept\n<!-- end -->\n")
    assert "old" not in text and text.count("| ours | 2.00 |") == 1
    assert "![engine: images a second](performance/engine.svg)" in text
    assert "theirs" in (tmp_path / "performance/engine.svg").read_text()


def test_a_document_without_the_place_is_refused(bench, tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("# Performance\n")
    with pytest.raises(click.ClickException, match=r"one place <!-- bench: engine -->"):
        bench.replace(document, "engine", FOUND)
    assert document.read_text() == "# Performance\n"


def test_the_spread_is_the_quartiles_of_the_rounds(bench):
    spread = sys.modules["findings"].spread
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0], "ms") == ("3.00 ms", "2.00 to 4.00")
    assert spread([1234.5]) == ("1,234", "1,234 to 1,234")
    assert spread([99.6, 0.0123, 0.5]) == ("0.500", "0.256 to 50.0")


def test_the_page_has_a_place_for_every_program(bench):
    places = [bench.place_of(bench.PERFORMANCE, name) for name in bench.PROGRAMS]
    ordered = sorted(places)
    assert all(a[1] <= b[0] for a, b in pairwise(ordered))
