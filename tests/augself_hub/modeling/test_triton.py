"""A Triton model repository: as Triton's own schema has it, and of graphs that run so."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from augself_hub.cli import main
from augself_hub.folder import FEATURES_GRAPH, HEADS_GRAPH, read_manifest, read_spec, write_manifest
from augself_hub.modeling import triton
from augself_hub.precision import GRAPHS

client = importlib.util.find_spec("tritonclient")
needs_client = pytest.mark.skipif(client is None, reason="pip install 'augself-hub[dev]'")
NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


@pytest.fixture(scope="module")
def schema():
    """Triton's generated module; its package would want gRPC, which nothing here needs."""
    file = Path(client.submodule_search_locations[0]) / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tiny_model, tmp_path_factory):
    destination = tmp_path_factory.mktemp("triton") / "models"
    written = triton.write_repository(str(tiny_model), destination)
    assert written == [destination / "tiny", destination / "tiny_heads"]
    return destination


@pytest.fixture
def config(schema, repository):
    def read(name):
        text = (repository / name / "config.pbtxt").read_text()
        return text_format.Parse(text, schema.ModelConfig())

    return read


def shapes(tensors, schema):
    return {t.name: (schema.DataType.Name(t.data_type), list(t.dims)) for t in tensors}


@needs_client
def test_the_configurations_are_tritons(config, schema, tiny_model):
    spec = read_spec(tiny_model)
    encoder, heads = config("tiny"), config("tiny_heads")
    floats = ("TYPE_FP32", [spec.features])
    assert shapes(encoder.input, schema) == {"images": ("TYPE_UINT8", [32, 32, 3])}
    assert shapes(encoder.output, schema) == {"features": floats}
    assert shapes(heads.input, schema) == {"features_a": floats, "features_b": floats}
    assert shapes(heads.output, schema) == {
        kind: ("TYPE_FP32", [head.outputs]) for kind, head in spec.heads.items()
    }
    for name, each in (("tiny", encoder), ("tiny_heads", heads)):
        assert (each.name, each.backend, each.max_batch_size) == (name, "onnxruntime", 32)
        assert each.HasField("dynamic_batching") and len(each.instance_group) == 1
        queue = each.dynamic_batching.default_queue_policy
        assert queue.max_queue_size == 256 and queue.default_timeout_microseconds == 30_000_000
    assert encoder.instance_group[0].kind == schema.ModelInstanceGroup.KIND_AUTO
    assert heads.instance_group[0].kind == schema.ModelInstanceGroup.KIND_AUTO


@needs_client
@pytest.mark.parametrize("name", ["tiny", "tiny_heads"])
def test_the_graphs_run_as_the_configuration_warms_them_up(config, schema, repository, name):
    session = onnxruntime.InferenceSession(str(repository / name / "1/model.onnx"))
    assert [warmup.batch_size for warmup in config(name).model_warmup] == [1, 32]
    for warmup in config(name).model_warmup:
        inputs = {
            key: np.zeros((warmup.batch_size, *v.dims), NUMPY[schema.DataType.Name(v.data_type)])
            for key, v in warmup.inputs.items()
            if v.zero_data
        }
        outputs = session.run(None, inputs)
        wanted = {t.name: [warmup.batch_size, *t.dims] for t in config(name).output}
        found = {o.name: list(v.shape) for o, v in zip(session.get_outputs(), outputs, strict=True)}
        assert found == wanted


@needs_client
def test_what_is_not_in_the_schema_is_seen(schema):
    with pytest.raises(text_format.ParseError):
        text_format.Parse('name: "x" instances: 2', schema.ModelConfig())


def test_the_graphs_are_the_folders_own(repository, tiny_model):
    for name, graph in (("tiny", FEATURES_GRAPH), ("tiny_heads", HEADS_GRAPH)):
        copy = repository / name / "1/model.onnx"
        assert copy.read_bytes() == (tiny_model / graph).read_bytes()


@pytest.fixture
def quantized(tiny_model, tmp_path):
    """A folder that has an int8 graph: here the fp32 one under its name."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(folder / FEATURES_GRAPH, folder / GRAPHS["int8"])
    write_manifest(folder, read_manifest(folder)["parity"])
    return folder


def test_the_precision_decides_where_it_runs(quantized, tmp_path):
    (encoder, _) = triton.write_repository(str(quantized), tmp_path / "out", "int8")
    text = (encoder / "config.pbtxt").read_text()
    assert "kind: KIND_CPU" in text


@pytest.fixture
def augself(capfd):
    def run(*arguments):
        try:
            main([str(argument) for argument in ("export", *arguments)])
        except SystemExit as end:
            return end.code, capfd.readouterr().err
        return 0, capfd.readouterr().out

    return run


def test_the_command_says_what_it_wrote(augself, tiny_model, tmp_path):
    status, said = augself("--model", tiny_model, "--triton", tmp_path / "out")
    assert status == 0 and str(tmp_path / "out/tiny_heads") in said
    status, said = augself("--model", tiny_model, "--triton", tmp_path / "out")
    assert status == 1 and "tiny exists: choose another repository" in said


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--triton", "{out}", "--precision", "fp16"], 1, "--quantize fp16 --calibration"),
        (["--triton", "{model}/triton"], 2, "lies in the model folder"),
        (["--triton", "{out}", "--quantize", "int8"], 2, "--quantize int8 first"),
        (["--precision", "int8"], 2, "--precision is read with --triton only"),
        (["--triton", "{model}/config.json"], 2, "is a file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(augself, tiny_model, tmp_path, options, status, message):
    given = [option.format(out=tmp_path / "out", model=tiny_model) for option in options]
    found, said = augself("--model", tiny_model, *given)
    assert found == status and message in said, said
    assert not (tmp_path / "out").exists()
