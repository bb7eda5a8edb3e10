"""Checkpoints of ResNets as others make them. pytest has this folder on its path."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet

WIDTHS = {"crop": 4, "color": 4, "flip": 1, "blur": 1, "rot": 4, "sol": 1}


def shaken(network: nn.Module) -> nn.Module:
    """Random weights, and batch norm statistics that are not those of a new network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(7)
    return network.eval()


def torchvision_resnet(block=resnet.BasicBlock, depths=(1, 1, 1, 1)) -> resnet.ResNet:
    """torchvision's own widths; shallow, so that it is quick."""
    torch.manual_seed(0)
    network = shaken(resnet.ResNet(block, list(depths)))
    network.fc = nn.Identity()
    return network


def official_heads(dim: int, *kinds: str, hidden: int = 24) -> dict[str, nn.Module]:
    """The paper's MLPs as nn.Sequential: Linear, BN, ReLU, Linear, BN, ReLU, Linear."""
    return {
        kind: shaken(
            nn.Sequential(
                nn.Linear(2 * dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                nn.Linear(hidden, WIDTHS[kind]),
            )
        )
        for kind in kinds
    }  # fmt: skip


def save_official(path: Path, backbone: nn.Module, heads: dict[str, nn.Module], prefix="") -> Path:
    """A file with everything an official checkpoint has."""
    projector = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.1, momentum=0.9)
    torch.save(
        {
            "backbone": {prefix + k: v for k, v in backbone.state_dict().items()},
            "projector": projector.state_dict(),
            "predictor": projector.state_dict(),
            "ss_predictor": {kind: head.state_dict() for kind, head in heads.items()},
            "optimizers": [optimizer.state_dict()],
            "schedulers": [{"base_lrs": [0.1]}],
        },
        path,
    )
    return path
