"""fit-heads: a stock encoder goes in and comes out untouched, with heads that have learned."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from augself_hub import AugSelfModel
from augself_hub.cli import main


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A stock DINOv2 that was made by somebody else, with a normalisation of its own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stock") / "dinov2"
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    processor = BitImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25])
    processor.save_pretrained(folder)
    return folder


def fit(encoder, photo_folder, output) -> None:
    options = ["--size", "28", "--batch-size", "8", "--epochs", "3", "--workers", "0"]
    main(["fit-heads", str(encoder), f"--data={photo_folder}", f"--output={output}", *options])


def test_the_encoder_is_published_as_it_came(encoder, photo_folder, tmp_path):
    output = tmp_path / "run"
    fit(encoder, photo_folder, output)
    model = AugSelfModel.from_pretrained(output / "model")
    for name, value in Dinov2Model.from_pretrained(encoder).state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert set(model.spec.heads) == {"crop", "color"}
    results = json.loads((output / "model/evaluation.json").read_text())["results"]
    assert {r["kind"] for r in results if "kind" in r} == {"crop", "color"}
    assert model.spec.provenance["command"].startswith(f"augself fit-heads {encoder.name} --data ")
    assert model.spec.provenance["encoder"] == encoder.name  # without the folders above it


def test_an_encoder_that_names_no_normalisation_is_refused(encoder, photo_folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    Dinov2Model.from_pretrained(encoder).save_pretrained(bare)
    with pytest.raises(SystemExit):
        fit(bare, photo_folder, tmp_path / "run")
    assert "does not say how its images are normalised" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
