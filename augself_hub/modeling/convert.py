"""Foreign ResNet checkpoints -> a model folder, and a model folder -> foreign ResNets.

    official AugSelf .pth           -> encoder, and heads of convention `paper`
    a ResNet of torchvision's kind  -> encoder; of whom and where it lies: see `layouts`
    encoder                         -> torchvision state dict, safetensors that timm loads

torchvision and timm name a ResNet's weights alike and compute alike: batch norm's epsilon is 1e-5,
a bottleneck's stride is in its 3x3 convolution. transformers' ResNet computes the same under other
names (`torchvision_name`). Shapes are compared on torch's meta device, before memory is taken for
a network of the size a checkpoint claims.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, ResNetConfig

from augself_hub import card
from augself_hub.augmentations.spec import HEADS, Policy, Spec, heads_for
from augself_hub.errors import AugSelfError, CheckpointError, UsageError
from augself_hub.folder import file_sha256, new_folder, no_room, write_manifest
from augself_hub.modeling.checkpoint import State, read_checkpoint, state_of
from augself_hub.modeling.layouts import resnet_of
from augself_hub.modeling.model import AugSelfHeads, AugSelfModel
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.paths import path_text
from augself_hub.preprocess import Preprocessing

PRETRAIN_DATA = {
    "stl10": Preprocessing(96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "imagenet100": Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD),
    "imagenet": Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD),
}
_WRITERS: dict[str, Callable[..., object]] = {"torchvision": torch.save, "timm": save_file}
_BATCHES_SEEN = "num_batches_tracked"
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_BLOCK = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)"
    r"\.(convolution|normalization)\.(\w+)"
)


def convert(
    checkpoint: str | os.PathLike[str], pretrain_data: str, output: str | os.PathLike[str]
) -> AugSelfModel:
    """Write a foreign checkpoint as a new model folder, which appears in one step.

    Args:
        checkpoint: official AugSelf .pth, or a file with a ResNet of torchvision's kind (.pth,
            .safetensors): of torchvision, timm, lightly, solo-learn, MoCo, SimSiam, SwAV, DINO.
        pretrain_data: a key of PRETRAIN_DATA: the checkpoint names neither the image side nor the
            normalisation.

    Raises:
        CheckpointError: not a file of plain tensors, or no ResNet that transformers can hold.
        UsageError: an unknown pretraining set.
        AugSelfError: `output` exists already.
    """
    place = Path(path_text("output", output))
    model = model_from_checkpoint(Path(path_text("checkpoint", checkpoint)), pretrain_data)
    with new_folder(place) as stage:
        model.write_files(stage)
        card.write(stage)
        write_manifest(stage)
    return model


def model_from_checkpoint(checkpoint: Path, pretrain_data: str) -> AugSelfModel:
    """The model `convert` writes, in evaluation mode. Arguments and errors are `convert`'s."""
    preprocessing = _known(PRETRAIN_DATA, pretrain_data, "pretraining set")
    content = read_checkpoint(checkpoint)
    official = isinstance(content.get("backbone"), dict) and "ss_predictor" in content
    heads = _heads_in(content, checkpoint) if official else {}
    # Official runs drew their views so.
    drawn: dict[str, Any] = {"saturate": "hsv", "order": "batch"} if official else {}
    policy = Policy(size=preprocessing.size, **drawn).with_kinds(heads)
    weights = resnet_of(content, checkpoint, taken=("ss_predictor",) if official else ())
    try:
        encoder = encoder_from_torchvision(weights)
        spec = Spec(
            convention="paper" if official else "relative",
            policy=policy,
            heads=heads_for(heads, policy, "paper"),
            features=encoder.config.hidden_sizes[-1],
            hidden=_hidden(heads),
            provenance=_provenance(checkpoint, official, pretrain_data),
        )
        named = {f"{kind}.{n}": v for kind, state in heads.items() for n, v in state.items()}
        filled = _filled(_on_meta(lambda: AugSelfHeads(spec)), named)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} cannot be converted: {error}") from error
    return AugSelfModel(encoder, filled, spec, preprocessing).eval()


def encoder_from_torchvision(state: State) -> PreTrainedModel:
    """A torchvision or timm ResNet's state dict -> transformers' ResNet with the same features.

    The classifier (`fc`) is left out. Depths, widths and kind of block are read off the shapes.
    What the shapes cannot show must be as in torchvision: a timm variant with anti-aliased
    strides has the same names and shapes and other features.

    Args:
        state: e.g. `torchvision.models.resnet50(weights="DEFAULT").state_dict()`.

    Raises:
        CheckpointError: another architecture, named by the first weight that does not fit.
    """
    weights = {name: v for name, v in state.items() if not name.startswith("fc.")}
    config = _config(weights)
    empty = _on_meta(lambda: AutoModel.from_config(config))
    network: PreTrainedModel = _filled(empty, weights, torchvision_name).eval()
    return network


def torchvision_state(encoder: PreTrainedModel) -> State:
    """transformers' ResNet -> the state dict of torchvision's, in float32 and without `fc`.

    Raises:
        CheckpointError: an encoder that torchvision has no network for.
    """
    config: PretrainedConfig = encoder.config
    if config.model_type != "resnet":
        raise CheckpointError(f"only a ResNet can be converted, this is a {config.model_type}")
    wide = 4 if config.layer_type == "bottleneck" else 1
    expected = {  # torchvision and timm build only these: the stock stem, widths and strides
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [wide * width for width in (64, 128, 256, 512)],
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    for name, value in expected.items():
        if (actual := getattr(config, name)) != value:
            raise CheckpointError(
                f"torchvision and timm have no ResNet whose {name} is {actual}, only {value}"
            )
    return {
        torchvision_name(name): (value.float() if value.is_floating_point() else value).cpu()
        for name, value in encoder.state_dict().items()
    }


def torchvision_name(name: str) -> str:
    """A weight's name in transformers' ResNet -> its name in torchvision's and timm's."""
    if name.startswith("embedder."):
        stem = name.removeprefix("embedder.embedder.")
        return stem.replace("convolution", "conv1").replace("normalization", "bn1")
    match = _BLOCK.fullmatch(name)
    assert match is not None, name
    stage, block, layer, part, weight = match.groups()
    if layer is None:
        module = "downsample.0" if part == "convolution" else "downsample.1"
    else:
        module = f"{'conv' if part == 'convolution' else 'bn'}{int(layer) + 1}"
    return f"layer{int(stage) + 1}.{block}.{module}.{weight}"


def export_weights(model: str | Path | None, library: str, output: Path) -> None:
    """Write the encoder of a model folder as one file for another library.

    Args:
        model: a folder, a Hub id or None, the embedded model.
        library: `torchvision` (a state dict by torch.save) or `timm` (safetensors).
        output: a new file; it appears in one step.

    Raises:
        CheckpointError: the encoder is not a ResNet of torchvision's kinds.
        UsageError: an unknown library.
        AugSelfError: `output` exists already, or there is no room.
    """
    write = _known(_WRITERS, library, "library")
    if output.exists():
        raise AugSelfError(f"{output} exists: choose another output or remove it")
    state = torchvision_state(AugSelfModel.from_pretrained(model).encoder)
    output.parent.mkdir(parents=True, exist_ok=True)
    stage = output.with_name(f".{output.name}.new")
    try:
        write(state, stage)
        stage.replace(output)
    except (RuntimeError, SafetensorError) as error:  # torch's and safetensors' of a full disk
        raise no_room(output, error) from error
    finally:
        stage.unlink(missing_ok=True)


def _known(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise UsageError(f"unknown {what} {name!r}: use {', '.join(table)}")
    return table[name]


def _config(state: State) -> ResNetConfig:
    """Depths, widths and kind of block, read off the shapes."""
    stem = _shape(state, "conv1.weight")
    if stem[1:] != (3, 7, 7):
        raise CheckpointError(
            f"conv1 is {stem[2]} x {stem[3]} on {stem[1]} channels, transformers' ResNet has a "
            "7 x 7 stem on 3 (one with the 3 x 3 stem for small images cannot be converted)"
        )
    bottleneck = "layer1.0.conv3.weight" in state
    last = "conv3" if bottleneck else "conv2"
    return ResNetConfig(
        embedding_size=stem[0],
        hidden_sizes=[_shape(state, f"{layer}.0.{last}.weight")[0] for layer in _LAYERS],
        depths=[len({n.split(".")[1] for n in state if n.startswith(f"{x}.")}) for x in _LAYERS],
        layer_type="bottleneck" if bottleneck else "basic",
    )


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state or state[name].dim() != 4:
        raise CheckpointError(
            f"it has no convolution {name}: it is no ResNet of torchvision's kind"
        )
    return tuple(state[name].shape)


def _heads_in(content: dict[str, Any], checkpoint: Path) -> dict[str, State]:
    heads = content.get("ss_predictor", {})
    if not isinstance(heads, dict):
        raise CheckpointError(f"{checkpoint} has no dictionary of heads at 'ss_predictor'")
    if unknown := [kind for kind in heads if kind not in HEADS["paper"]]:
        raise CheckpointError(f"{checkpoint} has a head of the unknown kind {unknown[0]!r}")
    return {kind: state_of(state, checkpoint) for kind, state in heads.items()}


def _hidden(heads: dict[str, State]) -> int:
    """Width of the heads' hidden layers: that of the first; `_filled` compares the others."""
    for kind, state in heads.items():
        if "0.weight" not in state or state["0.weight"].dim() != 2:
            raise CheckpointError(f"head {kind!r} does not begin with a linear layer 0.weight")
        return state["0.weight"].shape[0]
    return Spec.hidden


def _on_meta(build: Callable[[], nn.Module]) -> Any:
    """A network of shapes without memory."""
    with torch.device("meta"):
        return build()


def _filled(network: Any, state: State, rename: Callable[[str], str] = str) -> Any:
    """A network of `_on_meta` with the weights of `state`, every one of which must fit.

    Args:
        rename: the network's name of a weight -> its name in `state`.
    """
    left, weights = dict(state), {}
    for name, like in network.state_dict().items():
        theirs = rename(name)
        value = left.pop(theirs, None)
        if value is None and theirs.endswith(_BATCHES_SEEN):
            value = torch.zeros_like(like, device="cpu")  # not counted before PyTorch 0.4.1
        if value is None:
            raise CheckpointError(f"the weight {theirs} is missing")
        if value.shape != like.shape:
            raise CheckpointError(f"{theirs} is {tuple(value.shape)}, expected {tuple(like.shape)}")
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"the weight {theirs} is not finite (NaN or infinity)")
        weights[name] = value.to(like.dtype, copy=True).contiguous()  # holds on to no file
    if left:
        name = next(iter(left))
        raise CheckpointError(f"{name!r} has no place in the network its shapes describe")
    network.load_state_dict(weights, assign=True)
    return network


def _provenance(checkpoint: Path, official: bool, pretrain_data: str) -> dict[str, Any]:
    return {
        "converted_from": "official AugSelf checkpoint" if official else "ResNet weights",
        "file": checkpoint.name,
        "sha256": file_sha256(checkpoint),
        "pretraining_data": pretrain_data,
        "license": "other",
    }
