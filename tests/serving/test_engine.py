"""The engine against ONNX Runtime alone, and what it refuses."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.folder import (
    CONFIG,
    HEADS,
    HEADS_GRAPH,
    read_manifest,
    read_spec,
    write_manifest,
)
from serving import providers
from serving.commands import predict
from serving.cores import usable_cores
from serving.engine import Engine, load


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return load(str(tiny_model), "cpu", 1)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


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
    assert engine.sha256 == read_manifest(tiny_model)["files"]["onnx/model.onnx"]
    assert engine.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("graph", ["model.onnx", "heads.onnx"])
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


@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_refused(tiny_model, device):
    with pytest.raises(AugSelfError, match=rf"--device {device} cannot be used: .+"):
        load(str(tiny_model), device)


@pytest.fixture
def promised_gpu(monkeypatch):
    """Every library loads, as on a machine whose GPU is hidden: sessions still get the CPU."""
    if has_driver():
        pytest.skip("there is an NVIDIA driver")
    monkeypatch.setattr(providers, "_load_error", lambda library: None)


def test_the_session_is_asked_what_it_got(tiny_model, promised_gpu):
    with pytest.raises(AugSelfError, match="--device cuda cannot be used"):
        load(str(tiny_model), "cuda")


def test_auto_falls_back_aloud(tiny_model, promised_gpu, caplog):
    assert load(str(tiny_model), "auto").provider == "CPUExecutionProvider"
    assert "running on the CPU, CUDA cannot be used" in caplog.text


def test_two_installations_are_refused_for_a_gpu(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(providers, "_installed", lambda package: True)
    with pytest.raises(AugSelfError, match="pip uninstall both"):
        load(str(tiny_model), "cuda")
    assert load(str(tiny_model), "cpu").provider == "CPUExecutionProvider"
    assert "pip uninstall both" in caplog.text


def test_cores_are_the_least_of_affinity_and_quotas(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    inner = tmp_path / "cgroup/outer/inner"
    inner.mkdir(parents=True)
    unlimited = usable_cores(tmp_path / "cgroup", own)
    assert unlimited >= 1
    (inner / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == unlimited
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1
    (inner.parent / "cpu.max").write_text("20000 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1


def test_cores_in_a_container_of_the_first_version(tmp_path):
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/box\n1:memory:/box\n")
    box = tmp_path / "cgroup/cpu/box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_quota_us").write_text("-1\n")
    (box / "cpu.cfs_period_us").write_text("100000\n")
    unlimited = usable_cores(tmp_path / "cgroup", own)
    (box / "cpu.cfs_quota_us").write_text("100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1 <= unlimited


# -- Precision -------------------------------------------------------------------------------------


def test_the_precision_chooses_the_graph(tiny_model, tmp_path, pixels):
    """The int8 graph's own correctness is tests/augself_hub/modeling/test_quantize.py's."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    graph = onnx.load(folder / "onnx/model.onnx")
    graph.graph.initializer[0].raw_data = bytes(len(graph.graph.initializer[0].raw_data))
    onnx.save(graph, folder / "onnx/model_int8.onnx")
    write_manifest(folder)
    engines = [load(str(folder), "auto", 1, precision) for precision in ("fp32", "int8")]
    assert [e.precision for e in engines] == ["fp32", "int8"]
    files = read_manifest(folder)["files"]
    assert engines[1].sha256 == files["onnx/model_int8.onnx"] != engines[0].sha256
    a, b = (engine.features([pixels(0)]) for engine in engines)
    assert not np.allclose(a, b)


def test_a_folder_without_the_quantised_graph_says_how_to_make_it(tiny_model):
    mend = f"no onnx/model_int8.onnx: augself export --model {tiny_model} --quantize int8"
    with pytest.raises(ModelFolderError, match=mend):
        load(str(tiny_model), precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "0 threads cannot run a model: give at least 1"),
        ({"device": "tpu"}, "there is no device 'tpu': give one of auto, cpu, cuda, tensorrt"),
        ({"precision": "int4"}, "there is no precision 'int4': give one of fp32, int8, fp16"),
    ],
)
def test_what_there_is_not_is_refused(tiny_model, options, message):
    with pytest.raises(UsageError, match=message):
        load(str(tiny_model), **options)


# -- External data ---------------------------------------------------------------------------------


def with_external_data(tiny_model, folder, location="model.data"):
    """The tiny model, its encoder's weights in a file of their own, said to be at `location`."""
    shutil.copytree(tiny_model, folder)
    path = folder / "onnx/model.onnx"
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
    with pytest.raises(ModelFolderError, match=r"model\.onnx cannot be loaded: .+"):
        Engine(folder, "cpu", 1)
    if way == "link":
        with pytest.raises(ModelFolderError, match="is a link out of the folder"):
            load(str(folder), "cpu", 1)


# -- GPUs, through recorded sessions ---------------------------------------------------------------


class RecordedRuntime:
    """ONNX Runtime as it would be with a GPU: what it is asked is kept, the CPU computes."""

    __version__ = "1.31.1"
    __file__ = onnxruntime.__file__
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self) -> None:
        self.providers, self.preloaded, self.batches, self.memories = [], [], [], []

    def get_available_providers(self):
        return onnxruntime.get_available_providers()

    def preload_dlls(self, directory):
        self.preloaded.append(directory)

    def InferenceSession(self, path, options, providers, enable_fallback):
        assert enable_fallback == 0
        self.providers.append(dict(providers))
        return RecordedSession(self, path, [name for name, _ in providers])

    @property
    def OrtValue(self):
        return self

    def ortvalue_from_shape_and_type(self, shape, dtype, memory, device):
        self.memories.append((memory, device))
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)


class RecordedSession:
    def __init__(self, runtime, path, providers) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._runtime, self._providers = runtime, providers
        for name in ("get_inputs", "get_outputs", "io_binding"):
            setattr(self, name, getattr(self._session, name))

    def get_providers(self):
        return self._providers

    def run_with_iobinding(self, binding):
        self._session.run_with_iobinding(binding)
        self._runtime.batches.append(binding.get_outputs()[0].shape()[0])


class Library:
    """Whatever ctypes opens: an NVIDIA driver, TensorRT."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, ordinal):
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = b"NVIDIA Test-GPU 9000"
        return 0

    def getInferLibVersion(self):
        return 101300


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    runtime = RecordedRuntime()
    monkeypatch.setattr(providers, "_onnxruntime", lambda: runtime)
    monkeypatch.setattr(providers, "_load_error", lambda library: None)
    monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return runtime


def test_cuda_is_asked_for_with_its_options(tiny_model, gpu):
    engine = load(str(tiny_model), "cuda", 1)
    assert engine.provider == "CUDAExecutionProvider"
    assert gpu.preloaded == [""]
    assert list(gpu.providers[0]) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    cuda = gpu.providers[0]["CUDAExecutionProvider"]
    assert cuda["cudnn_conv_algo_search"] == "HEURISTIC"
    assert cuda["arena_extend_strategy"] == "kSameAsRequested"
    assert int(cuda["gpu_mem_limit"]) == 4 * 2**30
    assert set(gpu.memories) == {("cuda", 0)}


def test_every_bucket_runs_before_the_first_request(tiny_model, gpu):
    load(str(tiny_model), "cuda", 1)
    assert gpu.batches == [1, 4, 16, 32] * 2  # the encoder, the heads


def test_batches_are_filled_up_and_cut_again(tiny_model, gpu, pixels, expected):
    engine = load(str(tiny_model), "cuda", 1)
    gpu.batches.clear()
    for n in (1, 3, 5, 70):
        images = [pixels(i) for i in range(n)]
        wanted = np.stack([expected(image) for image in images])
        np.testing.assert_allclose(engine.features(images), wanted, rtol=1e-4, atol=1e-5)
    assert gpu.batches == [1, 4, 16, 32, 32, 16]


def test_threads_share_the_buffers_without_mixing_answers(tiny_model, gpu, pixels, expected):
    engine = load(str(tiny_model), "cuda", 1)
    found = {}

    def ask(number):
        found[number] = engine.features([pixels(number)])[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, features in found.items():
        np.testing.assert_allclose(features, expected(pixels(number)), rtol=1e-4, atol=1e-5)


def test_tensorrt_keeps_an_engine_for_each_model_version_and_gpu(tiny_model, gpu, tmp_path):
    engine = load(str(tiny_model), "tensorrt", 1)
    assert engine.provider == "TensorrtExecutionProvider"
    assert list(gpu.providers[0])[1:] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    encoder, heads = (asked["TensorrtExecutionProvider"] for asked in gpu.providers)
    cache = Path(encoder["trt_engine_cache_path"])
    assert cache.is_dir() and cache.parent == tmp_path / "cache/augself/tensorrt"
    assert cache.name == f"{engine.sha256}-ort1.31.1-trt101300-NVIDIA-Test-GPU-9000"
    assert heads["trt_engine_cache_path"] != str(cache)
    shapes = [encoder[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")]
    assert shapes == ["images:1x32x32x3", "images:16x32x32x3", "images:32x32x32x3"]
    width = engine.spec.features
    assert heads["trt_profile_min_shapes"] == f"features_a:1x{width},features_b:1x{width}"
    assert encoder["trt_fp16_enable"] == "False"


def test_a_driver_without_a_gpu_is_named(tiny_model, gpu, monkeypatch):
    monkeypatch.setattr(Library, "cuDeviceGet", lambda *_: 100)
    with pytest.raises(AugSelfError, match="the NVIDIA driver finds no GPU"):
        load(str(tiny_model), "tensorrt", 1)


def test_what_fails_at_the_first_run_is_a_refusal(tiny_model, gpu, monkeypatch, caplog):
    def fail(self, binding):
        raise RuntimeError("CUDA failure 2: out of memory\nand more")

    monkeypatch.setattr(RecordedSession, "run_with_iobinding", fail)
    with pytest.raises(AugSelfError, match="--device cuda cannot be used: CUDA failure 2: out of"):
        load(str(tiny_model), "cuda", 1)


def test_a_precision_that_does_not_fit_the_device_is_refused(tiny_model, tmp_path, gpu):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for precision in ("int8", "fp16"):
        shutil.copy(folder / "onnx/model.onnx", folder / f"onnx/model_{precision}.onnx")
    write_manifest(folder)
    with pytest.raises(UsageError, match="int8 is for the CPU"):
        load(str(folder), "cuda", 1, "int8")
    with pytest.raises(UsageError, match="fp16 is for GPUs"):
        load(str(folder), "cpu", 1, "fp16")
    load(str(folder), "tensorrt", 1, "fp16")
    encoder, heads = (asked["TensorrtExecutionProvider"] for asked in gpu.providers)
    assert (encoder["trt_fp16_enable"], heads["trt_fp16_enable"]) == ("True", "False")


def test_the_commands_take_a_precision(tiny_model, photographs):
    """The folder has no int8 graph, and the command that makes one is named."""
    options = ["--model", str(tiny_model), "--precision", "int8"]
    result = CliRunner().invoke(predict, [*map(str, photographs[:2]), *options])
    assert "--quantize int8 --calibration PHOTOGRAPHS" in str(result.exception)


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
