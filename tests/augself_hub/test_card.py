"""The model card: every block in it runs, every figure in it was measured."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from augself_hub import card
from augself_hub.folder import CONFIG, EVALUATION, read_spec

RESULTS = [
    {"task": "held-out pairs", "name": "crop y R^2", "metric": "r_squared", "value": 0.5,
     "baseline": 0.0},
    {"task": "linear probe", "name": "stamps", "metric": "accuracy", "value": 0.25,
     "compared_with": {
        "untrained encoder": {
            "value": 0.125, "difference": 0.125, "confidence_interval": [-0.05, 0.3],
        },
     }},
]  # fmt: skip


@pytest.fixture
def measured(tiny_model, tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / EVALUATION).write_text(json.dumps({"protocol": "As told.", "results": RESULTS}))
    return folder


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["tiny_model", "matched_model"])
def test_every_python_block_runs(kind, request, photographs, tmp_path, monkeypatch):
    folder = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    for name, photograph in zip(("a.jpg", "b.jpg"), photographs, strict=False):
        shutil.copy(photograph, name)
    exif = Image.Exif()
    exif[0x0112] = 6  # as phones save pictures that are held upright
    Image.open(photographs[0]).save("a.jpg", exif=exif)
    names: dict = {}
    for block in blocks(card.render(folder, str(folder)), "python"):
        exec(block, names)
    assert names["features"].shape == (2, 128)
    first = names["model"](**names["pixels"]).pooler_output.flatten(1).detach().numpy()
    np.testing.assert_allclose(names["features"][0], first[0], rtol=1e-4, atol=1e-5)
    assert names["difference"]["color"].shape == (1, 4)


def test_the_server_block_runs(tiny_model, photographs, tmp_path):
    shutil.copy(photographs[0], tmp_path / "a.jpg")
    (block,) = blocks(card.render(tiny_model, str(tiny_model)), "sh")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve, curl = block.replace("7860", port).strip().splitlines()
    command = [sys.executable, "-m", "augself_hub.cli", *serve.split()[1:]]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health/ready")
        answer = subprocess.run(curl.split(), cwd=tmp_path, capture_output=True, check=True)
    finally:
        server.terminate()
        server.wait(20)
    assert len(json.loads(answer.stdout)["data"][0]["embedding"]) == 128


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} never answered")


def test_unmeasured_cells_stay_empty(measured):
    text = card.render(measured)
    assert "| crop y R^2 | 0.5 | 0 |" in text
    assert "| linear probe | this model | baseline | untrained encoder |" in text
    assert "| stamps | 0.25 |  | 0.125 (+0.125, -0.05 to +0.3) |" in text
    assert "| color | hue | turns |  |" in text


def test_a_table_holds_together(measured):
    """Names may hold bars; a blank line between rows would end the table."""
    barred = [{**RESULTS[0], "name": "a|b"}, {**RESULTS[0], "name": "c"}]
    (measured / EVALUATION).write_text(json.dumps({"protocol": "As told.", "results": barred}))
    rows = (
        "| held-out pairs | this model | baseline |\n"
        "| --- | --- | --- |\n"
        "| a\\|b | 0.5 | 0 |\n"
        "| c | 0.5 | 0 |\n"
    )
    assert f"## Evaluation\n\nAs told.\n\n{rows}\n## Limits" in card.render(measured)


def test_metadata_is_what_the_hub_reads(measured):
    header = yaml.safe_load(card.render(measured, "me/mine").split("---")[1])
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert header["license"] == "other"
    assert "augself" in header["tags"]
    assert header["metrics"] == ["accuracy", "r_squared"]
    (entry,) = header["model-index"]
    assert entry["name"] == "me/mine"
    values = [m["value"] for result in entry["results"] for m in result["metrics"]]
    assert values == [0.5, 0.25]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("hf:org/birds:train", "org/birds"),
        ("hf:org/birds", "org/birds"),
        ("org/birds@v1.0", "org/birds"),
        ("birds", None),
        ("stl10:data/stl10", None),
        ("made/here", None),
        ("photographs of birds (docs/data.md)", None),
    ],
)
def test_data_set_and_base_model_of_the_hub_are_named_and_no_others(
    measured, given, named, tmp_path, monkeypatch
):
    (tmp_path / "made/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    provenance = {"data": given, "encoder": given}
    trained = dataclasses.replace(read_spec(measured), provenance=provenance)
    (measured / CONFIG).write_text(trained.to_json())
    header = yaml.safe_load(card.render(measured).split("---")[1])
    assert header.get("datasets") == (named and [named])
    assert header.get("base_model") == named


def test_huggingface_hub_reads_every_field(measured):
    """Strictly: what it cannot read it would otherwise drop."""
    data = ModelCard(card.render(measured, "me/mine"), ignore_metadata_errors=False).data
    assert data.model_name == "me/mine" and data.pipeline_tag == "image-feature-extraction"
    assert [r.metric_value for r in data.eval_results] == [0.5, 0.25]
    assert data.tags == ["augself", "self-supervised-learning", "vision", "onnx"]


def test_the_summary_says_what_the_folder_holds(measured):
    text = card.render(measured)
    with safe_open(measured / "model.safetensors", "np") as weights:
        numbers = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert f"ResNetModel, {numbers / 1e6:.3g} million parameters |" in text
    assert "| in | pictures, of each the middle square at 32 x 32 pixels |" in text
    assert "| out | 128 features, not scaled to length 1 |" in text
    assert "| of two pictures | what takes one to the other: crop, color, flip |" in text
    on_disk = sum(
        p.stat().st_size for p in measured.rglob("*") if p.suffix in (".safetensors", ".onnx")
    )
    megabytes = float(re.search(r"([\d.]+) MB in all, with graphs .* \(fp32\) \|", text)[1])
    assert megabytes == pytest.approx(on_disk / 1e6, abs=0.05)
    for graph in (measured / "onnx").iterdir():
        graph.unlink()
    assert re.search(r"MB in all \|$", card.render(measured), re.M)
    assert "ONNX Runtime" not in card.render(measured)


def test_how_to_read_a_difference_is_said_of_what_is_there(measured):
    text = card.render(measured)
    assert "brightness +0.69 makes b twice as bright" in text and "Mirrored: the prob" in text
    spec = read_spec(measured)
    colour = dataclasses.replace(spec, heads={"color": spec.heads["color"]})
    (measured / CONFIG).write_text(colour.to_json())
    assert "Mirrored: the prob" not in card.render(measured)
    assert "twice as bright" in card.render(measured)
    (measured / CONFIG).write_text(dataclasses.replace(spec, convention="paper").to_json())
    assert "How to read" not in card.render(measured)


def test_a_model_nobody_measured_has_no_evaluation(tiny_model):
    text = card.render(tiny_model)
    assert "## Evaluation" not in text
    assert "model-index" not in text


def test_what_cannot_be_seen_is_among_the_limits(tiny_model):
    assert "saturation and hue where a picture is gray" in card.render(tiny_model)
