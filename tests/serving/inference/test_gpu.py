"""The engine on a real GPU; skipped where there is none.

What the recorded sessions of test_providers.py cannot show: that the options are understood, that
the answers are the CPU's, that a compiled engine is found again.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from augself_hub.errors import AugSelfError
from serving.inference import provider_options, providers
from serving.inference.engine import Engine, load


def missing(device: str) -> str | None:
    """Why a device cannot be used here."""
    if reason := providers._load_error(provider_options.DRIVER):
        return reason
    try:
        provider_options.gpu_name()
    except AugSelfError as error:
        return str(error)
    return providers._missing(device)


GPUS = [
    pytest.param(device, marks=pytest.mark.skipif(reason is not None, reason=f"{device}: {reason}"))
    for device in ("cuda", "tensorrt")
    for reason in [missing(device)]
]


@pytest.fixture
def opened(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda device: load(str(tiny_model), device, 1)


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("n", [1, 3, 16, 70])
def test_answers_are_the_cpus(opened, tiny_model, pixels, device, n):
    gpu, cpu = opened(device), Engine(tiny_model, "cpu", 1)
    images = [pixels(i) for i in range(n)]
    found, expected = gpu.features(images), cpu.features(images)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 5e-3  # TF32 multiplies with 10 bits
    there, wanted = (e.differences(expected, expected[::-1]) for e in (gpu, cpu))
    for kind, values in wanted.items():
        np.testing.assert_allclose(there[kind], values, atol=0.02)


@pytest.mark.parametrize("device", GPUS)
def test_the_provider_is_the_one_asked_for(opened, device):
    assert device in opened(device).provider.lower()


@pytest.mark.parametrize("device", GPUS[1:])
def test_a_compiled_engine_is_found_again(opened, tmp_path, device):
    started = time.monotonic()
    opened(device)
    first = time.monotonic() - started
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")}
    opened(device)
    assert kept and time.monotonic() - started - first < first
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")}
