"""An encoder small enough to follow by hand, and pictures worth looking at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from training.data.batches import ViewsDataset, collate
from training.data.sources import open_images


class LinearEncoder(nn.Module):
    """(N, 3, 4, 4) views -> (N, dim) features by one matrix."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.randn(48, dim) / 7)

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LinearEncoder()


@pytest.fixture
def views():
    """Two views of five images."""
    torch.manual_seed(1)
    return torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)


@pytest.fixture(scope="session")
def eight(photo_folder):
    """policy -> the two views of eight photographs, a batch as the loader makes it."""

    def made(policy):
        images = ViewsDataset(open_images(photo_folder), policy, seed=0)
        batch = collate([images[0, i] for i in (0, 1, 2, 3, 36, 37, 38, 39)])
        batch.pop("skipped")
        return batch

    return made


@pytest.fixture(scope="session")
def painted():
    """Writes so many pictures that boxes and mirrors of them can be told apart."""

    def painted(folder, count, seed):
        """Pictures of many coloured boxes and discs, no two alike."""
        random = np.random.default_rng(seed)
        folder.mkdir()
        for number in range(count):
            image = Image.new("RGB", (128, 128), tuple(random.integers(0, 256, 3).tolist()))
            draw = ImageDraw.Draw(image)
            for _ in range(40):
                x, y, w, h = (*random.integers(-10, 128, 2), *random.integers(6, 40, 2))
                shape = draw.rectangle if random.random() < 0.5 else draw.ellipse
                shape(
                    [int(x), int(y), int(x + w), int(y + h)],
                    tuple(random.integers(0, 256, 3).tolist()),
                )
            image.save(folder / f"{number:03d}.png")
        return folder

    return painted
