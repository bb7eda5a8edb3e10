"""The engine against ONNX Runtime alone, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.folder import (
    CONFIG,
    HEADS,
    HEADS_GRAPH,
    read_manifest,
    read_spec,
    write_manifest,
)
from serving.commands import predict
from serving.inference.engine import Engine, load


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return load(str(tiny_model), "cpu", 1)


def test_features_do_not_depend_on_the_batch(engine, pixels, expected):
    images = [pixels(n) for n in range(70)]  # three runs
    features = engine.features(images)
    assert features.shape == (70, engine.spec.features) and features.dtype == np.float32
    wanted = np.stack([expected(image) for image in images])
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-5)


def test_differences_are_in_physical_units(engine, tiny_model, pixels):
    a, b = (engine.features([pixels(n), pixels(n + 1)]) for n in (0, 10))
    session = onnxruntime.InferenceSession(str(tiny_model / "onnx/heads.onnx"))
    names = [output.name for output in session.get_outputs()]
    ab, ba = (
        dict(zip(names, session.run(None, {"features_a": x, "features_b": y}), strict=True))
        for x, y in ((a, b), (b, a))
    )
    found = engine.differences(a, b)
    std = np.array([d.std for d in engine.spec.heads["color"].dimensions])
    color = (ab["color"] - ba["color"]) / 2 * std
    np.testing.assert_allclose(found["color"], color, rtol=1e-4, atol=1e-5)
    flip = 1 / (1 + np.exp(-ab["flip"]))
    np.testing.assert_allclose(found["flip"], flip, rtol=1e-4, atol=1e-5)
    displacement = ab["crop"][:, 0] * engine.spec.heads["crop"].dimensions[0].std
    np.testing.assert_allclose(found["crop"][:, 0], displacement, rtol=1e-4, atol=1e-5)


def test_it_is_named_after_its_folder(engine, tiny_model):
    assert engine.name == "tiny"
    assert engine.sha256 == read_manifest(tiny_model)["files"]["onnx/features.onnx"]
    assert engine.provider == "CPUExecutionProvider"


def test_its_digest_of_the_spec_is_of_what_decides_answers(engine, tiny_model, tmp_path):
    """Who trained the model, and when, decides none."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spec = read_spec(folder)

    def digest(spec) -> str:
        (folder / CONFIG).write_text(spec.to_json())
        write_manifest(folder)
        return load(str(folder), "cpu", 1).spec_sha256

    assert digest(dataclasses.replace(spec, provenance={"by": "us"})) == engine.spec_sha256
    crop = spec.heads["crop"]
    first = dataclasses.replace(crop.dimensions[0], standard_error=0.5)
    crop = dataclasses.replace(crop, dimensions=[first, *crop.dimensions[1:]])
    measured = dataclasses.replace(spec, heads=spec.heads | {"crop": crop})
    assert digest(measured) != engine.spec_sha256


@pytest.mark.parametrize("graph", ["features.onnx", "heads.onnx"])
def test_a_folder_without_graphs_says_how_to_make_them(tiny_model, tmp_path, graph):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "onnx" / graph).unlink()
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=f"{graph}: augself export --model {folder}"):
        load(str(folder))


def test_a_graph_that_is_none_is_named(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    (folder / "onnx/heads.onnx").write_bytes(b"not a graph")
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"heads\.onnx cannot be loaded"):
        load(str(folder), "cpu")


def test_graphs_of_another_model_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "mixed")
    config = (folder / "augself/config.json").read_text()
    (folder / "augself/config.json").write_text(config.replace('"features": ', '"features": 1'))
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match="its graphs have"):
        load(str(folder), "cpu")


def test_no_model_there():
    with pytest.raises(ModelFolderError, match="no model at"):
        load("/nowhere/at/all")


def test_a_model_without_heads_gives_features_and_no_differences(tiny_model, tmp_path, pixels):
    """A converted torchvision encoder, say."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model, folder)
    for path in (HEADS_GRAPH, HEADS):
        (folder / path).unlink()
    spec = dataclasses.replace(read_spec(folder), heads={})
    (folder / CONFIG).write_text(spec.to_json())
    write_manifest(folder)
    engine = Engine(folder)
    features = engine.features([pixels(0), pixels(1)])
    assert features.shape == (2, 128)
    assert engine.differences(features, features) == {}


# -- Precision -------------------------------------------------------------------------------------


def test_the_precision_chooses_the_graph(tiny_model, tmp_path, pixels):
    """The int8 graph's own correctness is tests/augself_hub/modeling/test_quantize.py's."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    graph = onnx.load(folder / "onnx/features.onnx")
    graph.graph.initializer[0].raw_data = bytes(len(graph.graph.initializer[0].raw_data))
    onnx.save(graph, folder / "onnx/features_int8.onnx")
    write_manifest(folder)
    engines = [load(str(folder), "auto", 1, precision) for precision in ("fp32", "int8")]
    assert [e.precision for e in engines] == ["fp32", "int8"]
    files = read_manifest(folder)["files"]
    assert engines[1].sha256 == files["onnx/features_int8.onnx"] != engines[0].sha256
    a, b = (engine.features([pixels(0)]) for engine in engines)
    assert not np.allclose(a, b)


def test_a_folder_without_the_quantised_graph_says_how_to_make_it(tiny_model):
    mend = f"no onnx/features_int8.onnx: augself export --model {tiny_model} --quantize int8"
    with pytest.raises(ModelFolderError, match=mend):
        load(str(tiny_model), precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "0 threads cannot run a model: give at least 1"),
        (
            {"device": "tpu"},
            "there is no device 'tpu': give one of auto, cpu, openvino, cuda, tensorrt",
        ),
        ({"precision": "int4"}, "there is no precision 'int4': give one of fp32, bf16, int8, fp16"),
    ],
)
def test_what_there_is_not_is_refused(tiny_model, options, message):
    with pytest.raises(UsageError, match=message):
        load(str(tiny_model), **options)


def test_the_commands_take_a_precision(tiny_model, photographs):
    """The folder has no int8 graph, and the command that makes one is named."""
    options = ["--model", str(tiny_model), "--precision", "int8"]
    result = CliRunner().invoke(predict, [*map(str, photographs[:2]), *options])
    assert "--quantize int8 --calibration PHOTOGRAPHS" in str(result.exception)


# -- External data ---------------------------------------------------------------------------------


def with_external_data(tiny_model, folder, location="model.data"):
    """The tiny model, its encoder's weights in a file of their own, said to be at `location`."""
    shutil.copytree(tiny_model, folder)
    path = folder / "onnx/features.onnx"
    graph = onnx.load(path)
    path.unlink()
    onnx.save(graph, path, save_as_external_data=True, location="model.data")
    graph = onnx.load(path, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(graph.SerializeToString())
    write_manifest(folder)
    return folder


def test_external_data_in_the_folder_is_read(tiny_model, tmp_path, pixels, expected):
    engine = Engine(with_external_data(tiny_model, tmp_path / "model"), "cpu", 1)
    np.testing.assert_allclose(engine.features([pixels(0)])[0], expected(pixels(0)), rtol=1e-4)


def test_external_data_behind_the_links_of_a_hub_cache_is_read(tiny_model, tmp_path, pixels):
    """A snapshot's files are links into the repository's blobs, named after their content."""
    source = with_external_data(tiny_model, tmp_path / "model")
    repository = tmp_path / "hub/models--a--b"
    snapshot = repository / "snapshots/0123"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(p for p in source.rglob("*") if p.is_file()):
        blob, link = repository / f"blobs/{number}", snapshot / file.relative_to(source)
        shutil.copy(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert load(str(snapshot), "cpu", 1).features([pixels(0)]).shape[0] == 1


@pytest.mark.parametrize("way", ["parent", "absolute", "link"])
def test_external_data_out_of_the_folder_is_refused(tiny_model, tmp_path, way):
    outside = tmp_path / "outside.data"
    location = {"parent": "../../outside.data", "absolute": str(outside), "link": "model.data"}
    folder = with_external_data(tiny_model, tmp_path / "model", location[way])
    shutil.move(folder / "onnx/model.data", outside)
    if way == "link":
        (folder / "onnx/model.data").symlink_to(outside)
    with pytest.raises(ModelFolderError, match=r"features\.onnx cannot be loaded: .+"):
        Engine(folder, "cpu", 1)
    if way == "link":
        with pytest.raises(ModelFolderError, match="is a link out of the folder"):
            load(str(folder), "cpu", 1)
