"""Export: the graphs answer as torch does, or are refused."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from augself_hub import AugSelfModel
from augself_hub.errors import AugSelfError
from augself_hub.folder import (
    ENCODER_GRAPH,
    HEADS_GRAPH,
    MANIFEST,
    read_manifest,
    read_spec,
    verify,
    write_manifest,
)
from augself_hub.modeling import export
from augself_hub.precision import GRAPHS


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_the_graph_takes_uint8_images_and_answers_as_torch(tiny_model, batch):
    model = AugSelfModel.from_pretrained(tiny_model)
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = model(x).features.numpy()
    (features,) = session(tiny_model / ENCODER_GRAPH).run(["features"], {"images": images})
    error = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-4


def test_the_heads_graph_names_its_outputs_by_kind(tiny_model):
    outputs = [o.name for o in session(tiny_model / HEADS_GRAPH).get_outputs()]
    assert outputs == list(read_spec(tiny_model).heads)


def test_the_manifest_records_the_parity(tiny_model):
    parity = read_manifest(tiny_model)["parity"]
    assert 0 < parity["features"] < 1e-4
    assert 0 < parity["heads"] < 1e-4


def test_a_graph_that_differs_is_refused_and_the_folder_kept(tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = (folder / MANIFEST).read_text()
    monkeypatch.setattr(
        export,
        "_run",
        lambda path, inputs: [value * 1.001 for value in session(path).run(None, inputs)],
    )
    with pytest.raises(AugSelfError, match="differ from torch"):
        export.export_folder(folder)
    assert (folder / MANIFEST).read_text() == before
    assert verify(folder) == folder
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_graphs_carry_no_path_of_the_machine_that_made_them(tiny_model):
    for graph in (ENCODER_GRAPH, HEADS_GRAPH):
        assert b".py" not in (tiny_model / graph).read_bytes()


def test_the_same_weights_give_the_same_bytes(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    export.export_folder(folder)
    for graph in (ENCODER_GRAPH, HEADS_GRAPH):
        assert (folder / graph).read_bytes() == (tiny_model / graph).read_bytes()


@pytest.mark.parametrize("change", [False, True], ids=["same weights", "other weights"])
def test_a_quantised_graph_stays_only_with_the_weights_it_was_made_from(
    tiny_model, tmp_path, change
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(folder / ENCODER_GRAPH, folder / GRAPHS["int8"])
    record = {"source": export.file_sha256(folder / ENCODER_GRAPH)}
    write_manifest(folder, read_manifest(folder)["parity"] | {"int8": record})
    if change:
        model = AugSelfModel.from_pretrained(folder)
        with torch.no_grad():
            next(model.encoder.parameters()).mul_(1.01)
        model.encoder.save_pretrained(folder)
        write_manifest(folder)
    export.export_folder(folder)
    assert (folder / GRAPHS["int8"]).is_file() is not change
    assert read_manifest(folder)["parity"].get("int8") == (None if change else record)
    assert verify(folder) == folder
