"""Errors of each pair of a run and of a folder: fitted, measured, published."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from augself_hub import AugSelfModel, Encoder, fit_uncertainty
from augself_hub.augmentations.spec import LOG_VARIANCE
from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.folder import (
    CONFIG,
    ENCODER,
    HEADS,
    read_manifest,
    read_spec,
    verify,
    write_manifest,
)
from training.monitoring.awareness import TASK
from training.run import pretraining, uncertainty


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pretraining, "PAIRS", 40)
    monkeypatch.setattr(uncertainty, "PAIRS", 40)
    monkeypatch.setattr(uncertainty, "FITTED_ON", 64)
    monkeypatch.setattr("training.methods.uncertainty.CALIBRATED", 40)


def coverages(folder):
    results = json.loads((folder / "evaluation.json").read_text())["results"]
    return {
        f"{r['kind']} {r['dimension']}": r
        for r in results
        if r["task"] == TASK and r["metric"] == "coverage"
    }


def test_a_run_long_enough_states_them_and_a_shorter_one_says_why_not(
    small_run, monkeypatch, capsys, caplog
):
    given = {"size": 32, "epochs": 1.0, "matcher": "off", "arguments": {"max_steps": 1}}
    caplog.set_level("INFO")
    short = pretraining.pretrain(small_run(name="short", **given))
    assert read_spec(short).uncertainty == 0 and not coverages(short)
    assert re.search(r"this run drew \d+ pairs of views, fewer than the 2000", caplog.text)
    monkeypatch.setattr(uncertainty, "FEWEST_PAIRS", 1)
    folder = pretraining.pretrain(small_run(name="long", **given))
    assert "fitting an error of each pair on" in capsys.readouterr().out
    model = AugSelfModel.from_pretrained(verify(folder))
    assert model.spec.uncertainty == 256 and LOG_VARIANCE in model.heads
    found = coverages(folder)
    assert list(found)[:4] == [f"crop {n}_coverage" for n in ("y", "x", "height", "width")]
    assert all(0 <= r["value"] <= 1 for r in found.values())
    a, b = (load_file(f / HEADS) for f in (short, folder))  # what it says is what it said
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_is_given_them_and_answers_what_it_answered(
    folder, tiny_model, photo_folder, photographs, augself, monkeypatch
):
    monkeypatch.setattr("training.run.publishing.find_spec", find_spec)  # with graphs
    before = Encoder(folder, device="cpu").difference(*photographs[:2])
    graph = (folder / "onnx/features.onnx").read_bytes()
    done = augself("fit-uncertainty", folder, "--data", photo_folder, "--held-out", photo_folder)
    assert done.status == 0 and done.out.splitlines()[-1] == f"wrote {folder}"
    assert verify(folder) == folder
    assert dataclasses.replace(read_spec(folder), uncertainty=0) == read_spec(tiny_model)
    assert (folder / ENCODER).read_bytes() == (tiny_model / ENCODER).read_bytes()
    assert (folder / "onnx/features.onnx").read_bytes() == graph
    after = Encoder(folder, device="cpu").difference(*photographs[:2])
    for kind in ("crop", "color"):
        for one, other in zip(before.differences[kind], after.differences[kind], strict=True):
            assert other["value"] == pytest.approx(one["value"], abs=1e-5)
            assert one["standard_error"] is None and one["standard_error_of"] == "average"
            assert other["standard_error"] > 0 and other["standard_error_of"] == "pair"
    assert set(coverages(folder)) >= {"color hue_coverage", "crop x_coverage"}
    assert {r["pairs"] for r in coverages(folder).values() if r["kind"] == "crop"} == {20}
    assert "an error of each pair's own" in (folder / "README.md").read_text()


def test_a_group_is_in_one_half(folder, photo_folder, augself, monkeypatch):
    """By the tens of their numbers: what calibrates has none of the tens that are measured."""
    halves, seen = uncertainty.halves, []
    monkeypatch.setattr(
        uncertainty, "halves", lambda images: seen.append((images, halves(images))) or seen[-1][1]
    )
    given = ("--data", photo_folder, "--held-out", photo_folder)
    done = augself("fit-uncertainty", folder, *given, "--group", r"(\d)\d\.")
    assert done.status == 0, done
    ((images, both),) = seen
    one, other = ({images.names[i][-6] for i in rows} for rows in both)
    assert one and other and not one & other
    refused = augself("fit-uncertainty", folder, *given, "--group", "beach")
    assert refused.status == 2 and "--group beach finds 0 groups" in refused.err


def test_fitted_again_they_are_replaced(folder, photo_folder):
    weights = []
    for seed in (0, 1, 1):
        fit_uncertainty(folder, photo_folder, held_out=photo_folder, seed=seed)
        weights.append((folder / HEADS).read_bytes())
    assert weights[0] != weights[1] == weights[2]
    assert len(coverages(folder)) == 8
    read = json.loads((folder / "evaluation.json").read_text())["inventories"]["fit-uncertainty"]
    assert read["data"]["images"] == read["held_out"]["images"] == 40


def test_a_folder_without_numbers_is_refused(folder, photo_folder, tmp_path):
    model = AugSelfModel.from_pretrained(folder)
    for kind in ("crop", "color"):
        del model.heads[kind]
    model.spec = dataclasses.replace(model.spec, heads={"flip": model.spec.heads["flip"]})
    model.save_pretrained(tmp_path / "other")
    before = read_manifest(tmp_path / "other")
    with pytest.raises(UsageError, match="no head that predicts a number"):
        fit_uncertainty(tmp_path / "other", photo_folder)
    assert read_manifest(tmp_path / "other") == before


@pytest.mark.parametrize("width", [-1, 1e12, "256", 1.5, None])
def test_a_width_that_cannot_be_is_refused(folder, width):
    config = json.loads((folder / CONFIG).read_text()) | {"uncertainty": width}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="uncertainty"):
        read_spec(folder)


def test_a_width_without_its_weights_is_refused(folder):
    config = json.loads((folder / CONFIG).read_text()) | {"uncertainty": 8}
    (folder / CONFIG).write_text(json.dumps(config))
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"does not fit augself/config\.json"):
        AugSelfModel.from_pretrained(folder)
