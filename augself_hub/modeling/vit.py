"""A stock ViT -> the Dinov2 architecture with the same class token.

A ViT's own pooler is a dense layer and tanh, so its pooler_output is not what is published
(contract C2). Dinov2's pooler_output is the class token after the last layer norm, and with layer
scales of 1 Dinov2 computes what a ViT does: a ViT to continue from becomes one.
"""

from __future__ import annotations

import re

import torch
from transformers import Dinov2Config, Dinov2Model, PretrainedConfig, PreTrainedModel

from augself_hub.errors import UsageError

_SAME_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
_RENAMED = {
    r"^layers\.": "encoder.layer.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
}


def as_dinov2(vit: PreTrainedModel) -> Dinov2Model:
    """The Dinov2 model whose pooler_output is `vit`'s last_hidden_state[:, 0], for square images.

    The ViT's pooler is left out. Images of another size than the ViT's are allowed afterwards: the
    position embeddings are interpolated.

    Raises:
        UsageError: a ViT whose hidden layers Dinov2 has no configuration for.
    """
    network = Dinov2Model(_config(vit.config))
    weights = {}
    for name, value in vit.state_dict().items():
        if not name.startswith("pooler."):
            for pattern, replacement in _RENAMED.items():
                name = re.sub(pattern, replacement, name)
            weights[name] = value
    scales = {n: torch.ones_like(v) for n, v in network.state_dict().items() if "layer_scale" in n}
    network.load_state_dict(weights | scales)
    network.train(vit.training)
    return network


def _config(vit: PretrainedConfig) -> Dinov2Config:
    ratio, rest = divmod(vit.intermediate_size, vit.hidden_size)
    if rest:
        raise UsageError(
            f"this ViT's hidden layers are {vit.intermediate_size} wide, not a multiple of "
            f"{vit.hidden_size}: it cannot become a Dinov2; use vit-small, vit-base or a DINOv2"
        )
    same = {name: getattr(vit, name) for name in _SAME_FIELDS}
    return Dinov2Config(**same, mlp_ratio=ratio, layerscale_value=1.0, use_mask_token=False)
