"""Feature maps of every family: found, square, and where the picture is."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    RegNetConfig,
    ResNetConfig,
    SwinConfig,
)

from augself_hub.errors import UsageError
from augself_hub.modeling.encoders import pooled
from augself_hub.modeling.maps import MapPlace, features_and_map, find_map

STAGES = {"embedding_size": 8, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
TOKENS = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
CONFIGS = {
    "resnet": ResNetConfig(**STAGES, layer_type="basic"),
    "regnet": RegNetConfig(**STAGES, groups_width=8),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "swin": SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=64),
    "dinov2": Dinov2Config(**TOKENS, image_size=64, patch_size=8),
    "registers": Dinov2WithRegistersConfig(**TOKENS, image_size=64, patch_size=8),
}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: AutoModel.from_config(config).eval() for name, config in CONFIGS.items()}


@pytest.mark.parametrize(
    ("name", "size", "place"),
    [  # by hand, from the strides of the architectures: hidden states are stem, stages 1 to 4
        ("resnet", 64, MapPlace(-3, 16, 8)),  # strides 4, 4, 8, 16, 32
        ("resnet", 96, MapPlace(-3, 16, 12)),
        ("resnet", 224, MapPlace(-2, 24, 14)),
        ("resnet", 256, MapPlace(-1, 32, 8)),
        ("resnet", 16, MapPlace(-4, 8, 4)),  # nowhere 8 cells: the deepest of the widest
        ("regnet", 64, MapPlace(-3, 16, 8)),  # strides 2, 4, 8, 16, 32
        ("convnext", 224, MapPlace(-2, 24, 14)),
        ("swin", 64, MapPlace(-1, 32, 8)),  # patches of 4, merged once
        ("dinov2", 64, MapPlace(-1, 32, 8)),
        ("dinov2", 200, MapPlace(-1, 32, 16)),  # 25 tokens a side are resized to 16
        ("registers", 64, MapPlace(-1, 32, 8)),
    ],
)
def test_the_map_of_a_family(networks, name, size, place):
    assert find_map(networks[name], size) == place


@pytest.mark.parametrize("name", CONFIGS)
def test_features_stay_what_they_are(networks, name):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        place = find_map(networks[name], 64)
        features, m = features_and_map(networks[name], x, place)
        assert torch.equal(features, pooled(networks[name], x))
    assert m.shape == (2, place.channels, place.cells, place.cells)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_map_is_laid_as_the_picture_is(networks, name):
    """A change in one corner of the picture changes the same corner of the map most."""
    x = torch.zeros(1, 3, 64, 64)
    spot = x.clone()
    spot[..., :12, 48:] = 3.0  # top right
    with torch.no_grad():
        place = find_map(networks[name], 64)
        change = (
            features_and_map(networks[name], spot, place)[1]
            - features_and_map(networks[name], x, place)[1]
        )
    where = int(change.square().sum(1).flatten().argmax())
    row, column = divmod(where, place.cells)
    assert row < place.cells / 2 <= column


def test_an_encoder_without_maps_is_refused_by_name():
    from transformers import ViTMSNConfig

    network = AutoModel.from_config(ViTMSNConfig(**TOKENS, image_size=64, patch_size=16))
    network.config.patch_size = (16, 16)  # tokens that cannot be laid out
    with pytest.raises(UsageError, match=r"'vit_msn' gives no feature maps at 64 pixels"):
        find_map(network, 64)


def test_a_map_of_one_cell_is_refused(networks):
    with pytest.raises(UsageError, match="one cell at 8 pixels"):
        find_map(networks["dinov2"], 8)
    assert find_map(networks["dinov2"], 16).cells == 2
