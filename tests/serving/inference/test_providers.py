"""Which provider runs a graph: refusals without a GPU, and what one would be asked with it."""

from __future__ import annotations

import ctypes
import shutil
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import write_manifest
from serving.inference import provider_options, providers
from serving.inference.engine import load


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


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


# -- GPUs, through recorded sessions ---------------------------------------------------------------


class RecordedRuntime:
    """ONNX Runtime as it would be with a GPU: what it is asked is kept, the CPU computes."""

    __version__ = "1.31.1"
    __file__ = onnxruntime.__file__
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions

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

    def run_with_iobinding(self, binding, options):
        self._session.run_with_iobinding(binding, options)
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
    for module in (providers, provider_options):
        monkeypatch.setattr(module, "onnxruntime", runtime)
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
    assert gpu.batches == [1, 4, 16, 32] * 2 + [4, 4]  # the encoder, the heads; test images


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
    def fail(self, binding, options):
        raise RuntimeError("CUDA failure 2: out of memory\nand more")

    monkeypatch.setattr(RecordedSession, "run_with_iobinding", fail)
    with pytest.raises(AugSelfError, match="--device cuda cannot be used: CUDA failure 2: out of"):
        load(str(tiny_model), "cuda", 1)


def test_a_precision_that_does_not_fit_the_device_is_refused(tiny_model, tmp_path, gpu):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for precision in ("int8", "fp16"):
        shutil.copy(folder / "onnx/features.onnx", folder / f"onnx/features_{precision}.onnx")
    write_manifest(folder)
    with pytest.raises(UsageError, match="int8 is for the CPU"):
        load(str(folder), "cuda", 1, "int8")
    with pytest.raises(UsageError, match="fp16 is for GPUs"):
        load(str(folder), "cpu", 1, "fp16")
    load(str(folder), "tensorrt", 1, "fp16")
    encoder, heads = (asked["TensorrtExecutionProvider"] for asked in gpu.providers)
    assert (encoder["trt_fp16_enable"], heads["trt_fp16_enable"]) == ("True", "False")
