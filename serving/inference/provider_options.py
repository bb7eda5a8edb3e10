"""The options of each of ONNX Runtime's providers, for one graph."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from augself_hub.cores import usable_cores
from augself_hub.errors import AugSelfError
from augself_hub.runtime import onnxruntime

if TYPE_CHECKING:
    from serving.inference.providers import Graph

BUCKETS = (1, 4, 16, 32)  # rows of a run on a GPU; the last is the most anywhere
_WINDOWS = sys.platform == "win32"
DRIVER = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
_TENSORRT = "nvinfer_10.dll" if _WINDOWS else "libnvinfer.so.10"
_GPU_MEMORY = 4 << 30  # bytes of ONNX Runtime's arena, and of TensorRT's scratch space


def openvino(graph: Graph, threads: int) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html

    A stream is a run of so many threads; there is one for every run that the cores have room for.
    """
    streams = max(1, usable_cores() // threads)
    cpu = {
        # Left to itself it takes what it finds fastest.
        "INFERENCE_PRECISION_HINT": "bf16" if graph.precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": streams * threads,
        "NUM_STREAMS": streams,
        # Each session would pin its threads from the first core on: two would share that one.
        "ENABLE_CPU_PINNING": False,
    }
    return {
        "device_type": "CPU",
        "num_of_threads": str(streams * threads),  # also how many runs may begin
        "load_config": json.dumps({"CPU": cpu}),
    }


def cuda(graph: Graph, threads: int) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html"""
    return {
        "device_id": "0",
        "gpu_mem_limit": str(_GPU_MEMORY),
        "arena_extend_strategy": "kSameAsRequested",  # the other one doubles
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries them all, a batch size at a time
    }


def tensorrt(graph: Graph, threads: int) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html

    Compiling takes minutes: the result is kept. The profile spans the buckets, so that no batch
    compiles again.
    """
    cache = str(_engine_cache(graph.sha256))
    profiles = {
        f"trt_profile_{name}_shapes": _profile(graph, rows)
        for name, rows in (("min", BUCKETS[0]), ("opt", BUCKETS[-2]), ("max", BUCKETS[-1]))
    }
    return {
        "device_id": "0",
        "trt_max_workspace_size": str(_GPU_MEMORY),
        "trt_fp16_enable": str(graph.precision == "fp16"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        **profiles,
    }


def _profile(graph: Graph, rows: int) -> str:
    """As in `images:16x64x64x3`."""
    shapes = (f"{n}:{'x'.join(map(str, (rows, *shape)))}" for n, shape in graph.inputs.items())
    return ",".join(shapes)


def _engine_cache(sha256: str) -> Path:
    """A folder for one model, versions and GPU: an engine fits no other."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    tensorrt = int(ctypes.CDLL(_TENSORRT).getInferLibVersion())
    versions = f"ort{onnxruntime.__version__}-trt{tensorrt}"
    folder = caches / "augself" / "tensorrt" / f"{sha256}-{versions}-{gpu_name()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def gpu_name() -> str:
    """Of the first GPU, as a file may be named; asked of the driver, which is there."""
    driver, device, name = ctypes.CDLL(DRIVER), ctypes.c_int(), ctypes.create_string_buffer(128)
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
    ):
        raise AugSelfError("the NVIDIA driver finds no GPU")
    return re.sub(r"[^A-Za-z0-9]+", "-", name.value.decode()).strip("-")


OPTIONS: dict[str, Callable[[Graph, int], dict[str, str]]] = {
    "cpu": lambda graph, threads: {},
    "openvino": openvino,
    "cuda": cuda,
    "tensorrt": tensorrt,
}
