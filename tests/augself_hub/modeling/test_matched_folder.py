"""A model folder with a matcher: written, read, exported and quantised; and as before without."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from augself_hub import AugSelfModel, parity
from augself_hub.augmentations.difference import to_physical
from augself_hub.augmentations.matching import combined, prediction_of
from augself_hub.augmentations.spec import Dimension, Head, MatcherSpec, Policy, Spec, heads_for
from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.folder import (
    CONFIG,
    FEATURES_GRAPH,
    HEADS,
    MATCHER,
    MATCHER_GRAPH,
    read_manifest,
    read_spec,
    verify,
    write_manifest,
)
from augself_hub.modeling import export, quantize
from augself_hub.modeling.maps import find_map
from augself_hub.precision import GRAPHS


@pytest.fixture
def folder(matched_model, tmp_path):
    return shutil.copytree(matched_model, tmp_path / "model")


@pytest.fixture(scope="module")
def model(matched_model):
    return AugSelfModel.from_pretrained(matched_model)


def views():
    return torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_it_and_its_manifest_vouches_for_it(matched_model, tiny_model):
    assert verify(matched_model) == matched_model
    new = {"augself/matcher.safetensors", "onnx/matcher.onnx"}
    assert files(matched_model) - files(tiny_model) == new
    assert files(tiny_model) < files(matched_model)
    assert new < set(read_manifest(matched_model)["files"])


def test_its_description_is_what_the_encoder_gives(model):
    place, matcher = find_map(model.encoder, 32), model.spec.matcher
    assert (matcher.level, matcher.maps) == (place.level, (place.channels, 8, 8))
    assert list(matcher.heads) == ["crop", "flip"] and not matcher.turns
    assert matcher.heads["crop"] == model.spec.heads["crop"]  # unit and std; none is measured
    assert matcher.outputs() == {"crop": 4, "log_variance": 4, "flip": 1, "rot": 1, "match": 1}


def test_what_is_loaded_says_what_was_saved(model, tmp_path):
    model.save_pretrained(tmp_path / "again")
    loaded = AugSelfModel.from_pretrained(tmp_path / "again")
    assert loaded.spec == model.spec
    with torch.no_grad():
        expected, found = (m.predict_pair(*views()) for m in (model, loaded))
    assert expected.values.keys() == found.values.keys() == {"crop", "color", "flip"}
    for name, value in expected.values.items():
        assert torch.equal(found.values[name], value)
    assert torch.equal(found.errors["crop"], expected.errors["crop"])
    assert torch.equal(found.match, expected.match)


def test_the_matcher_answers_crop_and_flip_and_the_heads_colour(model, tiny_model):
    xa, xb = views()
    with torch.no_grad():
        said = model.predict_pair(xa, xb)
        (ya, ma), (yb, mb) = model.features_and_maps(xa), model.features_and_maps(xb)
        ab, ba = vars(model.matcher(ma, mb)), vars(model.matcher(mb, ma))
        by_heads = AugSelfModel.from_pretrained(tiny_model).predict_difference(xa, xb)
        assert torch.equal(model(xa).features, ya)
    by_matcher = combined(ab, ba, model.matcher.std, turns=False)
    assert torch.equal(said.values["crop"], by_matcher["crop"])
    assert torch.equal(said.errors["crop"], by_matcher["standard_error"])
    assert torch.equal(said.values["flip"], by_matcher["flip"])
    assert torch.equal(said.values["color"], by_heads["color"])
    assert not torch.equal(said.values["crop"], by_heads["crop"])
    p = by_matcher["match"][:, 0]
    assert said.match == pytest.approx(torch.log(p / (1 - p)), abs=1e-4)
    assert torch.equal(model.differences(ya, yb)["crop"], by_heads["crop"])  # of features alone


def test_what_it_has_not_learned_the_heads_answer():
    """By hand: raw 1 of the heads, of std 2, is 2; the matcher's flip has no rival."""
    one = Head("regression", (Dimension("y", "heights of a", std=2.0),))
    forgotten = dataclasses.replace(one.dimensions[0], learned=False)
    flip = heads_for(["flip"], Policy())["flip"]
    matcher = MatcherSpec(
        -1, {"channels": 1, "cells": 1, "turns": False},
        {"crop": Head("regression", (forgotten,)), "flip": flip},
    )  # fmt: skip
    spec = Spec("relative", Policy(), {"crop": one}, 4, matcher=matcher)
    assert {kind: which for kind, (which, _) in spec.answering().items()} == {
        "crop": "features", "flip": "matcher",
    }  # fmt: skip
    assert list(spec.answering(maps=False)) == ["crop"]
    raw = {"crop": np.ones((1, 1)), "log_variance": np.zeros((1, 1)), "flip": np.zeros((1, 1))}
    raw |= {"rot": np.zeros((1, 1)), "match": np.full((1, 1), 2.0)}
    heads = {"crop": np.ones((1, 1))}, {"crop": -np.ones((1, 1))}
    assert to_physical(one, heads[0]["crop"]) == 2.0
    answer = prediction_of(spec, heads, None)
    assert answer.values == {"crop": 2.0} and answer.match is None and not answer.errors


def test_without_its_weights_the_folder_is_one_without_a_matcher(folder, tiny_model):
    (folder / MATCHER).unlink()
    with pytest.raises(ModelFolderError, match=r"matcher\.safetensors is missing"):
        verify(folder)
    write_manifest(folder)
    loaded = AugSelfModel.from_pretrained(folder)
    assert loaded.matcher is None
    assert dataclasses.replace(loaded.spec, uncertainty=0) == read_spec(tiny_model)


def test_without_heads_it_answers_alone(folder):
    (folder / HEADS).unlink()
    write_manifest(folder)
    loaded = AugSelfModel.from_pretrained(folder)
    with torch.no_grad():
        assert list(loaded.predict_difference(*views())) == ["crop", "flip"]


def changed(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    write_manifest(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["shape"].update(channels=17), "does not fit augself/config.json"),
        (lambda m: m["shape"].update(channels=10**9), "channels is 1000000000, not a whole number"),
        (lambda m: m["shape"].update(cells="8"), "cells is '8', not a whole number"),
        (lambda m: m["shape"].update(flips=1), "flips is neither true nor false"),
        (lambda m: m["shape"].update(wings=2), "'wings': upgrade augself-hub"),
        (lambda m: m.update(level=0), "level is 0, not a whole number"),
        (lambda m: m.update(eyes=2), "unknown field 'eyes': upgrade augself-hub"),
        (lambda m: m["heads"].pop("crop"), "does not say its four dimensions"),
        (lambda m: m["heads"].update(smell=m["heads"]["flip"]), "unknown head 'smell'"),
        (lambda m: m["heads"]["crop"]["dimensions"][0].update(std=0), "matcher.heads.crop.y.std"),
    ],
)
def test_a_description_that_cannot_be_is_refused_by_name(folder, change, said):
    changed(folder, lambda config: change(config["matcher"]))
    with pytest.raises(ModelFolderError, match=said):
        AugSelfModel.from_pretrained(folder)


def test_the_paper_s_convention_has_none(folder, model):
    changed(folder, lambda config: config.update(convention="paper"))
    with pytest.raises(ModelFolderError, match="convention paper has none"):
        read_spec(folder)
    spec = dataclasses.replace(model.spec, convention="paper", matcher=None)
    paper = AugSelfModel(model.encoder, model.heads, spec, model.preprocessing)
    with pytest.raises(AugSelfError, match="needs convention relative"):
        paper.with_matcher(model.matcher, -1)


# -- Graphs ----------------------------------------------------------------------------------------


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


@pytest.mark.parametrize("batch", [1, 5])
def test_the_graphs_answer_as_torch(matched_model, model, batch):
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        features, maps = model.features_and_maps(x)
        expected = vars(model.matcher(maps, maps.flip(0)))
    found = run(matched_model / "onnx/features.onnx", images=images)
    assert list(found) == ["features", "maps"]
    assert found["features"] == pytest.approx(features.numpy(), rel=1e-3, abs=1e-5)
    assert found["maps"] == pytest.approx(maps.numpy(), rel=1e-3, abs=1e-4)
    pair = {"maps_a": found["maps"], "maps_b": found["maps"][::-1].copy()}
    answers = run(matched_model / MATCHER_GRAPH, **pair)
    assert list(answers) == list(expected)
    for name, value in expected.items():
        assert answers[name] == pytest.approx(value.numpy(), rel=1e-3, abs=1e-4)


def test_the_card_says_what_the_matcher_answers(matched_model, tiny_model):
    card = (matched_model / "README.md").read_text()
    assert "### The matcher" in card and "for two pictures: crop, flip" in card
    assert "The matcher" not in (tiny_model / "README.md").read_text()


def test_the_manifest_records_the_parity_of_each_part(matched_model):
    parity = read_manifest(matched_model)["parity"]
    assert set(parity) == {"features", "maps", "heads", "matcher"}
    assert all(0 < difference < 1e-4 for difference in parity.values())


@pytest.mark.usefixtures("exported_once")
def test_a_matcher_graph_that_differs_is_refused(folder, monkeypatch):
    before, real = files(folder), export._run

    def spoilt(path, inputs):
        off = 1.001 if path.name == "matcher.onnx" else 1.0
        return [value * off for value in real(path, inputs)]

    monkeypatch.setattr(export, "_run", spoilt)
    with pytest.raises(AugSelfError, match="matcher differ from torch"):
        export.export_folder(folder)
    assert files(folder) == before and verify(folder) == folder


@pytest.mark.usefixtures("exported_once")
def test_the_graphs_of_a_matcher_that_was_taken_out_go(folder, tiny_model):
    (folder / MATCHER).unlink()
    changed(folder, lambda config: config.update(matcher=None))
    export.export_folder(folder)
    assert verify(folder) == folder and not (folder / MATCHER_GRAPH).exists()
    before = (tiny_model / FEATURES_GRAPH).read_bytes()
    assert (folder / FEATURES_GRAPH).read_bytes() == before


@pytest.mark.usefixtures("exported_once")
def test_int8_passes_the_gates_of_maps_and_matcher(folder, photo_folder, monkeypatch):
    measured = quantize.quantize_folder(folder, "int8", photo_folder)
    assert verify(folder) == folder and (folder / GRAPHS["int8"]).is_file()
    before = (folder / GRAPHS["int8"]).read_bytes()
    export.export_folder(folder)  # of the same weights: it stays
    assert (folder / GRAPHS["int8"]).read_bytes() == before
    assert 0.97 < measured["maps_cosine"] <= 1.0
    assert set(measured["matcher"]) == {"crop", "flip", "match"}
    assert all(0 < change < 0.1 for change in measured["matcher"].values())
    monkeypatch.setattr(quantize, "FP32_LAYERS", {"int8": (1,)})
    monkeypatch.setattr(parity, "MAPS_COSINE", 1.1)
    with pytest.raises(AugSelfError, match="maps' cosine on average is"):
        quantize.quantize_folder(folder, "int8", photo_folder)
    monkeypatch.setattr(parity, "MAPS_COSINE", 0.97)
    monkeypatch.setattr(parity, "HEAD_TOLERANCE", 0.0)
    with pytest.raises(AugSelfError, match="the change of the matcher's crop is"):
        quantize.quantize_folder(folder, "int8", photo_folder)


def test_wrong_weights_are_named(folder):
    state = load_file(folder / MATCHER)
    state.pop("grid")
    save_file(state, folder / MATCHER)
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"matcher\.safetensors does not fit"):
        AugSelfModel.from_pretrained(folder)
