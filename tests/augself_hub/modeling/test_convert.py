"""Conversion: features survive it in both directions."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from checkpoints import WIDTHS, official_heads, save_official, shaken, torchvision_resnet
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet
from transformers import AutoModel, ConvNextConfig, ResNetConfig

from augself_hub import AugSelfModel, hub
from augself_hub.errors import CheckpointError, UsageError
from augself_hub.modeling.commands import convert as command
from augself_hub.modeling.convert import (
    PRETRAIN_DATA,
    convert,
    encoder_from_torchvision,
    export_weights,
    torchvision_state,
)


def difference(a, b):
    """Largest norm-relative difference over the rows."""
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


def images(size=64):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


# -- In --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "depths", "dim"),
    [(resnet.BasicBlock, (2, 1, 1, 2), 512), (resnet.Bottleneck, (1, 2, 1, 1), 2048)],
    ids=["basic", "bottleneck"],
)
@torch.no_grad()
def test_an_official_checkpoint_keeps_features_and_heads(block, depths, dim, tmp_path, caplog):
    backbone = torchvision_resnet(block, depths)
    heads = official_heads(dim, *WIDTHS)
    path = save_official(tmp_path / "official.pth", backbone, heads)
    with caplog.at_level("INFO"):
        convert(path, "stl10", tmp_path / "model")
    assert "left out: " in caplog.text and "ss_predictor" not in caplog.text
    model = AugSelfModel.from_pretrained(tmp_path / "model")
    x = images()
    ya, yb = model(x).features, model(x.flip(0)).features
    assert difference(ya, backbone(x)) < 1e-5
    for kind, raw in model.heads(ya, yb).items():
        expected = heads[kind](torch.cat([backbone(x), backbone(x.flip(0))], dim=1))
        assert difference(raw, expected) < 1e-5, kind
    assert model.spec.convention == "paper" and model.preprocessing.size == 96
    assert model.preprocessing.mean == (0.43, 0.42, 0.39)
    policy = model.spec.policy
    assert (policy.saturate, policy.order) == ("hsv", "batch")  # as official runs drew views


@pytest.mark.parametrize("place", ["backbone", "state_dict"])
def test_a_file_with_a_backbone_is_not_official_for_that(place, tmp_path):
    """Others name their encoder so, or its architecture beside the weights."""
    network = torchvision_resnet(resnet.BasicBlock, (1, 1, 1, 1))
    content = {"backbone": "resnet18", "epoch": 3, place: network.state_dict()}
    torch.save(content, tmp_path / "theirs.pth")
    spec = convert(tmp_path / "theirs.pth", "imagenet100", tmp_path / "model").spec
    assert (spec.convention, spec.policy.saturate) == ("relative", "luma")
    assert spec.provenance["converted_from"] == "ResNet weights"


def true_crop_head(dim):
    """A head that answers y = tanh(3 (a0 - b0)) and x = tanh(a0 + b0) of the features' first
    numbers: y turns with the order of the pair and x does not, as where one view is mirrored."""
    head = nn.Sequential(
        nn.Linear(2 * dim, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU(),
        nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 4),
    ).eval()  # fmt: skip
    for weight in head.parameters():
        nn.init.zeros_(weight)
    for norm in (head[1], head[4]):
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)  # the statistics are 0 and 1
    head[0].weight.data[0, 0] = head[0].weight.data[1, dim] = 1  # a0, b0: features are not negative
    head[3].weight.data.copy_(torch.eye(2))
    head[6].weight.data[:2] = torch.tensor([[3.0, -3.0], [1.0, 1.0]])
    return head


@torch.no_grad()
def test_a_checkpoint_that_knows_the_official_x_answers_it(tmp_path):
    """Both orders have the same x where the flips differ: averaging them would answer 0."""
    backbone = torchvision_resnet()
    path = save_official(tmp_path / "official.pth", backbone, {"crop": true_crop_head(512)})
    model = convert(path, "stl10", tmp_path / "model")
    xa, xb = images(96), 2 * images(96).flip(0)
    a0, b0 = backbone(xa)[:, 0], backbone(xb)[:, 0]
    answers = AugSelfModel.from_pretrained(tmp_path / "model").predict_difference(xa, xb)["crop"]
    torch.testing.assert_close(answers[:, 0], torch.tanh(3 * (a0 - b0)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers[:, 1], torch.tanh(a0 + b0), atol=1e-5, rtol=1e-4)
    assert answers[:, 1].min() > 0.1 and answers[:, 0].abs().min() > 0.01
    torch.testing.assert_close(model.predict_difference(xa, xb)["crop"], answers)


def test_the_pretraining_set_gives_size_normalisation_and_policy(tmp_path):
    path = save_official(
        tmp_path / "official.pth", torchvision_resnet(), official_heads(512, "crop", "rot")
    )
    model = convert(path, "imagenet100", tmp_path / "model")
    assert (model.preprocessing.size, model.spec.policy.blur_kernel) == (224, 23)
    assert model.preprocessing.std == (0.229, 0.224, 0.225)
    assert (model.spec.policy.rot, model.spec.policy.sol) == (0.5, 0.0)
    assert list(model.spec.heads) == ["crop", "rot"]


def test_the_folder_says_where_it_came_from(tmp_path):
    path = save_official(tmp_path / "official.pth", torchvision_resnet(), {})
    convert(path, "stl10", tmp_path / "model")
    provenance = AugSelfModel.from_pretrained(tmp_path / "model").spec.provenance
    assert provenance["file"] == "official.pth"
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["license"] == "other" and provenance["pretraining_data"] == "stl10"
    card = (tmp_path / "model/README.md").read_text()
    assert "license: other" in card and provenance["sha256"] in card


@torch.no_grad()
def test_a_checkpoint_of_distributed_training_in_half_precision(tmp_path):
    backbone = torchvision_resnet().half()
    path = save_official(tmp_path / "official.pth", backbone, {}, prefix="module.")
    encoder = convert(path, "stl10", tmp_path / "model").encoder
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    features = encoder(images()).pooler_output.flatten(1)
    assert difference(features, backbone.float()(images())) < 1e-5


def save_torch(state, path):
    torch.save(state, path)


def save_before_1_6(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_training(state, path):
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("save", "name"),
    [(save_torch, "a.pth"), (save_before_1_6, "a.pth"), (save_training, "a.pth"),
     (save_file, "a.safetensors")],
)  # fmt: skip
@torch.no_grad()
def test_torchvision_weights_in_every_file_they_come_in(save, name, tmp_path):
    network = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=5)  # with its classifier
    save(shaken(network).state_dict(), tmp_path / name)
    model = convert(tmp_path / name, "imagenet", tmp_path / "model")
    network.fc = nn.Identity()
    assert difference(model(images()).features, network(images())) < 1e-5
    assert not model.spec.heads and model.spec.convention == "relative"


@torch.no_grad()
def test_every_torchvision_resnet_is_read_off_its_shapes():
    for name, dim in [
        ("resnet18", 512),
        ("resnet34", 512),
        ("resnet50", 2048),
        ("resnet101", 2048),
    ]:
        with torch.device("meta"):
            shapes = resnet.__dict__[name]().state_dict()
        encoder = encoder_from_torchvision({k: torch.zeros(v.shape) for k, v in shapes.items()})
        assert encoder.config.hidden_sizes[-1] == dim
        with torch.device("meta"):
            assert set(resnet.__dict__[name]().state_dict()) >= set(torchvision_state(encoder))


@torch.no_grad()
def test_timm_weights_come_in_and_go_out(tmp_path):
    timm = pytest.importorskip("timm")
    for number, name in enumerate(["resnet18", "resnet26"]):
        network = shaken(timm.create_model(name, num_classes=3))
        save_file(network.state_dict(), tmp_path / f"{number}.safetensors")
        model = convert(tmp_path / f"{number}.safetensors", "imagenet", tmp_path / f"{number}")
        network.reset_classifier(0)
        assert difference(model(images()).features, network(images())) < 1e-5
        export_weights(tmp_path / f"{number}", "timm", tmp_path / f"out{number}.safetensors")
        again = timm.create_model(
            name, num_classes=0, checkpoint_path=str(tmp_path / f"out{number}.safetensors")
        ).eval()
        assert difference(again(images()), model(images()).features) < 1e-5


# -- Out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@torch.no_grad()
def test_a_model_folder_becomes_torchvision_weights(layer_type, tmp_path):
    block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[layer_type]
    save_torch(torchvision_resnet(block).state_dict(), tmp_path / "a.pth")
    model = convert(tmp_path / "a.pth", "imagenet", tmp_path / "model")
    export_weights(tmp_path / "model", "torchvision", tmp_path / "out.pth")
    network = resnet.ResNet(block, [1, 1, 1, 1]).eval()
    network.fc = nn.Identity()
    network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    assert difference(network(images()), model(images()).features) < 1e-5
    assert network.bn1.num_batches_tracked == 7


def test_the_timm_file_has_torchvision_s_names(tmp_path):
    save_torch(torchvision_resnet().state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", "imagenet", tmp_path / "model")
    export_weights(tmp_path / "model", "timm", tmp_path / "new/out.safetensors")
    out = load_file(tmp_path / "new/out.safetensors")
    assert set(out) == set(torchvision_resnet().state_dict())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"embedding_size": 16}, "embedding_size is 16"),
        ({"hidden_sizes": [8, 16, 32, 64]}, "hidden_sizes is"),
        ({"hidden_sizes": [256, 512], "depths": [1, 1]}, "hidden_sizes is"),
    ],
)
def test_what_torchvision_has_no_network_for_is_refused(changed, reason):
    config = ResNetConfig(**{"depths": [1, 1, 1, 1], **changed})
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    with pytest.raises(CheckpointError, match=reason):
        torchvision_state(encoder)


def test_only_a_resnet_goes_out():
    with torch.device("meta"):
        encoder = AutoModel.from_config(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))
    with pytest.raises(CheckpointError, match="this is a convnext"):
        torchvision_state(encoder)


# -- The command -----------------------------------------------------------------------------------


def test_the_command_converts_both_ways(tmp_path, augself):
    path = save_official(
        tmp_path / "official.pth", torchvision_resnet(), official_heads(512, "color", "crop")
    )
    there = augself("convert", path, "--pretrain-data", "stl10", "--output", tmp_path / "model")
    assert (there.status, there.out) == (
        0,
        f"wrote {tmp_path / 'model'}: 512 features, heads: crop, color\n",
    )
    assert hub.resolve(tmp_path / "model") == tmp_path / "model"
    back = augself("convert", tmp_path / "model", "--to", "timm", "--output", tmp_path / "t.st")
    assert back.status == 0 and "for timm" in back.out
    torch.testing.assert_close(
        load_file(tmp_path / "t.st")["conv1.weight"],
        torchvision_resnet().state_dict()["conv1.weight"],
    )


@pytest.mark.parametrize("arguments", [[], ["--pretrain-data", "stl10", "--to", "timm"]])
def test_one_direction_must_be_given(arguments, tmp_path, augself):
    run = augself("convert", "a.pth", *arguments, "--output", tmp_path / "model")
    assert run.status == 2 and "give one of" in run.err


@pytest.mark.parametrize("direction", [["--pretrain-data", "stl10"], ["--to", "torchvision"]])
def test_an_output_that_exists_is_kept(direction, tmp_path, augself):
    save_torch(torchvision_resnet().state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", "stl10", tmp_path / "model")
    (tmp_path / "there").write_text("kept")
    source = tmp_path / ("a.pth" if direction[0] == "--pretrain-data" else "model")
    run = augself("convert", source, *direction, "--output", tmp_path / "there")
    assert run.status == 1 and "there exists" in run.err and run.err.count("\n") == 1
    assert (tmp_path / "there").read_text() == "kept"


def test_the_command_offers_every_pretraining_set():
    option = next(p for p in command.params if p.name == "pretrain_data")
    assert list(option.type.choices) == list(PRETRAIN_DATA)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="unknown pretraining set 'cifar': use stl10, imagenet100"):
        convert(tmp_path / "a.pth", "cifar", tmp_path / "model")
    with pytest.raises(UsageError, match="unknown library 'jax': use torchvision, timm"):
        export_weights(None, "jax", tmp_path / "a.pth")


# -- The guide -------------------------------------------------------------------------------------

GUIDE = Path(__file__).parents[3] / "docs/convert.md"


def test_the_guide_runs_as_it_is_written(tmp_path, monkeypatch, augself, local_hub):
    """Its blocks in order, with a checkpoint in the place of the one to download."""
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    save_official("simsiam.pth", torchvision_resnet(), official_heads(512, "crop", "color"))
    variables = {}
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        if language == "python":
            exec(block, variables)
            continue
        for line in block.splitlines():
            run = augself(*shlex.split(line)[1:])
            assert run.status == 0, (line, run.err)
    assert variables["features"].shape == (1, 512)
    assert set(variables["difference"]) == {"crop", "color"}
    assert "onnx/features.onnx" in local_hub.files("your-name/simsiam-stl10")
