"""AugSelfModel from folders good and bad: dtype, device, parts that are missing or do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from augself_hub import AugSelfModel
from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.folder import CONFIG, ENCODER, HEADS, write_manifest
from augself_hub.modeling.encoders import build_encoder


@pytest.fixture
def model(tiny_model):
    return AugSelfModel.from_pretrained(tiny_model)


@pytest.fixture
def spoilt(tiny_model, tmp_path):
    """A folder to spoil: each of these tests then writes a manifest that agrees with it."""
    return shutil.copytree(tiny_model, tmp_path / "spoilt")


def test_dtype_and_device_are_those_of_both_parts(tiny_model):
    model = AugSelfModel.from_pretrained(tiny_model, dtype=torch.float16, device="meta")
    for part in (model.encoder, model.heads):
        assert {(p.dtype, p.device.type) for p in part.parameters()} == {(torch.float16, "meta")}
    assert not model.training
    assert model.folder == tiny_model


# -- Heads missing ---------------------------------------------------------------------------------


def test_without_heads_there_are_features_and_no_differences(spoilt, model, tmp_path):
    (spoilt / HEADS).unlink()
    write_manifest(spoilt)
    bare = AugSelfModel.from_pretrained(spoilt)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(bare(x).features, model(x).features, rtol=0, atol=0)
    with pytest.raises(AugSelfError, match=r"no AugSelf heads \(augself/model\.safetensors is"):
        bare.predict_difference(x, x)
    bare.save_pretrained(tmp_path / "again")
    assert AugSelfModel.from_pretrained(tmp_path / "again").spec == bare.spec


# -- Parts that do not fit, though the manifest agrees with them -----------------------------------


def edit_json(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def narrow(weights):
    name = min(weights)
    weights[name] = weights[name][..., :-1].clone()


SPOILT = {
    "encoder cut short": (lambda f: cut_short(f / ENCODER), "the encoder cannot be loaded"),
    "encoder of text": (lambda f: (f / ENCODER).write_text("{}" * 9), "encoder cannot be loaded"),
    "encoder of another shape": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(depths=[1, 1, 1, 1])),
        r"model\.safetensors does not fit config\.json: unexpected keys encoder\.stages",
    ),
    "encoder of other widths": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(hidden_sizes=[16, 16, 32, 64])),
        r"model\.safetensors does not fit config\.json: mismatched keys .*encoder\.stages",
    ),
    "encoder without a weight": (
        lambda f: edit_weights(f / ENCODER, lambda w: w.pop(min(w))),
        r"model\.safetensors does not fit config\.json: missing keys embedder",
    ),
    "encoder with a weight too many": (
        lambda f: edit_weights(f / ENCODER, lambda w: w.update(extra=torch.zeros(1))),
        r"model\.safetensors does not fit config\.json: unexpected keys extra",
    ),
    "architecture from the future": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(model_type="resnet9000")),
        "encoder cannot be loaded.*resnet9000",
    ),
    "code of its own": (
        lambda f: edit_json(
            f / "config.json",
            lambda c: c.update(model_type="mine", auto_map={"AutoModel": "code.Mine"}),
        ),
        r"config\.json: auto_map is",
    ),
    "heads cut short": (lambda f: cut_short(f / HEADS), r"augself/model\.safetensors does not fit"),
    "heads of another shape": (
        lambda f: edit_weights(f / HEADS, narrow),
        r"augself/model\.safetensors does not fit augself/config\.json: .*size mismatch",
    ),
    "heads of other kinds": (
        lambda f: edit_weights(f / HEADS, lambda w: w.pop(min(w))),
        r"augself/model\.safetensors does not fit augself/config\.json: .*Missing key",
    ),
    "heads for other features": (
        lambda f: edit_json(f / CONFIG, lambda c: c.update(features=64)),
        r"augself/model\.safetensors does not fit",
    ),
    "an unknown field": (
        lambda f: edit_json(f / CONFIG, lambda c: c.update(warp=1)),
        "unknown field 'warp': upgrade",
    ),
    "a format from the future": (
        lambda f: edit_json(f / CONFIG, lambda c: c.update(format=99)),
        "is not of format 1 or 2: upgrade",
    ),
    "another preprocessing": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(resample=2)),
        r"preprocessor_config\.json must resize .* bicubic",
    ),
    "no preprocessing": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json is missing",
    ),
    "no encoder": (lambda f: (f / ENCODER).unlink(), "the encoder cannot be loaded"),
    "no architecture": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
}


@pytest.mark.parametrize("way", SPOILT)
def test_parts_that_do_not_fit_are_refused_in_one_line(spoilt, way):
    spoil, expected = SPOILT[way]
    spoil(spoilt)
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=expected) as caught:
        AugSelfModel.from_pretrained(spoilt)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_model_is_refused_when_it_is_used(spoilt):
    network = build_encoder("resnet18-w24", 32).network
    network.save_pretrained(spoilt)
    write_manifest(spoilt)
    with pytest.raises(ModelFolderError, match=r"gives 192 features and .*config\.json says 128"):
        AugSelfModel.from_pretrained(spoilt)(torch.zeros(1, 3, 32, 32))


def test_a_folder_of_pickles_never_reaches_transformers(spoilt, monkeypatch):
    weights = load_file(spoilt / ENCODER)
    (spoilt / ENCODER).unlink()
    torch.save(weights, spoilt / "pytorch_model.bin")
    write_manifest(spoilt)
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin may be a pickle"):
        AugSelfModel.from_pretrained(spoilt)
    monkeypatch.setattr("augself_hub.folder.PICKLES", ())  # and the second wall, were it not seen
    with pytest.raises(ModelFolderError, match="the encoder cannot be loaded"):
        AugSelfModel.from_pretrained(spoilt)


# -- torch's own tools -----------------------------------------------------------------------------


def test_exported_it_answers_the_same_for_any_batch(model):
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {0: batch}}
    )
    for n in (1, 5):
        x = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x).features, model(x).features)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@torch.no_grad()
def test_compiled_whole_it_answers_the_same(model):
    xa, xb = torch.randn(2, 3, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(xa).features, model(xa).features)
    difference = torch.compile(model.predict_difference, backend="eager", fullgraph=True)
    torch.testing.assert_close(difference(xa, xb), model.predict_difference(xa, xb))
