"""Encoders: named presets of stock transformers architectures, and any other stock encoder.

Features are AutoModel(...).pooler_output.flatten(1) for every architecture, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    PretrainedConfig,
    PreTrainedModel,
    RegNetConfig,
    ResNetConfig,
)

from augself_hub import hub
from augself_hub.configs import image_statistics, read_json
from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.folder import CONFIG
from augself_hub.modeling.maps import MapPlace, features_and_map
from augself_hub.modeling.opening import open_network
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.modeling.vit import as_dinov2
from augself_hub.preprocess import Preprocessing

log = logging.getLogger(__name__)
POOLERS_THAT_ARE_NOT_POOLING = ("vit", "deit", "beit", "vit_msn", "vit_mae")


def _resnet(depths: list[int], layer: str, widths: tuple[int, ...], **_: Any) -> PretrainedConfig:
    return ResNetConfig(
        embedding_size=64, hidden_sizes=list(widths), depths=depths, layer_type=layer
    )


def _small_resnet(width: int, **_: Any) -> PretrainedConfig:
    """ResNet-18 with `width` instead of 64 channels in its first stage."""
    sizes = [width, 2 * width, 4 * width, 8 * width]
    return ResNetConfig(
        embedding_size=width, hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic"
    )


def _regnet(stem: int, widths: tuple[int, ...], depths: tuple[int, ...], **_: Any) -> Any:
    """3x3 stem, no max-pool: keeps more of a small image than a ResNet does."""
    return RegNetConfig(
        embedding_size=stem,
        hidden_sizes=list(widths),
        depths=list(depths),
        groups_width=widths[0],
        layer_type="x",
    )


def _vit(width: int, heads: int, *, size: int) -> PretrainedConfig:
    """A ViT whose pooler is the class token: stock ViT's pooler is a dense layer and tanh (C2)."""
    return Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=12,
        image_size=size,
        patch_size=16,
        use_mask_token=False,
    )


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
ENCODERS: dict[str, Callable[..., PretrainedConfig]] = {
    "resnet18": partial(_resnet, [2, 2, 2, 2], "basic", _BASIC),
    "resnet34": partial(_resnet, [3, 4, 6, 3], "basic", _BASIC),
    "resnet50": partial(_resnet, [3, 4, 6, 3], "bottleneck", _BOTTLENECK),
    "resnet101": partial(_resnet, [3, 4, 23, 3], "bottleneck", _BOTTLENECK),
    "resnet18-w16": partial(_small_resnet, 16),
    "resnet18-w24": partial(_small_resnet, 24),
    "resnet18-w32": partial(_small_resnet, 32),
    "regnet-tiny": partial(_regnet, 32, (48, 96, 192, 384), (1, 2, 3, 1)),
    "regnet-small": partial(_regnet, 32, (64, 128, 256, 512), (1, 2, 4, 1)),
    "convnext-tiny": lambda **_: ConvNextConfig(),
    "vit-small": partial(_vit, 384, 6),
    "vit-base": partial(_vit, 768, 12),
}


class Encoder(nn.Module):
    """A stock transformers model that answers with pooled features.

    Args:
        network: any architecture with a `pooler_output` that is a pooling and nothing more.
        size: side of the images it will see, in pixels.

    Attributes:
        dim: D, the width of the features.
        place: where each forward takes a map as well; None: nowhere.
        maps: those of the forwards so far, (N, C, S, S) each, until somebody takes them out.

    Raises:
        UsageError: the architecture has no such pooler_output.
    """

    place: MapPlace | None = None

    def __init__(self, network: PreTrainedModel, size: int) -> None:
        super().__init__()
        refuse_unpooled(network.config)
        self.network = network
        self.dim = _width(network, size)
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, D) features."""
        if self.place is None:
            return pooled(self.network, x)
        y, m = features_and_map(self.network, x, self.place)
        self.maps.append(m)
        return y


def pooled(network: nn.Module, x: Tensor) -> Tensor:
    """The definition of features, for every architecture (contract C2)."""
    features: Tensor = network(pixel_values=x).pooler_output.flatten(1)
    return features


def build_encoder(name: str, size: int) -> Encoder:
    """A preset by name, newly initialised; or a folder or Hub id, with its weights, to continue.

    A stock ViT becomes a Dinov2 model with the same class token (`as_dinov2`), of CLIP and SigLIP
    the vision tower is taken (see `opening`), of an AugSelf model the encoder.

    Args:
        name: a key of ENCODERS, a folder, `org/name` or `org/name@revision`.
        size: side of the images in pixels (a ViT's positions depend on it).

    Raises:
        UsageError: neither a preset nor a folder nor a Hub id, or an architecture that cannot be
            used.
        ModelFolderError: not every weight arrives; names what is missing.
    """
    if name in ENCODERS:
        network = AutoModel.from_config(ENCODERS[name](size=size))
        if network.config.model_type in _CONVOLUTIONAL:
            network.apply(_default_init)
            network.apply(_zero_init_residual)
        return Encoder(network, size)
    folder = _fetched(name)
    if (folder / CONFIG).is_file():
        log.info(
            "%s is an AugSelf model: its encoder alone is taken, for images of %d pixels; its "
            "heads and matcher are left out", name, size,
        )  # fmt: skip
    network = open_network(folder)
    return Encoder(as_dinov2(network) if network.config.model_type == "vit" else network, size)


def preprocessing_of(name: str, size: int) -> Preprocessing:
    """How an encoder wants its images normalised: as its own processor says, else as ImageNet's.

    Args:
        name: as `build_encoder` takes it.
        size: side of the images in pixels.

    Raises:
        ModelFolderError: a folder or Hub id that says nothing of it.
    """
    if name in ENCODERS:
        return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD)
    folder = _fetched(name)
    for file, part in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),  # of a CLIP that transformers 5 saved
        ("config.json", "pretrained_cfg"),  # of timm
    ):
        config = read_json(folder / file) if (folder / file).is_file() else {}
        config = config if part is None else config.get(part) or {}
        if part == "pretrained_cfg":
            config = {f"image_{name}": config[name] for name in ("mean", "std") if name in config}
        if "image_mean" in config or "image_std" in config:
            return Preprocessing(size, *image_statistics(config, folder / file))
    raise ModelFolderError(
        f"encoder {name} does not say how its images are normalised: it needs a "
        "preprocessor_config.json with image_mean and image_std"
    )


def _fetched(name: str) -> Path:
    """A folder, or a Hub id's files that make an encoder, in the cache."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise UsageError(
            f"encoder {name} is a file: make a folder of it, augself convert {name} "
            "--pretrain-data ... --output FOLDER"
        )
    if not hub.is_hub_id(name):
        raise UsageError(f"unknown encoder {name!r}: use {', '.join(ENCODERS)}, a folder or Hub id")
    return hub.fetch_encoder(name)


def refuse_unpooled(config: PretrainedConfig) -> None:
    """Refuse, by name, a pooler that is a trained layer: its output is not what is published."""
    if config.model_type in POOLERS_THAT_ARE_NOT_POOLING:
        raise UsageError(
            f"encoder type {config.model_type!r} has a dense layer for a pooler: use vit-small, "
            "vit-base or a DINOv2"
        )


def _width(network: PreTrainedModel, size: int) -> int:
    training = network.training
    network.eval()
    kind = network.config.model_type
    try:
        with torch.no_grad():
            output = network(pixel_values=torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever an architecture raises for images of this size, or any
        reason = " ".join(str(error).split())
        raise UsageError(
            f"encoder type {kind!r} does not take images of {size} pixels alone: {reason}"
        ) from error
    network.train(training)
    features = getattr(output, "pooler_output", None)
    if features is None:
        raise UsageError(f"encoder type {kind!r} has no pooler_output")
    return int(features.flatten(1).shape[1])


def _default_init(module: nn.Module) -> None:
    """torch's own defaults for Conv2d and Linear, as the official code re-initialises ResNets.

    Transformers and ConvNext keep the truncated normal their own papers ask for.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        module.reset_parameters()


def _zero_init_residual(module: nn.Module) -> None:
    """Each residual branch starts at zero, so the block starts as its shortcut."""
    if type(module).__name__ in _RESIDUAL_BLOCKS:
        *_, last = (m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
        nn.init.zeros_(last.weight)


_CONVOLUTIONAL = ("resnet", "regnet")
_RESIDUAL_BLOCKS = ("ResNetBasicLayer", "ResNetBottleNeckLayer", "RegNetXLayer")
