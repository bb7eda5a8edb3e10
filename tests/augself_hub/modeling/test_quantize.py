"""Quantisation: the graph answers nearly as fp32 does, or is refused by the gate that says so."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.folder import (
    FEATURES_GRAPH,
    HEADS_GRAPH,
    MANIFEST,
    card_is_edited,
    read_manifest,
    verify,
    write_manifest,
)
from augself_hub.modeling import gates, quantize
from augself_hub.modeling.commands import export as export_command
from augself_hub.precision import GRAPHS
from augself_hub.preprocess import preprocess


@pytest.fixture(scope="module")
def quantized(tiny_model, photo_folder, tmp_path_factory):
    """The tiny model with both quantised graphs."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("quantized") / "model")
    for precision in ("int8", "fp16"):
        quantize.quantize_folder(folder, precision, photo_folder)
    return folder


def test_the_card_lists_the_graphs_that_are_there(quantized):
    assert "(fp32, int8, fp16)" in (quantized / "README.md").read_text()
    assert not card_is_edited(quantized)


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def features(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": images})[0]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_quantised_graph_is_a_drop_in(quantized, photographs, precision):
    images = np.stack([preprocess(Image.open(p).convert("RGB"), 32) for p in photographs])
    expected, found = (
        features(quantized / graph, images) for graph in (FEATURES_GRAPH, GRAPHS[precision])
    )
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    cosines = (found * expected).sum(1)
    cosines /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.97
    assert verify(quantized) == quantized
    size, fp32_size = ((quantized / g).stat().st_size for g in (GRAPHS[precision], FEATURES_GRAPH))
    assert size < 0.6 * fp32_size


def test_int8_weights_leave_a_bit_free(quantized):
    """So that no sum saturates on a CPU without VNNI."""
    model = onnx.load(quantized / GRAPHS["int8"])
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    ]
    assert weights and all(np.abs(w.astype(int)).max() <= 64 for w in weights)


def test_the_manifest_records_what_was_measured(quantized, tiny_model):
    parity = read_manifest(quantized)["parity"]
    assert parity["features"] == read_manifest(tiny_model)["parity"]["features"]
    int8, fp16 = parity["int8"], parity["fp16"]
    assert int8["source"] == read_manifest(quantized)["files"][FEATURES_GRAPH.as_posix()]
    assert 0.97 < int8["cosine_worst"] <= int8["cosine_mean"] <= 1.001
    assert list(int8["heads"]) == ["crop", "color", "flip"]
    assert (int8["calibration_images"], int8["held_out_images"]) == (13, 27)
    assert int8["probe_loss"] is None  # 27 images are too few
    assert int8["speed"]["speedup"] > 0
    assert fp16["speed"] is None and fp16["gated_on"] == "CPUExecutionProvider"


def test_the_manifest_keeps_what_was_read(quantized, photo_folder):
    for precision in ("int8", "fp16"):
        inventory = read_manifest(quantized)["parity"][precision]["inventory"]
        assert (inventory["source"], inventory["images"]) == (str(photo_folder), 40)


def test_photographs_are_read_by_what_was_chosen(folder, photo_folder, tmp_path):
    paths = [path for path in sorted(photo_folder.rglob("*.*")) if path.is_file()]
    rows = "".join(f"{path},{path.parent.name},{'ab'[n % 2]}\n" for n, path in enumerate(paths))
    (tmp_path / "t.csv").write_text(f"view,kind,part\n{rows}")
    options = ["--model", str(folder), "--quantize", "fp16"]
    options += ["--calibration", str(tmp_path / "t.csv")]
    result = CliRunner().invoke(export_command, options)
    assert "--column image=NAME" in str(result.exception)
    chosen = ["--column", "image=view", "--column", "label=kind"]
    result = CliRunner().invoke(export_command, [*options, *chosen])
    assert result.exit_code == 0, result.output
    inventory = read_manifest(folder)["parity"]["fp16"]["inventory"]
    assert inventory["classes"] == {"even": 20, "odd": 20}
    one = [*options, *chosen, "--column", "split=part", "--split", "a"]
    result = CliRunner().invoke(export_command, one)
    assert "holds 20 images: quantisation needs" in str(result.exception)


def test_the_same_photographs_give_the_same_bytes(quantized, folder, photo_folder):
    quantize.quantize_folder(folder, "int8", photo_folder)
    assert (folder / GRAPHS["int8"]).read_bytes() == (quantized / GRAPHS["int8"]).read_bytes()


def test_calibration_and_held_out_images_are_disjoint(photo_folder):
    images = quantize.Photographs.split(photo_folder, 32)
    assert len({*images.calibration, *images.held_out}) == 40
    assert set(images.labels()) == {0, 1}


def test_images_without_classes_have_no_labels(photo_folder, tmp_path):
    for path in photo_folder.rglob("*.*"):
        shutil.copy(path, tmp_path / path.name)
    assert quantize.Photographs.split(tmp_path, 32).labels() is None


GATES = {
    "features' cosine on average": {"parity.MEAN_COSINE": 1.1},
    "features' cosine at worst": {"parity.WORST_COSINE": 1.1},
    "the linear probe's loss": {"PROBE_IMAGES": 1, "PROBE_LOSS": -2.0},
    "the change of head crop": {"parity.HEAD_TOLERANCE": 0.0},
    "the change of head flip": {"parity.PROBABILITY_TOLERANCE": 0.0},
}


@pytest.mark.parametrize("gate", GATES)
def test_a_failed_gate_is_named_and_the_folder_kept(folder, photo_folder, monkeypatch, gate):
    for name, value in GATES[gate].items():
        monkeypatch.setattr(f"augself_hub.modeling.gates.{name}", value)
    monkeypatch.setattr(quantize, "FP32_LAYERS", {"int8": (1,)})
    refused(folder, photo_folder, gate)


def test_a_speed_up_that_is_not_reached_is_refused(folder, photo_folder, monkeypatch):
    monkeypatch.setattr(quantize, "FP32_LAYERS", {"int8": (1,)})
    refused(folder, photo_folder, "the speed-up", require_speedup=1000.0)


def refused(folder, photo_folder, gate, **options):
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(AugSelfError, match=f"int8 refused.*{gate} is [-0-9.]+, at (most|least)"):
        quantize.quantize_folder(folder, "int8", photo_folder, **options)
    assert (folder / MANIFEST).read_bytes() == before
    assert verify(folder) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_more_layers_stay_in_fp32_where_a_gate_asks_for_it(folder, photo_folder, monkeypatch):
    monkeypatch.setattr(
        gates, "failed", lambda measured, *_: "" if measured["fp32_layers"] == 5 else "lost"
    )
    assert quantize.quantize_folder(folder, "int8", photo_folder)["fp32_layers"] == 5


def test_a_probe_finds_what_was_lost():
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = np.eye(3)[labels] + random.normal(0, 0.1, (300, 3))
    noise = random.normal(0, 1, (300, 3))
    assert gates.probe_accuracy(features, labels) > 0.98
    assert gates.probe_accuracy(noise, labels) < 0.5
    assert gates.probe_loss(features, features, labels) == 0
    assert gates.probe_loss(features, noise, labels) > 0.4
    assert gates.probe_loss(features[:100], noise[:100], labels[:100]) is None


def test_too_few_photographs_are_refused(folder, photo_folder, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(next(photo_folder.rglob("*.jpg")), few)
    with pytest.raises(AugSelfError, match=r"few holds 1 images: .* at least 24"):
        quantize.quantize_folder(folder, "int8", few)


def test_a_broken_photograph_is_named(folder, photo_folder, tmp_path):
    photographs = shutil.copytree(photo_folder, tmp_path / "photographs")
    (photographs / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(AugSelfError, match=r"broken\.jpg: the data is not an image"):
        quantize.quantize_folder(folder, "int8", photographs)


def test_a_folder_without_the_fp32_graph_says_how_to_make_it(folder, photo_folder):
    (folder / FEATURES_GRAPH).unlink()
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"no onnx/features\.onnx: augself export --model"):
        quantize.quantize_folder(folder, "int8", photo_folder)


def test_a_changed_file_is_refused_and_not_vouched_for(folder, photo_folder):
    """A fresh manifest over it would name what was damaged as the model."""
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(ModelFolderError, match="is not the file its manifest names"):
        quantize.quantize_folder(folder, "int8", photo_folder)
    assert (folder / MANIFEST).read_bytes() == before


def looped(path):
    """The same graph with a Loop that has no end behind each of its outputs."""
    model = onnx.load(path)
    one = onnx.helper.make_tensor_value_info
    kinds = [onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT]
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["going"], ["on"]),
            onnx.helper.make_node("Sin", ["value"], ["next"]),
        ],
        "body",
        [
            one(n, k, s)
            for n, k, s in zip(["i", "going", "value"], kinds, [[], [], None], strict=True)
        ],
        [one("on", kinds[1], []), one("next", kinds[2], None)],
    )
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["unlooped" if name == output else name for name in node.output]
        node.input[:] = ["unlooped" if name == output else name for name in node.input]
    true = onnx.numpy_helper.from_array(np.array(True), "always")
    model.graph.initializer.append(true)
    loop = onnx.helper.make_node("Loop", ["", "always", "unlooped"], [output], body=body)
    model.graph.node.append(loop)
    onnx.save(model, path)


@pytest.mark.parametrize("graph", [FEATURES_GRAPH, HEADS_GRAPH])
def test_a_graph_without_end_is_refused_in_time(folder, photo_folder, monkeypatch, graph):
    monkeypatch.setitem(gates.LOAD_SECONDS, "cpu", 2.0)
    looped(folder / graph)
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=rf"{graph.name} is refused: .* within 2 s"):
        quantize.quantize_folder(folder, "int8", photo_folder)


def test_a_graph_that_cannot_be_run_is_one_line(folder, photo_folder):
    (folder / HEADS_GRAPH).write_bytes(b"no graph")
    write_manifest(folder)
    with pytest.raises(ModelFolderError, match=r"heads\.onnx cannot be run: "):
        quantize.quantize_folder(folder, "int8", photo_folder)


def test_the_command_says_what_it_measured(folder, photo_folder):
    options = ["--model", str(folder), "--quantize", "int8", "--calibration", str(photo_folder)]
    result = CliRunner().invoke(export_command, options)
    assert result.exit_code == 0, result.output
    assert "linear probe: not measured" in result.output and "times fp32" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int8"], "--quantize int8 needs real photographs: --calibration SOURCE"),
        (["--calibration", "."], "--calibration is read with --quantize only"),
        (["--read-as", "classes"], "--column, --split and --read-as are of --calibration"),
        (["--require-speedup", "2"], "measured with --quantize int8 only"),
        (["--quantize", "fp16", "--calibration", ".", "--require-speedup", "2"], "int8 only"),
    ],
)
def test_options_that_do_nothing_are_refused(folder, options, message):
    result = CliRunner().invoke(export_command, ["--model", str(folder), *options])
    assert isinstance(result.exception, UsageError) and message in str(result.exception)
