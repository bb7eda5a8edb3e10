"""What a learned encoder is compared with: the same encoder untrained, and colour histograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import set_seed

from augself_hub.augmentations.spec import Spec
from augself_hub.features import FeatureTable
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.export import export_folder
from augself_hub.modeling.model import AugSelfHeads, AugSelfModel
from augself_hub.preprocess import preprocess
from training.evaluation.cache import Model, Tables
from training.evaluation.listing import LabelledImages
from training.run.pretraining import preprocessing_for
from training.run.settings import Settings, policy_of

BINS = 5  # of each channel of a colour histogram: 125 numbers
GRAY_BINS = BINS**3


def untrained(settings: Settings, folder: Path) -> None:
    """Write the model folder of an encoder as a run with these settings would start it."""
    set_seed(settings.seed)
    encoder = build_encoder(settings.encoder, settings.size)
    spec = Spec("relative", policy_of(settings), {}, encoder.dim)
    model = AugSelfModel(encoder.network, AugSelfHeads(spec), spec, preprocessing_for(settings))
    model.eval().save_pretrained(folder)
    export_folder(folder)


class Histograms(Tables):
    """Tables of colour histograms, of what an encoder of this size would see.

    Args:
        size: side of the images in pixels.
        gray: of the gray picture, in as many bins.
    """

    def __init__(self, size: int, gray: bool) -> None:
        self.size, self.gray = size, gray
        name = "gray histogram" if gray else "colour histogram"
        self.model = Model(name, Path(), name, None, None)  # type: ignore[arg-type]

    def of(self, images: LabelledImages) -> FeatureTable:
        names = sorted(set(images.classes))
        seen = [preprocess(images.image(i), self.size) for i in range(len(images))]
        return FeatureTable(
            ids=list(images.ids),
            labels=np.array([names.index(label) for label in images.classes], np.int32),
            label_names=names,
            splits=list(images.splits),
            features=np.stack([histogram(pixels, self.gray) for pixels in seen]),
            model=self.model.sha256,
            normalized=False,
        )


def histogram(pixels: np.ndarray, gray: bool) -> np.ndarray:
    """(S, S, 3) uint8 -> (125,) float32 square roots of the share of pixels in each bin.

    The square root makes Euclidean distance the Hellinger distance of the histograms.
    """
    if gray:
        luma = np.asarray(Image.fromarray(pixels).convert("L"))
        counts = np.histogram(luma, GRAY_BINS, (0, 256))[0]
    else:
        bins = pixels.reshape(-1, 3).astype(int) * BINS // 256
        counts = np.bincount(bins @ np.array([BINS**2, BINS, 1]), minlength=BINS**3)
    return np.sqrt(counts / counts.sum()).astype(np.float32)
