"""The table of docs/convert.md: a file of each layout is made, converted, and computes the same.

timm's, torchvision's and lightly's files are made by those libraries; the others by hand, with the
names that their public documentation and released checkpoints have.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
from checkpoints import official_heads, save_official, shaken, torchvision_resnet
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from augself_hub import AugSelfModel
from augself_hub.errors import CheckpointError, UsageError
from augself_hub.modeling.convert import convert, model_from_checkpoint
from augself_hub.modeling.encoders import build_encoder

PAGE = Path(__file__).parents[3] / "docs/convert.md"


def images(size=64):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def under(prefix, module_or_state):
    state = module_or_state
    state = state.state_dict() if isinstance(state, nn.Module) else state
    return {prefix + name: value.clone() for name, value in state.items()}


def other(backbone):
    """The same architecture with other weights: what follows the trained encoder."""
    follower = copy.deepcopy(backbone)
    with torch.no_grad():
        for weight in follower.parameters():
            weight.add_(0.1)
    return follower


def official(backbone, path):
    save_official(path, backbone, official_heads(512, "crop"))


def plain(backbone, path):
    whole = copy.deepcopy(backbone)
    whole.fc = nn.Linear(512, 10)
    torch.save(whole.state_dict(), path)


def torchvision_training(backbone, path):
    torch.save({"model": backbone.state_dict(), "epoch": 3, "lr_scheduler": {"step": 1}}, path)


def timm_file(backbone, path):
    network = timm.create_model("resnet18", num_classes=10)
    network.load_state_dict(backbone.state_dict(), strict=False)
    save_file(network.state_dict(), path)


def timm_training(backbone, path):
    state = {"epoch": 1, "arch": "resnet18", "state_dict": backbone.state_dict(), "version": 2}
    torch.save(state | {"state_dict_ema": other(backbone).state_dict()}, path)


class LightlySimSiam(nn.Module):
    """As lightly's tutorial builds it."""

    def __init__(self, network):
        super().__init__()
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        self.backbone = nn.Sequential(*list(network.children())[:-1])
        self.projection_head = SimSiamProjectionHead(512, 32, 32)
        self.prediction_head = SimSiamPredictionHead(32, 16, 32)


def lightly(backbone, path):
    torch.save(LightlySimSiam(backbone).state_dict(), path)


def lightly_lightning(backbone, path):
    state = {"state_dict": LightlySimSiam(backbone).state_dict(), "epoch": 1}
    torch.save(state | {"pytorch-lightning_version": "2.6.6", "hyper_parameters": {}}, path)


def lightly_byol(backbone, path):
    from lightly.models.utils import deactivate_requires_grad

    module = LightlySimSiam(backbone)
    module.backbone_momentum = nn.Sequential(*list(other(backbone).children())[:-1])
    deactivate_requires_grad(module.backbone_momentum)
    torch.save(module.state_dict(), path)


def solo_learn(backbone, path):
    state = under("backbone.", backbone) | under("momentum_backbone.", other(backbone))
    state |= under("projector.0.", nn.Linear(512, 32)) | under("classifier.", nn.Linear(512, 10))
    torch.save({"state_dict": state, "epoch": 9, "hyper_parameters": {"method": "byol"}}, path)


def solo_learn_old(backbone, path):
    state = under("encoder.", backbone) | under("projector.0.", nn.Linear(512, 32))
    torch.save({"state_dict": state, "epoch": 9}, path)


def moco(backbone, path):
    state = under("module.encoder_q.", backbone) | under("module.encoder_k.", other(backbone))
    state |= under("module.encoder_q.fc.", nn.Linear(512, 128))
    state |= under("module.encoder_k.fc.", nn.Linear(512, 128))
    state |= {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1).long()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state}, path)


def moco_v3(backbone, path):
    state = under("module.base_encoder.", backbone) | under("module.momentum_encoder.",
                                                            other(backbone))  # fmt: skip
    state |= under("module.base_encoder.fc.0.", nn.Linear(512, 64))
    state |= under("module.predictor.0.", nn.Linear(64, 64))
    torch.save({"epoch": 100, "state_dict": state, "scaler": {}}, path)


def simsiam(backbone, path):
    state = under("module.encoder.", backbone) | under("module.encoder.fc.0.", nn.Linear(512, 64))
    state |= under("module.predictor.0.", nn.Linear(64, 16))
    torch.save({"epoch": 100, "arch": "resnet18", "state_dict": state}, path)


def swav(backbone, path):
    state = under("module.", backbone) | under("module.projection_head.0.", nn.Linear(512, 64))
    torch.save(state | under("module.prototypes.", nn.Linear(64, 30, bias=False)), path)


def swav_training(backbone, path):
    state = under("module.", backbone) | under("module.prototypes.", nn.Linear(64, 30, bias=False))
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path)


def dino(backbone, path):
    torch.save(backbone.state_dict(), path)


def dino_training(backbone, path):
    head = nn.Linear(512, 64)
    student = under("module.backbone.", other(backbone)) | under("module.head.mlp.0.", head)
    teacher = under("backbone.", backbone) | under("head.mlp.0.", head)
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, path)


def wrapped(prefix):
    return lambda backbone, path: torch.save(under(prefix, backbone), path)


LAYOUTS = {
    "official AugSelf": official,
    "torchvision": plain,
    "torchvision, its training": torchvision_training,
    "timm": timm_file,
    "timm, its training": timm_training,
    "lightly": lightly,
    "lightly, by Lightning": lightly_lightning,
    "lightly, with a momentum encoder": lightly_byol,
    "solo-learn": solo_learn,
    "solo-learn before 1.0.3": solo_learn_old,
    "MoCo v1, v2": moco,
    "MoCo v3": moco_v3,
    "SimSiam": simsiam,
    "SwAV": swav,
    "SwAV, its training": swav_training,
    "DINO, backbone": dino,
    "DINO, its training": dino_training,
    "DistributedDataParallel": wrapped("module."),
    "torch.compile": wrapped("_orig_mod."),
    "both": wrapped("module._orig_mod."),
}


def test_the_page_lists_them_all():
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [row for row in rows if row not in ("made by", "---")] == list(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_file_of_this_layout_keeps_its_features(layout, tmp_path):
    """timm's and lightly's are whole ResNet-18s, made by these libraries; the rest are shallow."""
    real = layout == "timm" or "lightly" in layout
    backbone = shaken(resnet18()) if real else torchvision_resnet()
    backbone.fc = nn.Identity()
    path = tmp_path / ("x.safetensors" if layout == "timm" else "x.pth")
    LAYOUTS[layout](backbone, path)
    model = model_from_checkpoint(path, "imagenet")
    torch.testing.assert_close(model(images()).features, backbone(images()), rtol=1e-4, atol=1e-5)


def test_what_is_left_out_is_said(tmp_path, caplog):
    moco(torchvision_resnet(), tmp_path / "moco.pth")
    with caplog.at_level("INFO"):
        convert(tmp_path / "moco.pth", "imagenet", tmp_path / "model")
    assert "the encoder is state_dict.encoder_q; left out: arch, encoder_k, epoch, fc, queue," in (
        caplog.text
    )
    AugSelfModel.from_pretrained(tmp_path / "model")


FIRST = "conv1.weight"
REFUSED = {
    "a weight missing": (
        lambda b: under("backbone.", {k: v for k, v in b.items() if k != "layer2.0.bn1.weight"}),
        r"the weight layer2\.0\.bn1\.weight is missing",
    ),
    "a weight too many": (
        lambda b: under("backbone.", b | {"layer9.weight": torch.zeros(1)}),
        "'layer9.weight' has no place",
    ),
    "an unknown part": (
        lambda b: b | {"neck.weight": torch.zeros(1)},
        "'neck.weight' has no place",
    ),
    "NaN": (
        lambda b: b | {"bn1.weight": b["bn1.weight"] * float("nan")},
        r"the weight bn1\.weight is not finite",
    ),
    "infinity": (
        lambda b: b | {"layer1.0.bn1.running_var": b["layer1.0.bn1.running_var"] + float("inf")},
        "is not finite",
    ),
    "two of a kind": (
        lambda b: under("left.", b) | under("right.", b),
        r"it holds 2 ResNets \(left\., right\.\): keep one of them",
    ),
    "only followers": (
        lambda b: under("momentum_backbone.", b) | under("teacher.", b),
        "it holds 2 ResNets",
    ),
    "a weight twice": (lambda b: b | under("module.", {FIRST: b[FIRST]}), "has a weight twice"),
    "a ViT": (
        lambda b: {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(3, 1)},
        r"no ResNet of torchvision's kind \(a ViT\)",
    ),
    "a 3 x 3 stem": (
        lambda b: under("backbone.", b | {FIRST: torch.zeros(64, 3, 3, 3)}),
        "3 x 3 stem for small images cannot be converted",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_does_not_arrive_is_refused_by_name(way, tmp_path):
    change, expected = REFUSED[way]
    torch.save(change(torchvision_resnet().state_dict()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=expected) as caught:
        convert(tmp_path / "x.pth", "imagenet", tmp_path / "model")
    assert "\n" not in str(caught.value) and not (tmp_path / "model").exists()


def test_a_file_is_no_encoder_before_it_was_converted(tmp_path):
    plain(torchvision_resnet(), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"is a file: make a folder of it, augself convert"):
        build_encoder(str(tmp_path / "x.pth"), 32)
