"""A model with a matcher, served: every way to ask answers as torch does, both orders combined."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from augself_hub import AugSelfModel, DifferenceTable, Encoder
from augself_hub.differences import records
from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.folder import read_manifest
from serving.extraction.pipeline import extract
from serving.extraction.tables import TableSettings
from serving.http.api import create_app
from serving.inference.batcher import Batcher
from serving.inference.engine import Encoded, Engine
from serving.inference.source import ModelSource
from serving.metrics import Metrics


@pytest.fixture(scope="module")
def engine(matched_model):
    return Engine(matched_model, "cpu", 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory, photographs):
    """Three photographs of the model's size, without loss, and a blank picture."""
    place = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(photographs[:3]):
        Image.open(path).convert("RGB").resize((32, 32)).save(place / f"{number}.png")
    Image.new("RGB", (32, 32), (9, 99, 9)).save(place / "3-blank.png")
    return sorted(place.iterdir())


@pytest.fixture(scope="module")
def client(matched_model):
    with TestClient(
        create_app([ModelSource("matched", matched_model, "cpu", 1)]), base_url="http://localhost"
    ) as client:
        yield client


def pixels(path):
    return np.asarray(Image.open(path))


def by_torch(folder, a, b):
    """What AugSelfModel says of two (S, S, 3) images."""
    model = AugSelfModel.from_pretrained(folder)
    x = model._pixel_values([a, b])
    with torch.no_grad():
        return model.predict_pair(x[:1], x[1:])


def test_pairs_are_answered_as_by_torch(engine, matched_model, files):
    a, b = pixels(files[0]), pixels(files[1])
    expected = by_torch(matched_model, a, b)
    found = engine.predict([a, b]).prediction
    assert found.values.keys() == expected.values.keys() == {"crop", "color", "flip"}
    for kind, value in expected.values.items():
        assert found.values[kind] == pytest.approx(value.numpy(), rel=1e-3, abs=1e-4)
    assert found.errors.keys() == expected.errors.keys() == {"crop", "color"}
    for kind, error in expected.errors.items():
        assert found.errors[kind] == pytest.approx(error.numpy(), rel=1e-3)
    assert found.match == pytest.approx(expected.match.numpy(), rel=1e-3, abs=1e-3)


def test_features_are_those_of_the_model_without_a_matcher(engine, tiny_model, files):
    images = [pixels(path) for path in files]
    plain = Engine(tiny_model, "cpu", 1)
    assert engine.features(images) == pytest.approx(plain.features(images), rel=1e-4, abs=1e-5)
    encoded = engine.encode(images)
    assert encoded.maps.shape == (4, 16, 8, 8)
    assert encoded.features == pytest.approx(engine.features(images), rel=1e-5)
    assert plain.encode(images).maps is None
    assert plain.matcher_sha256 is None
    files_of = read_manifest(engine.folder)["files"]
    assert engine.matcher_sha256 == files_of["onnx/matcher.onnx"]
    assert engine.sha256 == files_of["onnx/features.onnx"]


def test_of_stored_features_the_heads_answer(engine, tiny_model, files):
    y = engine.features([pixels(path) for path in files[:2]])
    expected = Engine(tiny_model, "cpu", 1).differences(y[:1], y[1:])
    found = engine.differences(y[:1], y[1:])
    assert list(found) == list(expected) == ["crop", "color", "flip"]
    for kind, values in expected.items():
        assert found[kind] == pytest.approx(values, rel=1e-4)


def test_a_pair_costs_two_runs_of_each_and_no_more(engine, files, monkeypatch):
    """Both orders go through matcher and heads together: one run of each for all pairs."""
    rows = []
    for name in ("_matcher", "_heads"):
        real = getattr(engine, name)
        monkeypatch.setattr(real, "run", lambda given, *_, real=real.run, **__: (
            rows.append(len(next(iter(given.values())))) or real(given)
        ))  # fmt: skip
    engine.predict([pixels(path) for path in (files[0], files[1], files[2], files[0])])
    assert rows == [4, 4]


@pytest.mark.parametrize("graph", ["features.onnx", "matcher.onnx"])
def test_a_graph_that_is_missing_is_named(matched_model, tmp_path, graph):
    folder = shutil.copytree(matched_model, tmp_path / "model")
    (folder / "onnx" / graph).unlink()
    with pytest.raises(ModelFolderError, match=f"no onnx/{graph}: augself export --model"):
        Engine(folder, "cpu", 1)


def test_a_matcher_of_other_maps_is_refused(matched_model, tmp_path):
    folder = shutil.copytree(matched_model, tmp_path / "model")
    config = json.loads((folder / "augself/config.json").read_text())
    config["matcher"]["shape"]["cells"] = 4
    (folder / "augself/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match="its graphs have"):
        Engine(folder, "cpu", 1)


def test_the_queue_gives_maps_to_whom_asks_for_them(engine, files):
    images = [pixels(path) for path in files]
    batcher = Batcher(engine, Metrics())
    waiting = [
        batcher.submit(images[:2]),
        batcher.submit(images[1:3], maps=True),
        batcher.submit(images[3:]),
    ]
    batcher.start()  # so that all three are one batch
    plain, mapped, last = (one.result(20) for one in waiting)
    batcher.drain(5)
    features, encoded = engine.features(images), engine.encode(images)
    assert isinstance(plain, np.ndarray) and plain == pytest.approx(features[:2], rel=1e-4)
    assert isinstance(mapped, Encoded)
    assert mapped.maps == pytest.approx(encoded.maps[1:3], rel=1e-3, abs=1e-4)
    assert isinstance(last, np.ndarray) and last == pytest.approx(features[3:], rel=1e-4)


# -- Over HTTP, from Python, from the command line -------------------------------------------------


def asked(client, a, b):
    files = {"image_a": a.read_bytes(), "image_b": b.read_bytes()}
    answer = client.post("/v1/augmentations", files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]


def test_http_says_what_the_engine_says(client, engine, files):
    record = asked(client, *files[:2])
    (expected,) = records(engine.spec, engine.predict([pixels(p) for p in files[:2]]))
    found = record["differences"]
    assert {d["head"] for d in found["crop"]} == {"matcher"} == {found["flip"]["head"]}
    assert {d["head"] for d in found["color"]} == {"features"}
    for kind in ("crop", "color"):
        for got, wanted in zip(found[kind], expected["differences"][kind], strict=True):
            assert got["value"] == pytest.approx(wanted["value"], rel=1e-3, abs=1e-4)
            assert got["standard_error"] == pytest.approx(wanted["standard_error"], rel=1e-3)
            assert got["standard_error_of"] == "pair"
    assert found["flip"]["mirrored"] == pytest.approx(
        expected["differences"]["flip"]["mirrored"], rel=1e-3
    )


def test_a_blank_picture_is_flagged_over_http(client, files):
    record = asked(client, files[0], files[3])
    for told in record["differences"].values():
        for one in told if isinstance(told, list) else [told]:
            assert one["reason"] == "not observable: at least one of the two pictures is blank"


def test_the_model_s_record_names_what_it_answers(client):
    (record,) = client.get("/v1/models").json()["data"]
    assert list(record["augmentations"]) == ["crop", "color", "flip"]


def test_python_and_command_say_the_same(matched_model, client, files, augself):
    difference = Encoder(matched_model, device="cpu", threads=1).difference(*files[:2])
    record = asked(client, *files[:2])
    told = augself("predict", *files[:2], "--model", matched_model, "--json", "--device", "cpu")
    printed = json.loads(told.out)["differences"]
    by_model = AugSelfModel.from_pretrained(matched_model).difference(*files[:2]).differences
    for found in (difference.differences, printed, by_model):
        for kind, head in (("crop", "matcher"), ("color", "features")):
            for got, wanted in zip(found[kind], record["differences"][kind], strict=True):
                assert got["value"] == pytest.approx(wanted["value"], rel=1e-3, abs=1e-4)
                assert got["standard_error"] == pytest.approx(wanted["standard_error"], rel=1e-3)
                assert got["head"] == head
    assert not any(row[4].endswith("on average") for row in difference.rows())


# -- The open inference protocol -------------------------------------------------------------------


def infer(client, name, **inputs):
    types = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
    tensors = [
        {"name": n, "datatype": types[v.dtype], "shape": list(v.shape), "data": v.ravel().tolist()}
        for n, v in inputs.items()
    ]
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": tensors})
    assert answer.status_code == 200, answer.text
    return {
        o["name"]: np.array(o["data"], np.float32).reshape(o["shape"])
        for o in answer.json()["outputs"]
    }


def test_its_graphs_are_models_under_v2(client, engine, files):
    images = np.stack([pixels(path) for path in files[:2]])
    assert list(infer(client, "matched", pixel_values=images)) == ["features"]
    features = engine.features(list(images))
    raw = infer(client, "matched_heads", features_a=features[:1], features_b=features[1:])
    assert list(raw) == ["crop", "color", "flip", "log_variance"]
    assert raw["log_variance"] == pytest.approx(
        engine.heads(features[:1], features[1:])["log_variance"], rel=1e-3, abs=1e-4
    )
    maps = infer(client, "matched_maps", pixel_values=images)["maps"]
    assert maps == pytest.approx(engine.encode(images).maps, rel=1e-3, abs=1e-4)
    raw = infer(client, "matched_matcher", maps_a=maps[:1], maps_b=maps[1:])
    expected = engine.matcher(maps[:1], maps[1:])
    assert list(raw) == list(expected)
    for name, value in expected.items():
        assert raw[name] == pytest.approx(value, rel=1e-3, abs=1e-4)
    record = client.get("/v2/models/matched_matcher").json()
    assert record["inputs"][0] == {"name": "maps_a", "datatype": "FP32", "shape": [-1, 16, 8, 8]}
    assert [o["shape"] for o in record["outputs"]] == [[-1, 4], [-1, 4], [-1, 1], [-1, 1], [-1, 1]]


def test_models_of_each_other_s_names_are_refused(matched_model, tiny_model):
    sources = [
        ModelSource("one", matched_model, "cpu"),
        ModelSource("one_matcher", tiny_model, "cpu"),
    ]
    with pytest.raises(UsageError, match="the matcher of one are called one_matcher under /v2"):
        create_app(sources)


def test_a_model_without_a_matcher_has_no_such_graphs(tiny_model):
    with TestClient(
        create_app([ModelSource("tiny", tiny_model, "cpu", 1)]), base_url="http://localhost"
    ) as client:
        for part in ("maps", "matcher"):
            assert client.get(f"/v2/models/tiny_{part}").status_code == 404


# -- Extraction of pairs ---------------------------------------------------------------------------


def pairs_file(place, files, *pairs):
    for path in files:
        shutil.copy(path, place / path.name)
    lines = [f"{files[a].name},{files[b].name}" for a, b in pairs]
    (place / "pairs.csv").write_text("\n".join(["a,b", *lines]))
    return place / "pairs.csv"


def test_a_table_of_pairs_says_what_http_says(engine, client, files, tmp_path):
    pairs = [(0, 1), (2, 3), (1, 2)]
    source = pairs_file(tmp_path, files, *pairs)
    extract(source, tmp_path / "out", engine, TableSettings(pairs=True))
    table = DifferenceTable.read(tmp_path / "out")
    answers = [asked(client, files[a], files[b]) for a, b in pairs]
    for row, answer in enumerate(answers):
        assert table.match[row] == pytest.approx(answer["match"], nan_ok=True) or (
            np.isnan(table.match[row]) and answer["match"] is None
        )
        for d in answer["differences"]["crop"]:
            name = f"crop_{d['name']}"
            told = table.values[name][row]
            assert (
                np.isnan(told)
                if d["value"] is None
                else told == pytest.approx(d["value"], rel=1e-3, abs=1e-4)
            )
            assert table.errors[name][row] == pytest.approx(d["standard_error"], rel=1e-3)
            assert table.reasons[name][row] == d.get("reason")
        flip = answer["differences"]["flip"]
        assert table.reasons["flip_mirrored"][row] == flip.get("reason")
    assert table.reasons["crop_x"][1].startswith("not observable: at least one")
    assert len(table.to_pandas()) == 3
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["matcher_sha256"] == engine.matcher_sha256


def test_a_table_of_the_embedded_model_flags_strangers_and_what_is_beyond(photographs, tmp_path):
    """What predict says of four pairs, the table must say too."""
    encoder = Encoder(device="cpu", threads=1)
    autumn, drum = (
        Image.open(p).convert("RGB") for p in photographs if p.stem in ("autumn", "drum")
    )
    made = {"a": autumn, "dark": autumn.point(lambda v: round(0.3 * v)), "stranger": drum}
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
    lines = ["a.png,a.png", "a.png,dark.png", "a.png,stranger.png"]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b", *lines]))
    extract(tmp_path / "pairs.csv", tmp_path / "out", encoder._engine, TableSettings(pairs=True))
    table = DifferenceTable.read(tmp_path / "out")
    reasons = table.reasons["color_brightness"]
    assert reasons[0] is None and abs(table.values["color_brightness"][0]) < 0.01
    assert reasons[1].startswith("beyond what was trained on")
    assert reasons[2].startswith("unlike pictures")
    assert np.isnan(table.values["color_brightness"][1:]).all()
    assert table.match[0] > 0.9 > 0.5 > table.match[2]
    for row, b in enumerate(("a", "dark", "stranger")):
        said = encoder.difference(tmp_path / "a.png", tmp_path / f"{b}.png")
        assert table.match[row] == pytest.approx(said.match, abs=1e-4)
