"""Graphs of a stranger's model folder: endless, of other rows, types or widths, not finite, or that
read what is not theirs. Each is one line that names the folder, within the time limit.
"""

import json
import shutil
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from augself_hub.errors import ModelFolderError
from augself_hub.folder import CONFIG, write_manifest
from serving.inference import providers
from serving.inference.engine import Engine, load

WIDTH = 128  # of resnet18-w16's features


def constant(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def encoder(*nodes, constants=(), features=("batch", WIDTH), kind=T.FLOAT):
    """A graph whose `e` is (N, 128) float32, the mean of each image; `nodes` end in `features`."""
    start = [
        helper.make_node("Cast", ["images"], ["f"], to=T.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "one"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["e"]),
    ]
    graph = helper.make_graph(
        [*start, *nodes],
        "encoder",
        [helper.make_tensor_value_info("images", T.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("features", kind, list(features))],
        [
            constant("axes", np.array([1, 2, 3])),
            constant("one", np.array([1])),
            constant("shape", np.array([1, WIDTH])),
            *constants,
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def node(kind, *inputs, **attributes):
    return helper.make_node(kind, list(inputs), ["features"], **attributes)


def endless(start):
    """A Loop that begins with `start` and whose condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", T.INT64, []),
            helper.make_tensor_value_info("go", T.BOOL, []),
            helper.make_tensor_value_info("v", T.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", T.BOOL, []),
            helper.make_tensor_value_info("w", T.FLOAT, None),
        ],
    )
    return encoder(
        helper.make_node("Loop", ["", "true", start], ["l"], body=body),
        node("Add", "e", "l"),
        constants=[constant("true", np.array(True)), constant("c", np.zeros(WIDTH, np.float32))],
    )


def outside(location):
    weights = constant("w", np.zeros((1, WIDTH), np.float32))
    weights.ClearField("raw_data")
    weights.data_location = T.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * WIDTH))):
        weights.external_data.add(key=key, value=value)
    return encoder(node("Add", "e", "w"), constants=[weights])


NAN = constant("nan", np.array(np.nan, np.float32))
ZERO = constant("zero", np.array(0, np.float32))
GRAPHS = {
    "endless": (endless("e"), "did not load and answer within 1 s"),
    "endless on constants": (endless("c"), "did not load and answer within 1 s"),
    "one row for all": (
        encoder(node("ReduceMean", "e", "first"), constants=[constant("first", np.array([0]))]),
        r"answers 3 rows with features \(1, 128\) float32",
    ),
    "NaN": (encoder(node("Mul", "e", "nan"), constants=[NAN]), "features are not finite"),
    "infinite for a black image": (
        encoder(
            helper.make_node("Add", ["e", "zero"], ["z"]),
            node("Reciprocal", "z"),
            constants=[ZERO],
        ),
        "features are not finite",
    ),
    "float64": (encoder(node("Cast", "e", to=T.DOUBLE), kind=T.DOUBLE), r"tensor\(double\)"),
    "integers": (encoder(node("Cast", "e", to=T.INT64), kind=T.INT64), r"tensor\(int64\)"),
    "another width": (
        encoder(
            node("Slice", "e", "zeros", "sevens", "ones"),
            constants=[
                constant("zeros", np.array([0, 0])),
                constant("sevens", np.array([99, 7])),
                constant("ones", np.array([0, 1])),
            ],
            features=("batch", 7),
        ),
        r"\[7\]",
    ),
    "other features than it says": (
        encoder(
            node("Slice", "e", "zero", "seven", "last"),
            constants=[constant(n, np.array([v])) for n, v in
                       (("zero", 0), ("seven", 7), ("last", 1))],
        ),
        "graphs have|cannot be loaded|does not answer",
    ),
    "800 GB": (
        encoder(
            helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
            node("Add", "e", "sum"),
            constants=[constant("many", np.array([200_000_000_000]))],
        ),
        "does not answer test images: .*allocate",
    ),
    "data outside": (outside("../../../etc/passwd"), "cannot be loaded: .*[Ee]xternal data"),
    "data outside, absolute": (outside("/etc/passwd"), "cannot be loaded: .*[Ee]xternal data"),
}  # fmt: skip


@pytest.fixture
def spoilt(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(providers.LOAD_SECONDS, "cpu", 1.0)
    return shutil.copytree(tiny_model, tmp_path / "spoilt")


@pytest.mark.parametrize("way", GRAPHS)
def test_a_hostile_graph_is_one_line_in_time(spoilt, way):
    graph, expected = GRAPHS[way]
    (spoilt / "onnx/features.onnx").write_bytes(graph.SerializeToString())
    write_manifest(spoilt)
    started = time.monotonic()
    with pytest.raises(ModelFolderError, match=expected) as caught:
        load(str(spoilt), "cpu", 2)
    assert time.monotonic() - started < 20
    assert str(spoilt) in str(caught.value) and "\n" not in str(caught.value)


def test_a_graph_of_this_making_is_served_where_nothing_is_wrong_with_it(spoilt):
    graph = encoder(node("Identity", "e"))
    (spoilt / "onnx/features.onnx").write_bytes(graph.SerializeToString())
    write_manifest(spoilt)
    images = np.full((5, 32, 32, 3), 9, np.uint8)
    np.testing.assert_array_equal(
        load(str(spoilt), "cpu", 1).features(images), np.full((5, 128), 9)
    )


def test_what_is_not_finite_for_some_images_only_is_never_answered(spoilt):
    """1 / (mean - 77): no test image has that mean."""
    graph = encoder(
        helper.make_node("Sub", ["e", "c"], ["d"]),
        node("Reciprocal", "d"),
        constants=[constant("c", np.array(77, np.float32))],
    )
    (spoilt / "onnx/features.onnx").write_bytes(graph.SerializeToString())
    write_manifest(spoilt)
    engine = load(str(spoilt), "cpu", 1)
    assert engine.features([np.full((32, 32, 3), 78, np.uint8)]).tolist() == [[1.0] * 128]
    with pytest.raises(ModelFolderError, match="features are not finite"):
        engine.features([np.full((32, 32, 3), 77, np.uint8)])


def test_heads_that_are_not_finite_are_refused(spoilt):
    path = spoilt / "onnx/heads.onnx"
    graph = onnx.load(path)
    weights = graph.graph.initializer[0]
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(graph, path)
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match="not finite"):
        load(str(spoilt), "cpu", 1)


FIELDS = {
    "features of 1e12": (CONFIG, {"features": 10**12}, "features is 1000000000000, not a whole"),
    "features as text": (CONFIG, {"features": "128"}, "features is '128', not a whole number"),
    "features NaN": (CONFIG, {"features": float("nan")}, "NaN is no number"),
    "features true": (CONFIG, {"features": True}, "features is True"),
    "hidden 1e9": (CONFIG, {"hidden": 10**9}, "hidden is 1000000000"),
    "mean of texts": ("preprocessor_config.json", {"image_mean": ["a"] * 3}, "image_mean is 'a'"),
    "mean of one": ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean is no list"),
    "mean is null": ("preprocessor_config.json", {"image_mean": None}, "image_mean is no list"),
    "std of 0": ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "image_std is 0"),
    "std NaN": ("preprocessor_config.json", {"image_std": [float("nan")] * 3}, "NaN is no number"),
    "std 1e999": ("preprocessor_config.json", {"image_std": float("inf")}, "Infinity is no number"),
    "size as text": (
        "preprocessor_config.json",
        {"size": {"shortest_edge": "32"}, "crop_size": {"height": "32", "width": "32"}},
        "size.shortest_edge is '32'",
    ),
    "size of 1e9": (
        "preprocessor_config.json",
        {"size": {"shortest_edge": 10**9}, "crop_size": {"height": 10**9, "width": 10**9}},
        "size.shortest_edge is 1000000000",
    ),
    "size 0": (
        "preprocessor_config.json",
        {"size": {"shortest_edge": 0}, "crop_size": {"height": 0, "width": 0}},
        "size.shortest_edge is 0",
    ),
    "size a list": ("preprocessor_config.json", {"size": [32]}, "cannot be read"),
    "provenance a text": (CONFIG, {"provenance": "me"}, "provenance is no object"),
    "heads a list": (CONFIG, {"heads": [1]}, "cannot be read"),
}


@pytest.mark.parametrize("way", FIELDS)
def test_a_field_that_cannot_be_is_one_line_with_its_file(spoilt, way):
    name, change, expected = FIELDS[way]
    config = json.loads((spoilt / name).read_text()) | change
    (spoilt / name).write_text(json.dumps(config))
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=expected) as caught:
        load(str(spoilt), "cpu", 1)
    assert str(name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["std", "standard_error"])
@pytest.mark.parametrize("value", ["1", -1.0, 10**400, [1]])
def test_a_heads_scale_is_a_number(spoilt, field, value):
    config = json.loads((spoilt / CONFIG).read_text())
    config["heads"]["crop"]["dimensions"][0][field] = value
    (spoilt / CONFIG).write_text(json.dumps(config))
    write_manifest(spoilt)
    with pytest.raises(
        ModelFolderError, match=rf"config\.json.* (heads\.crop\.y|Dimension)\.{field} is"
    ):
        Engine(spoilt, "cpu", 1)


DEEP = '{"a":' * 200_000 + "1" + "}" * 200_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 60 + "1" + "}" * 60, "[]", "\xff", "", "{"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "augself/config.json", "augself/manifest.json"],
)
def test_a_file_that_is_no_json_is_one_line(spoilt, name, text):
    (spoilt / name).write_text(text, encoding="latin-1")
    if name != "augself/manifest.json":
        write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=f"{name} cannot be read") as caught:
        load(str(spoilt), "cpu", 1)
    assert "\n" not in str(caught.value)
