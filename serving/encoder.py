"""Features of pictures, and what differs between two, in three lines and without torch.

encoder = Encoder()                      # the embedded model; a folder; "org/name"
encoder.features(["a.jpg", "b.jpg"])     # (2, D)
encoder.difference("a.jpg", "b.jpg")     # prints as a table
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from augself_hub.augmentations.spec import Spec
from augself_hub.commands import table
from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images.files import read_file
from augself_hub.preprocess import preprocess, to_rgb
from serving.inference.cores import usable_cores
from serving.inference.differences import describe, is_gray, matching
from serving.inference.engine import MAX_BATCH, load

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class Encoder:
    """A model on ONNX Runtime.

    Args:
        model: a model folder or a Hub id (`org/name@revision`); None: the embedded model.
        device: auto, cpu, cuda or tensorrt; one that was asked for by name is had or refused.
        threads: of ONNX Runtime and of decoding; None: the usable cores.
        precision: fp32, int8 (CPUs) or fp16 (GPUs).
        decode: exact, or fast: large JPEGs are decoded smaller, and features differ a little.

    Attributes:
        name: what the model is called. spec: its augmentations and heads.
        size: side S, in pixels, of what the model sees of a picture. dim: D, of its features.

    Raises:
        ModelFolderError: the folder is incomplete or damaged; names the file.
        UsageError, AugSelfError: the device or precision cannot be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "fp32",
        decode: str = "exact",
    ) -> None:
        name = None if model is None else os.fspath(model)
        self._engine = load(name, device, threads, precision, decode)
        self._threads = threads or usable_cores()
        self.name: str = self._engine.name
        self.spec: Spec = self._engine.spec
        self.size: int = self._engine.preprocessing.size
        self.dim: int = self.spec.features

    def features(self, pictures: Iterable[Picture], *, normalize: bool = False) -> np.ndarray:
        """N pictures -> (N, D) float32, in their order; N may be 0.

        Args:
            pictures: paths, bytes of image files, PIL images, or (H, W), (H, W, 3) or (H, W, 4)
                uint8 arrays; a list of any length or an iterator: so many are held at a time as
                fit in a batch.
            normalize: scale each row to length 1.

        Raises:
            UsageError: a single picture, or something that is no picture.
            ImageError, OSError: one cannot be read; says which.
        """
        if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
            raise UsageError(
                "features takes a list of pictures: put the one into a list, [picture]"
            )
        rows = [np.empty((0, self.dim), np.float32)]
        with ThreadPoolExecutor(self._threads) as threads:
            numbered = enumerate(pictures)
            while batch := list(islice(numbered, MAX_BATCH)):
                rows.append(self._engine.features(list(threads.map(self._prepared, batch))))
        features = np.concatenate(rows)
        if normalize:
            features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return features

    def difference(self, a: Picture, b: Picture) -> Difference:
        """What takes picture a to picture b.

        Raises:
            AugSelfError: the model has no heads.
            UsageError, ImageError, OSError: as `features` does.
        """
        if not self.spec.heads:
            raise AugSelfError(
                f"{self.name} has no AugSelf heads: train some with augself fit-heads"
            )
        images = [self._prepared(pair) for pair in enumerate((a, b))]
        features = self._engine.features(images)
        sides = features[:1], features[1:]
        physical = {kind: v[0] for kind, v in self._engine.differences(*sides).items()}
        gray = [is_gray(image) for image in images]
        match = matching(self.spec, *sides, gray)[0]
        unlike = match is not None and match[1]
        described = describe(self.spec, physical, any(gray), unlike)
        return Difference(self.name, self.spec, described, None if match is None else match[0])

    def _prepared(self, numbered: tuple[int, Picture]) -> np.ndarray:
        """(its number, a picture) -> (S, S, 3) uint8."""
        number, picture = numbered
        is_path = isinstance(picture, str | os.PathLike)
        try:
            if isinstance(picture, str | os.PathLike):
                return self._engine.preprocessing.prepare(read_file(Path(picture)))
            if isinstance(picture, bytes):
                return self._engine.preprocessing.prepare(picture)
            return preprocess(to_rgb(_image(picture)), self.size)
        except ImageError as error:
            which = str(picture) if is_path else f"picture {number}"
            raise type(error)(f"{which}: {error}") from error


def _image(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    given = type(picture).__name__
    if isinstance(picture, np.ndarray):
        colored = picture.ndim == 3 and picture.shape[2] in (3, 4)
        if picture.dtype == np.uint8 and picture.size and (picture.ndim == 2 or colored):
            return Image.fromarray(picture)
        given = f"{picture.dtype} array of shape {picture.shape}"
    raise UsageError(
        f"{given} is no picture: give a path, the bytes of an image file, a PIL image or an "
        "(H, W, 3) uint8 array"
    )


@dataclass(frozen=True)
class Difference:
    """What takes picture a to picture b; `print` shows it as a table.

    Args:
        model: its name. spec: its heads.
        differences: kind -> as /v1/augmentations answers; what cannot be told is None and has a
            reason.
        match: probability that both pictures show one thing; None: the model cannot tell.
    """

    model: str
    spec: Spec
    differences: dict[str, Any]
    match: float | None

    def to_dict(self) -> dict[str, Any]:
        """What `augself predict --json` prints."""
        return {"model": self.model, "match": self.match, "differences": self.differences}

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """(augmentation, name, value, unit, standard error or why there is no value)."""
        for kind, head in self.spec.heads.items():
            told = self.differences[kind]
            if head.type == "regression":
                yield from (_regression_row(kind, record) for record in told)
                continue
            (dimension,) = head.dimensions
            value = told[dimension.name]
            if value is None:
                yield kind, dimension.name, "-", dimension.unit, told["reason"]
                continue
            values = {"": value} if head.type == "binary" else dict(enumerate(value))
            for which, p in values.items():
                yield kind, f"{dimension.name} {which}".strip(), f"{p:.3f}", dimension.unit, ""

    def __str__(self) -> str:
        heads = ("augmentation", "name", "value", "unit", "standard error, on average")
        text = table(heads, list(self.rows()), numbers="value")
        if self.match is None:
            return text
        return f"{text}\nboth pictures show one thing: probability {self.match:.3f}"

    __repr__ = __str__


def _regression_row(kind: str, record: dict[str, Any]) -> tuple[str, str, str, str, str]:
    if record["value"] is None:
        return kind, record["name"], "-", record["unit"], record["reason"]
    error = record["standard_error"]
    known = "not measured" if error is None else f"{error:.3f}"
    return kind, record["name"], f"{record['value']:+.3f}", record["unit"], known
