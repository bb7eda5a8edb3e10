"""The engine against ONNX Runtime alone, and what it refuses."""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import onnxruntime
import pytest

from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.folder import read_manifest, write_manifest
from serving import providers
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
