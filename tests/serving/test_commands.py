"""The commands, and what serving must never import."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from serving.http import server


@pytest.fixture
def pictures(tmp_path, pixels, encoded):
    """A colour picture and a gray one."""
    for name, array in (("a", pixels(1)), ("b", np.repeat(pixels(2)[..., :1], 3, axis=2))):
        (tmp_path / f"{name}.png").write_bytes(encoded(array))
    return tmp_path / "a.png", tmp_path / "b.png"


def test_predict_prints_a_table(augself, tiny_model, pictures):
    done = augself("predict", *pictures, "--model", tiny_model, "--device", "cpu")
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert lines[0].split() == [
        "augmentation",
        "name",
        "value",
        "unit",
        "standard",
        "error",
    ]
    assert len(lines) == 1 + 4 + 4 + 1
    (hue,) = (line for line in lines if " hue " in line)
    assert "turns" in hue and "gray" in hue


def test_predict_prints_json(augself, tiny_model, pictures):
    done = augself("predict", *pictures, "--model", tiny_model, "--device", "cpu", "--json")
    answer = json.loads(done.out)
    assert answer["model"] == "tiny"
    assert list(answer["differences"]) == ["crop", "color", "flip"]


def test_extract_says_what_it_did(augself, tiny_model, photo_folder, tmp_path):
    done = augself("extract", photo_folder, "--output", tmp_path / "out", "--model", tiny_model)
    assert done.status == 0
    assert "40 rows of 40 images, 0 unreadable" in done.out
    visible = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert visible == ["data", "errors.jsonl", "manifest.json"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("predict", "{a}", "{a}", "--model", "/nowhere/at/all"), 1, "no model at"),
        (
            ("predict", "{a}", "{text}", "--model", "{model}"),
            1,
            "text.png: the data is not an image",
        ),
        (("predict", "{a}", "/nowhere.png"), 2, "does not exist"),
        (("extract", "{empty}", "--output", "{empty}/x", "--model", "{model}"), 1, "no image"),
        (("serve", "--model", "{model}", "--model", "{model}"), 2, "same name"),
        (("serve", "--model", "{model}", "--limit", "size=1"), 2, "unknown limit"),
    ],
)
def test_errors_are_one_line(augself, tiny_model, pictures, tmp_path, arguments, status, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    names = {
        "a": pictures[0],
        "text": tmp_path / "text.png",
        "empty": tmp_path / "empty",
        "model": tiny_model,
    }
    done = augself(*(argument.format(**names) for argument in arguments))
    assert done.status == status
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_taken_port_is_named(augself, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = augself("serve", "--model", tiny_model, "--port", port)
    assert done.status == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in done.err


def test_an_answers_body_does_not_wait_for_its_head():
    """Connections send at once; else a body waits until the client has acknowledged the head."""
    listener = server.Address("127.0.0.1", 0).listen()
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as taken:
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("arguments", "package", "importers"),
    [
        (("serve",), "fastapi", ["serving.http.api"]),
        (
            ("extract", "{folder}", "--output", "{folder}/x"),
            "pyarrow",
            ["serving.extraction.api", "serving.extraction.pipeline"],
        ),
    ],
)
def test_a_missing_extra_is_named(
    augself, monkeypatch, tiny_model, pictures, arguments, package, importers
):
    for importer in importers:
        monkeypatch.delitem(sys.modules, importer, raising=False)
        parent, _, name = importer.rpartition(".")
        if parent in sys.modules:  # where it would be found else
            monkeypatch.delattr(sys.modules[parent], name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    names = {"a": pictures[0], "folder": pictures[0].parent, "model": tiny_model}
    done = augself(*(argument.format(**names) for argument in arguments))
    assert done.status == 1
    assert f"{package} is not installed: pip install 'augself-hub[serve]'" in done.err


SERVING = ("http.api", "http.server", "extraction.pipeline", "inference.client", "commands")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_serving_imports_no_training_library():
    loaded = loaded_after("import " + ", ".join(f"serving.{name}" for name in SERVING))
    assert loaded.isdisjoint({"torch", "torchvision", "transformers"})


def test_the_commands_import_nothing_heavy():
    loaded = loaded_after("import serving.commands")
    assert loaded.isdisjoint({"onnxruntime", "fastapi", "pyarrow", "numpy", "PIL", "gradio"})
