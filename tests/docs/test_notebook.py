"""docs/examples/quickstart.ipynb: run in a kernel; what it shows is what is kept in it."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[2] / "docs/examples/quickstart.ipynb"


def texts(notebook) -> list[str]:
    """What the cells show: prints, and the HTML of objects or, where there is none, their text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stdout":
                found.append(output.text)
            elif output.output_type == "execute_result":
                found.append(output.data.get("text/html") or output.data["text/plain"])
    return found


def without_numbers(text: str) -> str:
    """Numbers depend a little on the processor."""
    return re.sub(r"[+-]?\d+(\.\d+)?", "#", text)


@pytest.mark.timeout(600)
def test_the_notebook_runs_and_shows_what_it_shows(tmp_path):
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = copy.deepcopy(kept)
    nbclient.NotebookClient(
        fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown, wanted = texts(fresh), texts(kept)
    assert [without_numbers(t) for t in shown] == [without_numbers(t) for t in wanted]
    table, accuracy, difference, words = shown
    assert "72 images" in table and "<table>" in table
    assert int(accuracy.split("%")[0]) > 70
    assert "<table>" in difference and "brightness" in difference
    assert "B is darker" in words and "B is less colourful" in words
    pictures = [o for cell in fresh.cells for o in cell.get("outputs", ()) if "data" in o]
    assert sum("image/png" in output.data for output in pictures) == 2
