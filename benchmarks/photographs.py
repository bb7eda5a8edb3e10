"""What benchmarks/pretraining.py trains on: tiles of the demo's photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from augself_hub.images.source import UNLABELED
from training.data.sources import Images

EXAMPLES = Path(__file__).parents[1] / "serving/demo/examples"
COUNT, PIXELS = 600, 256


def cut_photographs(folder: Path) -> None:
    """photographs.npy, decoded (600, 256, 256, 3), and jpeg/, the same as files of quality 90."""
    random, sources = np.random.default_rng(0), sorted(EXAMPLES.glob("*.jpg"))
    images = [Image.open(path).convert("RGB") for path in sources]
    (folder / "jpeg").mkdir()
    pixels = np.empty((COUNT, PIXELS, PIXELS, 3), np.uint8)
    for number in range(COUNT):
        image = images[number % len(images)]
        side = random.uniform(0.4, 1) * min(image.size)
        left, top = (random.uniform(0, length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        tile = image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS, box=box)
        tile.save(folder / f"jpeg/{number:03}.jpg", quality=90)
        pixels[number] = np.asarray(tile)
    np.save(folder / "photographs.npy", pixels)


def in_memory(work: Path) -> Images:
    pixels = np.load(work / "photographs.npy")
    names = [str(number) for number in range(len(pixels))]
    return Images(names, [UNLABELED] * len(names), [], lambda i: Image.fromarray(pixels[i]))
