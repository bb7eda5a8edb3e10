"""Export: the graphs answer as torch does, or are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModel

from augself_hub import AugSelfModel
from augself_hub import export as export_model
from augself_hub.cli import augself
from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.folder import (
    FEATURES_GRAPH,
    HEADS_GRAPH,
    MANIFEST,
    STOCK_GRAPH,
    read_manifest,
    read_spec,
    verify,
    write_manifest,
)
from augself_hub.modeling import export
from augself_hub.precision import GRAPHS, graph_of
from serving.inference.engine import Engine
from training.evaluation.cache import Model


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_the_graph_takes_uint8_images_and_answers_as_torch(tiny_model, batch):
    model = AugSelfModel.from_pretrained(tiny_model)
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = model(x).features.numpy()
    (features,) = session(tiny_model / FEATURES_GRAPH).run(["features"], {"images": images})
    error = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-4


def test_the_heads_graph_names_its_outputs_by_kind(tiny_model):
    outputs = [o.name for o in session(tiny_model / HEADS_GRAPH).get_outputs()]
    assert outputs == list(read_spec(tiny_model).heads)


def test_the_manifest_records_the_parity(tiny_model):
    parity = read_manifest(tiny_model)["parity"]
    assert 0 < parity["features"] < 1e-4
    assert 0 < parity["heads"] < 1e-4


@pytest.mark.usefixtures("exported_once")
def test_a_graph_that_differs_is_refused_and_the_folder_kept(tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = (folder / MANIFEST).read_text()
    monkeypatch.setattr(
        export,
        "_run",
        lambda path, inputs: [value * 1.001 for value in session(path).run(None, inputs)],
    )
    with pytest.raises(AugSelfError, match="differ from torch"):
        export.export_folder(folder)
    assert (folder / MANIFEST).read_text() == before
    assert verify(folder) == folder
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_graphs_carry_no_path_of_the_machine_that_made_them(tiny_model):
    for graph in (FEATURES_GRAPH, HEADS_GRAPH):
        assert b".py" not in (tiny_model / graph).read_bytes()


def test_the_same_weights_give_the_same_bytes(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    export.export_folder(folder)
    for graph in (FEATURES_GRAPH, HEADS_GRAPH):
        assert (folder / graph).read_bytes() == (tiny_model / graph).read_bytes()


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("change", [False, True], ids=["same weights", "other weights"])
def test_a_quantised_graph_stays_only_with_the_weights_it_was_made_from(
    tiny_model, tmp_path, change
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(folder / FEATURES_GRAPH, folder / GRAPHS["int8"])
    record = {"source": export.file_sha256(folder / FEATURES_GRAPH)}
    write_manifest(folder, read_manifest(folder)["parity"] | {"int8": record})
    if change:
        model = AugSelfModel.from_pretrained(folder)
        with torch.no_grad():
            next(model.encoder.parameters()).mul_(1.01)
        model.encoder.save_pretrained(folder)
        write_manifest(folder)
    export.export_folder(folder)
    assert (folder / GRAPHS["int8"]).is_file() is not change
    assert read_manifest(folder)["parity"].get("int8") == (None if change else record)
    assert verify(folder) == folder


# -- The stock graph, and folders of 0.1 -----------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tiny_model, tmp_path_factory):
    """The tiny model with the graph for transformers.js, by the command."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("stock") / "model")
    command = ["export", "--model", str(folder), "--format", "transformers.js"]
    done = CliRunner().invoke(augself, command)
    assert done.exit_code == 0 and done.output.endswith(f"and {folder / STOCK_GRAPH}\n")
    return folder


def test_the_stock_graph_answers_as_automodel(stock, tiny_model):
    graph = session(stock / STOCK_GRAPH)
    (pixels,) = graph.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == (
        "pixel_values",
        "tensor(float)",
        [3, 32, 32],
    )
    assert [o.name for o in graph.get_outputs()] == ["last_hidden_state", "pooler_output"]
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network, loaded = AutoModel.from_pretrained(stock, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    with torch.no_grad():
        expected = network.eval()(x)
    for values, name in zip(graph.run(None, {"pixel_values": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(values, expected[name].numpy(), atol=1e-4)


def test_the_stock_graph_is_vouched_for_and_changes_nothing_else(stock, tiny_model):
    manifest = read_manifest(verify(stock))
    assert STOCK_GRAPH.as_posix() in manifest["files"]
    assert 0 < manifest["parity"]["pooler_output"] < 1e-4
    assert 0 < manifest["parity"]["last_hidden_state"] < 1e-4
    config = json.loads((stock / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    assert (stock / FEATURES_GRAPH).read_bytes() == (tiny_model / FEATURES_GRAPH).read_bytes()
    assert graph_of(stock) == FEATURES_GRAPH
    assert Engine(stock).sha256 == Engine(tiny_model).sha256


@pytest.mark.usefixtures("exported_once")
def test_a_stock_graph_that_differs_is_refused_and_one_that_is_there_renewed(
    stock, tmp_path, monkeypatch
):
    folder = shutil.copytree(stock, tmp_path / "model")
    model = AugSelfModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1.5)
    model.encoder.save_pretrained(folder)
    write_manifest(folder)
    export.export_folder(folder)
    x = {"pixel_values": np.ones((1, 3, 32, 32), np.float32)}
    before, after = (session(f / STOCK_GRAPH).run(["pooler_output"], x)[0] for f in (stock, folder))
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 32, 32)).features.numpy()
    np.testing.assert_allclose(after.reshape(1, -1), expected, atol=1e-4)
    assert np.abs(after - before).max() > 1e-3
    real = export._run

    def spoilt(path, inputs):
        hidden, *rest = real(path, inputs)
        return [hidden, *(v * 1.001 if path.name == "model.onnx" else v for v in rest)]

    monkeypatch.setattr(export, "_run", spoilt)
    with pytest.raises(AugSelfError, match="pooler_output differ from torch"):
        export.export_folder(folder)
    assert verify(folder) == folder


@pytest.fixture
def of_0_1(tiny_model, tmp_path):
    """What 0.1 wrote: onnx/model.onnx takes uint8 images; a quantised graph beside it."""
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    (folder / FEATURES_GRAPH).rename(folder / "onnx/model.onnx")
    shutil.copy(folder / "onnx/model.onnx", folder / "onnx/model_int8.onnx")
    record = {"source": export.file_sha256(folder / "onnx/model.onnx")}
    write_manifest(folder, read_manifest(folder)["parity"] | {"int8": record})
    return verify(folder)


def test_a_folder_of_0_1_goes_on_being_served_and_evaluated(of_0_1, tiny_model):
    assert graph_of(of_0_1).as_posix() == "onnx/model.onnx"
    assert graph_of(of_0_1, "int8").as_posix() == "onnx/model_int8.onnx"
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    for precision in ("fp32", "int8"):
        engine, today = Engine(of_0_1, precision=precision), Engine(tiny_model)
        np.testing.assert_array_equal(engine.features(images), today.features(images))
    assert Model.resolve(str(of_0_1)).sha256 == today.sha256


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("stock", [False, True], ids=["as it was", "for transformers.js"])
def test_export_brings_a_folder_of_0_1_up_to_date(of_0_1, tiny_model, stock):
    export.export_folder(of_0_1, stock)
    graphs = {p.name for p in (verify(of_0_1) / "onnx").iterdir()}
    expected = {"features.onnx", "features_int8.onnx", "heads.onnx"}
    assert graphs == (expected | {"model.onnx"} if stock else expected)
    assert (of_0_1 / FEATURES_GRAPH).read_bytes() == (tiny_model / FEATURES_GRAPH).read_bytes()
    assert read_manifest(of_0_1)["parity"]["int8"]
    if stock:
        (pixels,) = session(of_0_1 / "onnx/model.onnx").get_inputs()
        assert pixels.name == "pixel_values"


def test_a_stock_graph_without_that_of_serving_is_refused_by_its_inputs(stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "model")
    (folder / FEATURES_GRAPH).unlink()
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"pixel_values.*augself export --model"):
        Engine(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "onnx"}, "--format onnx: give transformers.js, or none"),
        (
            {"format": "transformers.js", "quantize": "int8", "calibration": "x"},
            "--format and --quantize write different graphs: give them one by one",
        ),
    ],
)
def test_what_no_format_is_or_does_not_go_with_one_is_refused(tiny_model, options, said):
    with pytest.raises(UsageError) as refusal:
        export_model(tiny_model, **options)
    assert str(refusal.value) == said
