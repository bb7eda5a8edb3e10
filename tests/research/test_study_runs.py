"""A study's command: what has a record is not made again, and a killed study goes on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from research.study import report
from research.study.plan import Measure, Run, read_plan
from research.study.runs import carry_out, settings_of
from research.study.schedule import Places, carry_out_all

STUDIES = Path(__file__).parents[2] / "research/study"


@pytest.fixture
def small_corpus(tmp_path: Path) -> Path:
    """Two labelled sets of flat pictures, whose colour is their class, and images to train on."""
    corpus, random = tmp_path / "corpus", np.random.default_rng(0)
    for place in ("final/flat", "development/flat"):
        for split, count in (("train", 8), ("val", 4), ("test", 4)):
            for label, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
                for number in range(count):
                    path = corpus / place / split / label / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    noise = random.integers(0, 50, (40, 40, 3))
                    Image.fromarray((np.array(color) + noise).astype(np.uint8)).save(path)
    for place in ("pretrain", "held-out"):
        (corpus / place).mkdir()
        for number in range(40):
            noise = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)
            image.save(corpus / place / f"{number}.png")
    (corpus / "manifest.json").write_text(json.dumps({"sha256": "0" * 64, "files": {}}))
    return corpus


ARMS = """
[settings]
method = "simclr"
encoder = "resnet18-w16"
size = 32
epochs = 2
batch_size = 16
workers = 0
monitor_every = 0
report_to = []
[arms.plain]
settings = { augself = {} }
[arms.augself]
settings = { augself = { crop = 1.0, color = 1.0 } }
[arms.colours]
kind = "colour histogram"
[arms.grays]
kind = "gray histogram"
[measures]
development = [{ tasks = ["linear"], sets = ["development/*"] }]
final = [{ tasks = ["linear"], sets = ["final/*"] }]
[[comparisons]]
title = "Does it help?"
without = ["confirmation", "plain"]
with = ["confirmation", "augself"]
[[phases]]
name = "references"
arms = ["colours", "grays"]
seeds = [0]
measures = "final"
"""
TRAINING = """
[[phases]]
name = "tuning"
arms = ["plain", "augself"]
rates = [0.1, 0.2]
seeds = [100]
measures = "development"
[[phases]]
name = "confirmation"
arms = ["plain", "augself"]
seeds = [0, 1]
measures = "final"
"""


def command(corpus: Path, plan: str) -> list[str]:
    path = corpus.parent / "plan.toml"
    path.write_text(plan)
    words = [sys.executable, "-m", "research.study", "run", path, corpus.parent / "runs"]
    words += ["--corpus", corpus, "--records", corpus.parent / "records"]
    return list(map(str, words))


def test_what_has_a_record_is_not_run_again(small_corpus, capsys):
    """Of two runs that were made one has lost its record: it is made, then neither."""
    here = small_corpus.parent
    for name in ("records/references-grays-seed0.json", "runs/references-colours-seed0.log"):
        (here / name).parent.mkdir()
        (here / name).write_text("before\n")
    (here / "plan.toml").write_text(ARMS)
    plan = read_plan(here / "plan.toml")
    places = Places(here / "plan.toml", here / "runs", small_corpus, here / "records")
    carry_out_all(plan, places, jobs=2)
    assert "references: 1 runs to make\ndone" in capsys.readouterr().out
    assert (here / "records/references-grays-seed0.json").read_text() == "before\n"
    assert (here / "runs/references-colours-seed0.log").read_text().startswith("before\n")
    record = here / "records/references-colours-seed0.json"
    found = json.loads(record.read_text())["results"]
    assert [(r["set"], r["value"], r["correct"]) for r in found] == [("final/flat", 100.0, "1" * 8)]
    carry_out_all(plan, places, jobs=2)
    assert "references: 0 runs to make" in capsys.readouterr().out


def test_a_missing_set_is_refused_before_anything_is_run(small_corpus):
    words = command(small_corpus, ARMS.replace('"final/*"', '"generated/*"') + TRAINING)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "is of generated/*: build it as research/data.md says" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not (small_corpus.parent / "runs").exists()


@pytest.mark.slow
def test_a_killed_study_goes_on(small_corpus):
    """SIGTERM in the middle of training; the same command then finishes and reports."""
    words = command(small_corpus, ARMS + TRAINING)
    study = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    while not list((small_corpus.parent / "runs").glob("tuning-*/settings.json")):
        assert study.poll() is None
    study.terminate()
    study.wait(timeout=120)
    subprocess.run(words, check=True, timeout=900)
    names = {path.stem for path in (small_corpus.parent / "records").glob("*.json")}
    assert len(names) == 2 + 4 + 4
    results = small_corpus.parent / "results.md"
    report.write(read_plan(Path(words[4])), small_corpus.parent / "records", results)
    assert "2 pairs" in results.read_text()


@pytest.fixture
def small_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """STL-10 as its authors lay it out, of 5 classes with 8 and 4 images each."""
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    random, place = np.random.default_rng(0), tmp_path / "data/stl10_binary"
    place.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 20), ("unlabeled", 10)):
        pixels = random.integers(0, 256, (count, 3, 96, 96), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 5
        pixels[:, 0] = 50 * labels[:, None, None]
        pixels.tofile(place / f"{split}_X.bin")
        (labels + 1).tofile(place / f"{split}_y.bin")
    (place / "unlabeled_y.bin").unlink()
    (place / "class_names.txt").write_text("\n".join("abcdefghij"))
    return tmp_path / "data"


def test_the_papers_plans_differ_in_what_is_compared_only(tmp_path):
    """22 runs each, whose sides differ in the AugSelf weights; rates are the recipes'."""
    for name, weight, rates in (("stl10", 1.0, (0.03, 0.03)), ("imagenet100", 0.5, (0.05, 0.03))):
        plan = read_plan(STUDIES / f"{name}.toml")
        runs = [run for phase in plan.phases for run in plan.runs(phase, lambda run: 0)]
        assert len(runs) == len({run.name for run in runs}) == 22
        for comparison in plan.comparisons:
            a, b = (
                settings_of(plan, Run(phase, arm, 0, None), tmp_path, Path("data"))
                for phase, arm in (comparison.without, comparison.with_)
            )
            assert a == dataclasses.replace(b, output=a.output, augself={})
            assert b.augself == {"crop": weight, "color": weight} and b.convention == "paper"
            assert b.base_lr == rates[b.method == "moco"]
            assert b.data in ("stl10:data", "imagenet:data/imagenet")


@pytest.mark.slow
def test_the_papers_plan_runs_in_miniature(small_stl10, tmp_path):
    """STL-10's plan with a small encoder: trained, measured on named sets, reported."""
    plan = read_plan(STUDIES / "stl10.toml")
    small = {"encoder": "resnet18-w16", "size": 32, "epochs": 1, "batch_size": 16, "workers": 0}
    plan = dataclasses.replace(
        plan,
        settings={**plan.settings, **small},
        measures={"final": [Measure(["linear"], ["stl10"]), Measure(["fewshot"], ["stl10"], 2)]},
        phases=[dataclasses.replace(plan.phases[0], seeds=[0, 1])],
        comparisons=plan.comparisons[:1],
    )
    records = tmp_path / "records"
    for run in list(plan.runs(plan.phases[0], lambda run: 0))[:2]:
        carry_out(plan, run, tmp_path / "runs", small_stl10, records)
    record = json.loads((records / "confirmation-simclr-augself-seed0.json").read_text())
    assert {(r["task"], r["set"]) for r in record["results"]} == {
        ("linear probe", "final/stl10"),
        ("few-shot", "final/stl10"),
    }
    assert record["rate"] is record["corpus"] is None
    assert "--data stl10:data" in record["command"] and "--augself crop=1" in record["command"]
    report.write(plan, records, tmp_path / "results.md")
    assert "**Running: 1 of 2 pairs are in.**" in (tmp_path / "results.md").read_text()
