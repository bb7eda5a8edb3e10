"""A disk that is full while weights are written: one line, and nothing is left there.

The limit on a file's size stands for it, in a process of its own: safetensors renames what it has
written, so that /dev/full would be no device afterwards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

WRITES = """
import json, resource, sys
from pathlib import Path
from augself_hub.errors import AugSelfError
from augself_hub.folder import changed_folder
from augself_hub.modeling.convert import convert, export_weights
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.opening import open_network

model, checkpoint, wrapped, place = map(Path, sys.argv[1:])
opened = AugSelfModel.from_pretrained(model)

def heads():
    with changed_folder(model) as stage:
        (stage / "augself/model.safetensors").unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        opened.write_heads(stage)

ways = {
    "save_pretrained": lambda: opened.save_pretrained(place / "saved"),
    "convert": lambda: convert(checkpoint, "stl10", place / "converted"),
    "torchvision": lambda: export_weights(resnet, "torchvision", place / "a.pth"),
    "timm": lambda: export_weights(resnet, "timm", place / "a.safetensors"),
    "a wrapped folder": lambda: open_network(wrapped),
    "changed": heads,
}
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resnet = place.parent / "resnet"
convert(checkpoint, "stl10", resnet)
for name, write in ways.items():
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if name == "changed" else 4096, hard))
    try:
        write()
        print(json.dumps([name, "", ""]))
    except Exception as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def said(tiny_model, tmp_path_factory):
    """Way of writing -> (error's class, its text), and what the ways have left behind."""
    from torchvision.models import resnet18

    top = tmp_path_factory.mktemp("full")
    save_file(resnet18().state_dict(), top / "checkpoint.safetensors")
    wrapped, place, model = top / "wrapped", top / "place", top / "model"
    shutil.copytree(tiny_model, model)
    wrapped.mkdir()
    place.mkdir()
    shutil.copy(model / "config.json", wrapped)
    weights = {f"module.{n}": v for n, v in load_file(model / "model.safetensors").items()}
    save_file(weights, wrapped / "model.safetensors")
    code = [sys.executable, "-c", WRITES, model, top / "checkpoint.safetensors", wrapped, place]
    done = subprocess.run([*map(str, code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    left = sorted(path.name for path in [*place.iterdir(), *top.glob(".*")])
    return {name: (kind, text) for name, kind, text in lines}, left


@pytest.mark.parametrize(
    "way",
    ["save_pretrained", "convert", "torchvision", "timm", "a wrapped folder", "changed"],
)
def test_it_is_one_line_that_says_what_to_do(said, way):
    kind, text = said[0][way]
    assert kind == "AugSelfError", text
    assert "cannot be written (" in text and text.endswith("make room, then try again")
    assert "\n" not in text


def test_nothing_is_left_behind(said):
    assert said[1] == []
