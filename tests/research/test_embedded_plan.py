"""The plan of the embedded model: what is compared, what is chosen, and a run of it all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import EVALUATION, read_spec, verify
from research import matching
from research.embedded import making
from research.embedded.making import (
    CANDIDATES,
    FINAL,
    PHASE,
    Final,
    choose,
    make,
    pair_settings,
    seconds_of_an_image,
)
from research.study import beside
from research.study.plan import Measure, Run, read_plan
from research.study.runs import settings_of

PLAN, HOW = read_plan(CANDIDATES), Final.read(FINAL)


def settings(arm, tmp_path):
    return settings_of(PLAN, Run(PHASE, arm, 100, None), tmp_path, Path("corpus"))


def test_a_twin_has_the_same_budget_and_no_augself(tmp_path):
    """Beside the rate, which the first study tuned for either, and the matcher it cannot have."""
    arms = [arm for arm in PLAN.arms if f"{arm}-plain" in PLAN.arms]
    assert arms == ["simclr-64", "simclr-96", "moco-64", "simsiam-64"]
    for arm in arms:
        one, twin = settings(arm, tmp_path), settings(f"{arm}-plain", tmp_path)
        assert one.augself == {"crop": 1.0, "color": 1.0, "flip": 1.0} and twin.augself == {}
        changes = {"output": one.output, "augself": one.augself, "base_lr": one.base_lr}
        changes |= {"matcher": one.matcher, "matcher_options": one.matcher_options}
        assert dataclasses.replace(twin, **changes) == one
        assert (one.matcher, twin.matcher) == ("after", "off")
    joint = settings("simclr-96-joint", tmp_path)
    assert (joint.matcher, joint.size, joint.epochs) == ("joint", 96, 10)
    assert joint.data == "corpus/pretrain" and joint.held_out == "corpus/held-out"
    assert joint.arguments == {"bf16": True}


def test_only_development_sets_decide():
    assert {phase.measures for phase in PLAN.phases} == {"development"}
    assert [m.sets for m in PLAN.measures["development"]] == [["development/*"]]


def record(probe, seconds, r2=None):
    """As a candidate's run writes it."""
    one = {"task": "linear probe", "set": "development/subjects", "value": probe}
    found = {"results": [one], "cpu_seconds": {"making": seconds, "measuring": 0}}
    if r2 is not None:
        pairs = [{"metric": "r_squared", "value": r2}] * 4 + [{"metric": "coverage", "value": 9}]
        found["matcher_pairs"] = pairs
    return found


def records(**changes):
    probes = {
        "simclr-64": (50.0, 1000, 0.4), "simclr-64-joint": (49.5, 1500, 0.45),
        "simclr-64-plain": (45.0, 800), "simclr-96": (49.0, 1000, 0.6),
        "simclr-96-plain": (44.0, 800), "simclr-96-joint": (52.0, 1000, 0.7),
        "moco-64": (48.0, 1000, 0.4), "moco-64-plain": (60.0, 800),
        "simsiam-64": (47.0, 1000, 0.4), "simsiam-64-plain": (43.0, 800),
    }  # fmt: skip
    return {arm: record(*probe) for arm, probe in (probes | changes).items()}


def test_the_best_probe_with_augself_and_the_joint_matcher_where_it_costs_little():
    """By hand: 9,700 seconds spent, 0.9 * (28,800 - 9,700) left, 75 + 40 seconds an epoch."""
    found = records()
    assert sum(r["cpu_seconds"]["making"] for r in found.values()) == 9700
    choice = choose(PLAN, dataclasses.replace(HOW, most_epochs=300), found)
    assert (choice.arm, choice.twin) == ("simclr-64-joint", "simclr-64-plain")
    assert choice.epochs == int(0.9 * (28800 - 9700) / (1500 / 20 + 800 / 20)) == 149
    assert choose(PLAN, HOW, found).epochs == HOW.most_epochs == 100
    assert choice.scores["moco-64-plain"] == 60 and choice.matchers["simclr-96"] == 0.6


@pytest.mark.parametrize("joint", [(48.9, 1500, 0.9), (50.0, 1500, 0.41)])
def test_a_joint_matcher_that_costs_transfer_or_brings_nothing_is_not_taken(joint):
    assert choose(PLAN, HOW, records(**{"simclr-64-joint": joint})).arm == "simclr-64"


def test_hours_that_are_spent_are_refused():
    with pytest.raises(AugSelfError, match="2 hours have no room for an epoch of simclr-64-joint"):
        choose(PLAN, dataclasses.replace(HOW, hours=2), records())


def test_the_final_pair_is_the_candidates_for_longer(tmp_path):
    choice = choose(PLAN, HOW, records())
    model, twin = pair_settings(PLAN, choice, HOW, tmp_path, Path("corpus"))
    assert (model.matcher, twin.matcher) == ("joint", "off")
    assert model.epochs == twin.epochs == 100 and model.seed == twin.seed == 0
    assert (model.output, twin.output) == (tmp_path / "model", tmp_path / "twin")
    other = dataclasses.replace(choice, arm="simclr-64")
    assert pair_settings(PLAN, other, HOW, tmp_path, Path("corpus"))[0].matcher == "off"


def test_an_unknown_name_in_final_toml_is_refused(tmp_path):
    (tmp_path / "final.toml").write_text("hours = 1\nwings = 2\n")
    with pytest.raises(UsageError, match="wings"):
        Final.read(tmp_path / "final.toml")


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Reds and greens to tell apart, noise to train on, and whole pictures of it."""
    random = np.random.default_rng(0)

    def noise(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(path)

    for part in ("pretrain", "held-out"):
        for i in range(32):
            noise(tmp_path / "corpus" / part / f"p{i}-240-0-0.png")
            noise(tmp_path / "photographs" / part / f"p{i}.png")
    for place in ("development/photographs", "final/hues"):
        names = ("p0", "p1") if place.startswith("dev") else ("red", "green")
        for split in ("train", "val", "test"):
            for name, color in zip(names, ((200, 30), (30, 200)), strict=True):
                folder = tmp_path / "corpus" / place / split / name
                folder.mkdir(parents=True)
                for i in range(6):
                    Image.new("RGB", (32, 32), (*color, i)).save(folder / f"{i}.png")
    (tmp_path / "corpus/manifest.json").write_text(json.dumps({"sha256": "0" * 64, "files": {}}))
    monkeypatch.setattr(beside, "MEASURES", (Measure(["linear"], ["final/*"]),))
    monkeypatch.setattr(beside, "AWARENESS", Measure(["linear"], ["final/*"]))
    monkeypatch.setattr(matching, "CALIBRATION", 40)
    return tmp_path / "corpus"


MINIATURE = """
[settings]
recipe = "embedded-augself"
data = "{corpus}/pretrain"
held_out = "{corpus}/held-out"
encoder = "resnet18-w16"
size = 32
epochs = 2
batch_size = 16
monitor_every = 0
report_to = []
matcher = "after"
matcher_options = { pairs = 64, passes = 1, batch = 32, spared = 32 }
arguments = { save_steps = 1 }
[arms.a]
[arms.a-plain]
settings = { augself = {}, matcher = "off", matcher_options = {} }
[arms.a-joint]
settings = { matcher = "joint", matcher_options = {} }
[measures]
development = [{ tasks = ["linear"], sets = ["development/*"] }]
[[phases]]
name = "candidates"
arms = ["a", "a-plain", "a-joint"]
seeds = [100]
measures = "development"
[[comparisons]]
title = "Does it help?"
without = ["candidates", "a-plain"]
with = ["candidates", "a"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "jobs"), [(9.0, 1), (-9.0, 2)], ids=["after", "joint"])
def test_all_of_it_in_miniature_and_nothing_twice(corpus, tmp_path, monkeypatch, gain, jobs):
    """Only the quantiser is left out, whose gates refuse what has learned nothing."""
    (tmp_path / "plan.toml").write_text(MINIATURE)
    monkeypatch.setattr(making, "CANDIDATES", tmp_path / "plan.toml")
    quantised = []
    monkeypatch.setattr(making, "export", lambda folder, **how: quantised.append((folder, how)))
    fitted = {"pairs": 64, "passes": 1, "batch": 32}
    final = Final(8.0, 2, 0, 100.0, gain, 45.0, fitted, {"go_on": True})
    places = corpus, tmp_path / "photographs", tmp_path / "records"
    done = make(tmp_path / "out", *places, jobs, final)
    assert done == tmp_path / "out/embedded" and verify(done) == done
    spec = read_spec(done)
    joint = gain < 0
    assert spec.matcher is not None and ("--matcher joint" in spec.provenance["command"]) == joint
    made = "trained with the encoder, then fitted further on the frozen encoder"
    assert (spec.provenance.get("matcher") == made) == joint
    assert {p.stem for p in places[2].glob("*.json")} == {
        f"candidates-{arm}-seed100" for arm in ("a", "a-plain", "a-joint")
    }
    choice = json.loads((places[2] / "choice/choice.json").read_text())
    assert choice["arm"] == ("a-joint" if joint else "a") and choice["epochs"] == 2
    results = json.loads((done / EVALUATION).read_text())["results"]
    probe = next(r for r in results if r["task"] == "linear probe")
    assert set(probe["compared_with"]) == {beside.TWIN, beside.UNTRAINED, beside.HISTOGRAM}
    assert "augself_hub/pretrained" in (done / "README.md").read_text()
    ((_, how),) = quantised
    assert how == {"quantize": "int8", "calibration": str(corpus / "pretrain")}
    shutil.rmtree(done)  # the last step alone is made again
    monkeypatch.setattr(making, "pretrain", lambda *_: pytest.fail("trained again"))
    assert make(tmp_path / "out", *places, 1, final) == done and len(quantised) == 1
    with pytest.raises(AugSelfError, match=r"has \d+\.\d MB, more than 1"):
        make(tmp_path / "out", *places, 1, dataclasses.replace(final, megabytes=1.0))


def test_the_cost_of_an_image_is_measured_on_a_run_that_is_stopped(
    photo_folder, small_run_settings
):
    cost = seconds_of_an_image(small_run_settings)
    assert 1e-5 < cost < 1
    assert not small_run_settings.output.exists()


@pytest.fixture
def small_run_settings(photo_folder, tmp_path):
    from training.run.settings import Settings

    return Settings(
        data=str(photo_folder), output=tmp_path / "run", encoder="resnet18-w16", size=16,
        batch_size=8, workers=0, report_to=(), epochs=50.0, monitor_every=0.0,
    )  # fmt: skip
