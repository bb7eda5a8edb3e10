"""What stands beside a published model's results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from augself_hub.folder import EVALUATION, verify
from research.study import beside
from research.study.__main__ import main
from research.study.plan import Measure
from training.recipes import recipe
from training.run.settings import Settings


@pytest.fixture
def models(tiny_model, tmp_path) -> tuple[Path, Path]:
    """A model and its twin: the same one twice."""
    places = tmp_path / "model", tmp_path / "twin"
    for place in places:
        shutil.copytree(tiny_model, place)
    return places


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    """Reds and greens, which a colour histogram tells apart."""
    monkeypatch.setattr(beside, "MEASURES", (Measure(["linear", "knn"], ["final/*"]),))
    monkeypatch.setattr(beside, "AWARENESS", Measure(["retrieval"], ["final/*"]))
    for name, color in (("red", (200, 30, 0)), ("green", (30, 200, 0))):
        folder = tmp_path / "corpus/final/hues" / name
        folder.mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (32, 32), (*color[:2], i)).save(folder / f"{i}.png")
    return tmp_path / "corpus"


def test_results_of_three_others_stand_in_the_card(models, corpus, tmp_path):
    model, twin = models
    work = tmp_path / "work"
    settings = Settings(data="", output=work, **recipe("embedded-augself").settings)
    found = beside.put_beside(model, twin, settings, corpus, work)
    kept = json.loads((verify(model) / EVALUATION).read_text())["results"]
    probe, neighbours, retrieval = kept[-3:]
    tasks = [record["task"] for record in (probe, neighbours, retrieval)]
    assert tasks == ["linear probe", "kNN", "retrieval"]
    assert list(probe["compared_with"]) == [beside.TWIN, beside.UNTRAINED, beside.HISTOGRAM]
    assert list(retrieval["compared_with"]) == [beside.TWIN]
    for record in (probe, neighbours):
        twin_has = record["compared_with"][beside.TWIN]
        assert twin_has == {
            "value": record["value"],
            "difference": 0,
            "confidence_interval": [0, 0],
        }
        other = record["compared_with"][beside.HISTOGRAM]
        assert other["value"] == 100
        assert other["difference"] == pytest.approx(record["value"] - 100)
    card = (model / "README.md").read_text()
    assert f"| baseline | {beside.TWIN} | {beside.UNTRAINED} | {beside.HISTOGRAM} |" in card
    assert "± is the bootstrap's 95% over test images." in card
    assert beside.table(found).splitlines()[-1].startswith("| **mean** | ")


def test_an_unknown_recipe_is_refused_before_anything_is_measured(
    models, corpus, tmp_path, monkeypatch, capsys
):
    words = ["beside", *models, tmp_path / "work", "--corpus", corpus, "--recipe", "embedded"]
    monkeypatch.setattr("sys.argv", ["research.study", *map(str, words)])
    with pytest.raises(SystemExit, match="unknown recipe"):
        main()
    assert not (tmp_path / "work").exists()
