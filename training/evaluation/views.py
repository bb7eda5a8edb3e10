"""Views of evaluation images, as images for extraction: random pairs, and one change at a time.

Views are as large as the encoder's images, so extraction's resize leaves them as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters, draw, pixel_box, unchanged
from augself_hub.augmentations.spec import Policy
from augself_hub.differences import is_gray
from augself_hub.preprocess import crop_resized, preprocess
from training.evaluation.listing import LabelledImages, png

CHANGES: dict[str, tuple[float, ...]] = {
    "crop": (0.75, 0.5, 0.25),
    "flip": (1,),
    "brightness": (0.1, 0.2, 0.4),
    "contrast": (0.1, 0.2, 0.4),
    "saturation": (0.1, 0.2, 0.4),
    "hue": (0.025, 0.05, 0.1),
    "gray": (1,),
    "blur": (0.5, 1, 2),
    "sol": (0.25, 0.5, 0.75),
    "rot": (1, 2, 3),
}
"""Strengths of each augmentation: share of the area kept, factor and hue shift up (every other
image: down), sigma in pixels, share of the range inverted, quarter turns."""


@dataclass(frozen=True)
class Pairs:
    """Two views of each of N images.

    Args:
        images: 2N views, a and b of an image one after the other.
        a, b: their parameters, N rows.
        policy: how they were drawn.
    """

    images: LabelledImages
    a: Parameters
    b: Parameters
    policy: Policy


def pairs(
    images: LabelledImages, rows: np.ndarray, policy: Policy, seed: int, colors: bool = False
) -> Pairs:
    """A random pair of views of the images at these positions, keyed by them and the seed.

    Args:
        colors: look at the pictures now, for which crops are gray (`colorless`).
    """
    sizes = [images.size(row) for row in rows]
    width, height = np.array(sizes).T
    drawn = [draw(policy, (seed, 0, np.asarray(rows), view), height, width) for view in (0, 1)]

    @lru_cache(maxsize=1)
    def opened(number: int) -> Image.Image:
        return images.image(rows[number])

    def read(index: int) -> bytes:
        number, view = divmod(index, 2)
        parameters = {name: values[number : number + 1] for name, values in drawn[view].items()}
        return png(_view(opened(number), parameters, policy))

    if colors:
        crops = ((_crop(opened(n), w["crop"][n], policy) for w in drawn) for n in range(len(rows)))
        gray = np.array([[is_gray(crop) for crop in both] for both in crops], bool)
        drawn = [{**w, "colorless": of} for w, of in zip(drawn, gray.T, strict=True)]
    ids = [f"{images.ids[row]} {view}" for row in rows for view in "ab"]
    listed = _listed(images, rows, ids, f"pairs {policy} {seed}")
    return Pairs(dataclasses.replace(listed, read=read), drawn[0], drawn[1], policy)


def changed(
    images: LabelledImages, rows: np.ndarray, kind: str, strength: float, size: int
) -> LabelledImages:
    """The middle square of each image with one augmentation at one strength."""
    policy = Policy(size=size)

    def read(index: int) -> bytes:
        square = Image.fromarray(preprocess(images.image(rows[index]), size))
        return png(_view(square, _only(kind, strength, index), policy))

    ids = [images.ids[row] for row in rows]
    listed = _listed(images, rows, ids, f"{kind} {strength:g} {size} px")
    return dataclasses.replace(listed, read=read)


def _listed(
    images: LabelledImages, rows: np.ndarray, ids: list[str], version: str
) -> LabelledImages:
    return LabelledImages(
        name=f"{images.name} views",
        ids=ids,
        classes=["view"] * len(ids),
        splits=["test"] * len(ids),
        read=lambda index: b"",
        files=[images.files[row] for row in rows]
        if len(images.files) >= len(images)
        else images.files,
        version=f"{images.version} {version}",
    )


def _crop(image: Image.Image, crop: np.ndarray, policy: Policy) -> np.ndarray:
    return crop_resized(image, pixel_box(crop, image.height, image.width), policy.size)


def _view(image: Image.Image, parameters: Parameters, policy: Policy) -> np.ndarray:
    """RGB image -> (S, S, 3) uint8, cropped and augmented."""
    crop = _crop(image, parameters["crop"][0], policy).transpose(2, 0, 1)[None]
    view: np.ndarray = augment(crop.astype(np.float32) / 255, parameters, policy)[0]
    return np.round(view * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


_COLORS = ("brightness", "contrast", "saturation", "hue")


def _only(kind: str, strength: float, index: int) -> Parameters:
    """One view's parameters, of which one is changed."""
    parameters = unchanged(1)
    if kind in _COLORS:
        parameters["color"][0, _COLORS.index(kind)] += strength if index % 2 else -strength
    elif kind == "crop":
        policy = Policy(scale=(strength, strength), ratio=(1, 1))
        parameters["crop"] = draw(policy, (0, 0, index, 0), 1000, 1000)["crop"]
    elif kind == "sol":
        parameters["sol"][:] = 1 - strength
    else:
        parameters[kind][:] = strength
    return parameters
