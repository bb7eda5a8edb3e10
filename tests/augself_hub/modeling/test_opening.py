"""Every weight of an encoder's folder arrives, or the folder is refused in one line.

The folders are written by transformers and timm themselves; what must arrive is compared with what
their own networks compute.
"""

import json
import re
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
)

from augself_hub import AugSelfModel, hub
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.modeling.encoders import build_encoder, preprocessing_of
from augself_hub.modeling.model import AugSelfHeads
from augself_hub.modeling.opening import open_network
from augself_hub.preprocess import Preprocessing

RESNET = ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
)
TOKENS = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
VIT = ViTConfig(**TOKENS, intermediate_size=128, image_size=32, patch_size=16)
TOWER = {**TOKENS, "intermediate_size": 64}
TEXT = {
    **TOWER,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}
CLIP = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
SIGLIP = SiglipConfig(text_config=TEXT, vision_config=VISION)
NORMALISED = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}


def images(size=32):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(kind, config, seed=3):
    torch.manual_seed(seed)
    return kind(config).eval()


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(folder, change):
    """The folder's weights, each by `change`: (name, value) -> the new name and value, or None."""
    path = folder / "model.safetensors"
    pairs = (change(name, value) for name, value in load_file(path).items())
    save_file(dict(p for p in pairs if p), path, metadata={"format": "pt"})


# -- Who computes what transformers' and timm's own networks do ------------------------------------


def of_resnet(folder):
    network = made(ResNetModel, RESNET)
    network.save_pretrained(folder)
    return lambda x: network(pixel_values=x).pooler_output.flatten(1)


def of_a_classifier(folder):
    network = made(ResNetForImageClassification, RESNET)
    network.save_pretrained(folder)
    return lambda x: network.resnet(pixel_values=x).pooler_output.flatten(1)


def of_a_dinov2_classifier(folder):
    config = Dinov2Config(**TOKENS, image_size=32, patch_size=16)
    network = made(Dinov2ForImageClassification, config)
    network.save_pretrained(folder)
    return lambda x: network.dinov2(pixel_values=x).last_hidden_state[:, 0]


def of_a_vit_without_pooler(folder):
    network = made(ViTForImageClassification, VIT)
    network.save_pretrained(folder)
    return lambda x: network.vit(pixel_values=x).last_hidden_state[:, 0]


def of_clip(folder):
    network = made(CLIPModel, CLIP)
    network.save_pretrained(folder)
    return lambda x: network.vision_model(pixel_values=x).pooler_output


def of_clips_vision_model(folder):
    compute = of_clip(folder)
    open_network(folder).save_pretrained(folder)
    return compute


def of_siglip(folder):
    network = made(SiglipModel, SIGLIP)
    network.save_pretrained(folder)
    return lambda x: network.vision_model(pixel_values=x).pooler_output


def of_timm_as_transformers_saves_it(folder):
    network = made(TimmWrapperModel, TimmWrapperConfig(architecture="resnet10t", num_labels=0))
    network.save_pretrained(folder)
    return lambda x: network.timm_model(x)


def of_timm_as_timm_pushes_it(folder):
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=10).eval()
    save_for_hf(network, folder, model_args={"num_classes": 10}, safe_serialization=True)
    return lambda x: network.forward_head(network.forward_features(x), pre_logits=True)


def of_a_wrapper(prefix):
    def save(folder):
        compute = of_resnet(folder)
        reweigh(folder, lambda name, value: (prefix + name, value))
        return compute

    return save


def in_shards(folder):
    network = made(ResNetModel, RESNET)
    network.save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    return lambda x: network(pixel_values=x).pooler_output.flatten(1)


OPENED = {
    "transformers' ResNet": of_resnet,
    "in shards": in_shards,
    "a ResNet classifier": of_a_classifier,
    "a DINOv2 classifier": of_a_dinov2_classifier,
    "a ViT without its pooler": of_a_vit_without_pooler,
    "CLIP": of_clip,
    "CLIP's vision model": of_clips_vision_model,
    "SigLIP": of_siglip,
    "timm, saved by transformers": of_timm_as_transformers_saves_it,
    "timm, pushed by timm": of_timm_as_timm_pushes_it,
    "module.": of_a_wrapper("module."),
    "_orig_mod.": of_a_wrapper("_orig_mod."),
    "module._orig_mod.": of_a_wrapper("module._orig_mod."),
}


@pytest.mark.parametrize("what", OPENED)
@torch.no_grad()
def test_every_weight_arrives(tmp_path, what):
    compute = OPENED[what](tmp_path)
    encoder = build_encoder(str(tmp_path), 32).eval()
    torch.testing.assert_close(encoder(images()), compute(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["folder", "Hub"])
def test_of_an_augself_model_the_heads_are_left_out_and_that_is_said(
    place, tiny_model, local_hub, caplog
):
    name = str(tiny_model)
    if place == "Hub":
        name = "somebody/tiny"
        hub.push(tiny_model, name)
    with caplog.at_level("INFO"):
        encoder = build_encoder(name, 48)
    assert encoder.dim == 128
    said = f"{name} is an AugSelf model: its encoder alone is taken, for images of 48 pixels"
    assert said in caplog.text and "its heads and matcher are left out" in caplog.text


def test_what_is_left_out_is_said(tmp_path, caplog):
    of_clip(tmp_path)
    with caplog.at_level("INFO"):
        build_encoder(str(tmp_path), 32)
    assert "its vision tower is taken" in caplog.text
    assert "left out, no part of the encoder: logit_scale, text_model" in caplog.text


@pytest.mark.parametrize("what", ["CLIP", "SigLIP", "timm, pushed by timm"])
@torch.no_grad()
def test_what_is_published_of_it_loads_again(tmp_path, what):
    compute = OPENED[what](tmp_path / "theirs")
    encoder = build_encoder(str(tmp_path / "theirs"), 32)
    spec = Spec("relative", Policy(size=32), {}, features=encoder.dim)
    half = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    AugSelfModel(encoder.network, AugSelfHeads(spec), spec, half).save_pretrained(tmp_path / "ours")
    again = AugSelfModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again(images()).features, compute(images()), rtol=1e-5, atol=1e-5)


# -- How images are normalised ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", NORMALISED),
        ("processor_config.json", {"image_processor": NORMALISED}),
        ("config.json", {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}),
    ],
)
def test_the_normalisation_is_the_encoders_own(tmp_path, file, content):
    (tmp_path / file).write_text(json.dumps(content))
    found = preprocessing_of(str(tmp_path), 32)
    assert found == Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_a_normalisation_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": ["a", "b", "c"]}))
    with pytest.raises(ModelFolderError, match="image_mean is 'a'"):
        preprocessing_of(str(tmp_path), 32)


# -- Refused ---------------------------------------------------------------------------------------


def spoil(change):
    def save(folder):
        of_resnet(folder)
        reweigh(folder, change)

    return save


def configured(**changes):
    def save(folder):
        of_resnet(folder)
        edit(folder, **changes)

    return save


def with_a_file(name, content=b"{}"):
    def save(folder):
        of_resnet(folder)
        (folder / name).write_bytes(content)

    return save


def pickled(folder):
    of_resnet(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def with_a_large_header(folder):
    of_resnet(folder)
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


FIRST = "embedder.embedder.convolution.weight"
REFUSED = {
    "another prefix": (
        spoil(lambda n, v: (f"net.{n}", v)),
        r"does not fit config\.json: missing keys embedder\.\S+ and \d+ others",
    ),
    "a prefix of some": (
        spoil(lambda n, v: (f"module.{n}" if n < "encoder" else n, v)),
        r"does not fit config\.json: missing keys embedder\.embedder",
    ),
    "a weight missing": (
        spoil(lambda n, v: None if n == FIRST else (n, v)),
        rf"missing keys {FIRST}",
    ),
    "a weight too many": (
        spoil(lambda n, v: (f"more.{n}" if n == FIRST else n, v)),
        rf"missing keys {FIRST}",
    ),
    "another shape": (
        spoil(lambda n, v: (n, v[:, :2].contiguous() if n == FIRST else v)),
        rf"mismatched keys {FIRST}",
    ),
    "NaN": (
        spoil(lambda n, v: (n, v * float("nan") if n == FIRST else v)),
        rf"the weight {FIRST} is not finite",
    ),
    "an adapter": (with_a_file("adapter_config.json"), "is an adapter's"),
    "a kernel": (configured(attn_implementation="org/kernel"), "attn_implementation is"),
    "quantised": (configured(quantization_config={"quant_method": "x"}), "quantization_config"),
    "1e9 layers": (configured(depths=[10**9, 1, 1, 1]), "depths is 1000000000, more than"),
    "1e6 layers": (configured(depths=[10**6, 1, 1, 1]), r"depths is 1000000: .* \d+ weights"),
    "1e9 labels": (configured(num_labels=10**9), "num_labels is 1000000000, more than"),
    "1e6 wide": (configured(hidden_sizes=[10**6] * 4), r"describes [\d,]+ weights, the folder"),
    "a pickle": (pickled, r"pytorch_model\.bin is a pickle: save it as safetensors"),
    "no configuration": (lambda folder: None, r"config\.json is missing"),
    "a header of 2^62 bytes": (with_a_large_header, r"model\.safetensors: .*[Hh]eader"),
    "deep JSON": (with_a_file("config.json", b"[" * 10**6), r"config\.json cannot be read"),
    "of text": (with_a_file("model.safetensors", b"text" * 99), "encoder cannot be loaded"),
    "an index that leads out": (
        lambda folder: (
            in_shards(folder),
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "../a.safetensors"}})
            ),
        ),
        r"index\.json names '\.\./a\.safetensors'",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_does_not_arrive_is_refused_in_one_line(tmp_path, way):
    save, expected = REFUSED[way]
    save(tmp_path)
    started = time.monotonic()
    with pytest.raises(ModelFolderError, match=expected) as caught:
        build_encoder(str(tmp_path), 32)
    assert time.monotonic() - started < 30
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_that_is_never_built_is_given_up(tmp_path, monkeypatch):
    of_resnet(tmp_path)

    def endless(*_, **__):
        while True:
            time.sleep(0.001)

    monkeypatch.setattr("augself_hub.modeling.opening.LOAD_SECONDS", 0.5)
    monkeypatch.setattr("augself_hub.modeling.opening.AutoModel.from_config", endless)
    with pytest.raises(ModelFolderError, match=r"takes longer than 0\.5 s to build"):
        open_network(tmp_path)


def test_a_model_of_text_is_refused_for_its_own_reason(tmp_path):
    from transformers import BertConfig, BertModel

    made(BertModel, BertConfig(**TOWER, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="'bert' does not take images of 32 pixels alone"):
        build_encoder(str(tmp_path), 32)


def test_fit_heads_and_pretrain_refuse_what_does_not_arrive(tmp_path, photo_folder, augself):
    of_resnet(tmp_path / "encoder")
    (tmp_path / "encoder/preprocessor_config.json").write_text(json.dumps(NORMALISED))
    reweigh(tmp_path / "encoder", lambda n, v: (f"net.{n}", v))
    common = ("--data", photo_folder, "--output", tmp_path / "run", "--size=32", "--workers=0")
    common += ("--batch-size=8",)
    for words in (
        ("fit-heads", tmp_path / "encoder", *common),
        ("pretrain", "--encoder", tmp_path / "encoder", "--method=simsiam", *common),
    ):
        shown = augself(*words)
        assert shown.status == 1 and "does not fit config.json: missing keys" in shown.err
        assert not (tmp_path / "run/model").exists()


# -- What may be saved -----------------------------------------------------------------------------


class LoRA(torch.nn.Module):
    """As peft wraps a layer: the weights get other names."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.Conv2d(base_layer.in_channels, 2, 1, bias=False)

    def forward(self, x):
        return self.base_layer(x)


def test_an_adapter_that_was_not_merged_is_not_saved(tiny_model, tmp_path):
    model = AugSelfModel.from_pretrained(tiny_model)
    stem = model.encoder.embedder.embedder
    stem.convolution = LoRA(stem.convolution)
    with pytest.raises(AugSelfError, match=r"embedder\.convolution\..* is not a stock ResNetModel"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["encoder", "heads"])
def test_weights_that_are_not_finite_are_not_saved(tiny_model, tmp_path, part):
    model = AugSelfModel.from_pretrained(tiny_model)
    with torch.no_grad():
        next(getattr(model, part).parameters()).fill_(float("inf"))
    with pytest.raises(AugSelfError, match=f"the {part}: the weight .* is not finite"):
        model.save_pretrained(tmp_path / "out")


# -- from_pretrained as transformers has it --------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", torch.float16), ("auto", torch.float32), (torch.bfloat16, torch.bfloat16),
     ("torch.float16", torch.float16)],
)  # fmt: skip
def test_dtype_is_taken_as_transformers_takes_it(tiny_model, dtype, expected):
    for option in ("dtype", "torch_dtype"):
        model = AugSelfModel.from_pretrained(tiny_model, **{option: dtype})
        assert {p.dtype for p in model.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["int8", "half precision", torch.int64, "nn"])
def test_no_such_dtype_is_refused(tiny_model, dtype):
    with pytest.raises(UsageError, match=r"dtype .*: give float32, float16, bfloat16 or auto"):
        AugSelfModel.from_pretrained(tiny_model, dtype=dtype)


@pytest.mark.parametrize(
    ("option", "value"),
    [("device_map", "auto"), ("quantization_config", {}), ("attn_implementation", "org/kernel"),
     ("trust_remote_code", True), ("variant", "fp16"), ("use_safetensors", "yes")],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(tiny_model, option, value):
    with pytest.raises(UsageError, match=re.escape(f"cannot honour {option}={value!r}")):
        AugSelfModel.from_pretrained(tiny_model, **{option: value})
    AugSelfModel.from_pretrained(tiny_model, device_map=None, trust_remote_code=False)


def test_a_subfolder(tiny_model):
    place = Path(tiny_model)
    model = AugSelfModel.from_pretrained(place.parent, subfolder=place.name)
    assert model.folder == place
    with pytest.raises(UsageError, match="not in the model's folder"):
        AugSelfModel.from_pretrained(place, subfolder="../x")
