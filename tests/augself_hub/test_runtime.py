"""One ONNX Runtime: none, two or a broken one is a line that says what to install.

The environments are real ones of Python without its site-packages (-S), or ours with packages
beside it that were written by hand as pip writes them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = str(next((ROOT / "serving/demo/examples").glob("*.jpg")))
ONE = "pip install 'augself-hub[gpu]'"


def package(place: Path, name: str, *files: str) -> Path:
    """A package in a folder, as pip records it."""
    record = place / f"{name.replace('-', '_')}-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (record / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return place


def importing(*places: Path) -> str:
    """What the import of ONNX Runtime raises where nothing is installed but what lies there."""
    code = "try: import augself_hub.runtime\nexcept Exception as e: print(type(e).__name__, e)"
    path = os.pathsep.join(map(str, (ROOT, *places)))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_none_is_named_with_the_three_there_are():
    assert importing() == (
        f"MissingExtra onnxruntime is not installed: {ONE} (for GPUs and CPUs), or [cpu] (smaller) "
        "or [openvino]"
    )


@pytest.mark.parametrize("others", [["onnxruntime-openvino"], ["onnxruntime", "onnxruntime-qnn"]])
def test_two_are_refused_by_name(tmp_path, others):
    for name in others:
        package(tmp_path, name, "onnxruntime/__init__.py")
    command = [sys.executable, "-m", "augself_hub.cli", "predict", PICTURE, PICTURE]
    path = os.pathsep.join(map(str, (ROOT, tmp_path)))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1 and line.startswith("error: ")
    assert all(name in line for name in others)
    assert " are both installed and hold the same files: pip uninstall -y " in line and ONE in line


def test_a_package_of_like_name_is_no_second_one(tmp_path):
    package(tmp_path, "onnxruntime-genai", "onnxruntime_genai/__init__.py")
    command = [sys.executable, "-c", "from augself_hub.runtime import onnxruntime, installed; "
               "print(onnxruntime.InferenceSession.__name__, installed())"]  # fmt: skip
    path = os.pathsep.join(map(str, (ROOT, tmp_path)))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.startswith("InferenceSession ['onnxruntime"), done.stderr
    assert "genai" not in done.stdout


@pytest.mark.parametrize("left", ["nothing", "folders"])
def test_one_whose_files_another_took_along_is_to_be_installed_again(tmp_path, left):
    package(tmp_path, "onnxruntime-gpu", "onnxruntime/__init__.py")
    if left == "folders":
        (tmp_path / "onnxruntime/capi").mkdir(parents=True)
    said = importing(tmp_path)
    assert said.startswith("AugSelfError onnxruntime-gpu cannot be used (")
    assert said.endswith(": pip install --force-reinstall --no-deps onnxruntime-gpu")


def test_no_extra_but_the_three_brings_one():
    """So that none of the others decides for the user; `all` and `cuda` are gpu's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    bring = {extra for extra, wanted in extras.items() if "onnxruntime" in " ".join(wanted)}
    assert bring == {"gpu", "cpu", "openvino", "cuda"}
    (everything,) = extras["all"]
    assert "[gpu," in everything
