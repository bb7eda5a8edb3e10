"""Features of images, and what differs between two, in three lines and without torch.

encoder = Encoder()                      # the embedded model; a folder; "org/name"
encoder.features(["a.jpg", "b.jpg"])     # (2, D)
encoder.difference("a.jpg", "b.jpg")     # prints as a table; differences takes many pairs
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from augself_hub.answer import Difference
from augself_hub.augmentations.spec import Spec
from augself_hub.cores import usable_cores
from augself_hub.errors import AugSelfError, NoHeads
from augself_hub.images.given import (
    GivenImage,
    Pair,
    both,
    differences_of,
    features_of,
    named,
    prepared,
)
from augself_hub.paths import path_text
from serving.inference.engine import MAX_BATCH, load


class Encoder:
    """A model on ONNX Runtime. Pickled, it is opened again where it is unpickled, as in a worker.

    Args:
        model: a model folder or a Hub id (`org/name@revision`); None: the embedded model.
        device: auto, cpu, openvino, cuda or tensorrt; one that was asked for by name is had or
            refused.
        threads: of ONNX Runtime and of decoding; None: the usable cores.
        precision: fp32, bf16 (OpenVINO), int8 (CPUs) or fp16 (GPUs).
        decode: exact, or fast: large JPEGs are decoded smaller, and features differ a little.

    Attributes:
        name: what the model is called. spec: its augmentations and heads.
        size: side S, in pixels, of what the model sees of an image. dim: D, of its features.

    Raises:
        ModelFolderError: the folder is incomplete or damaged; names the file.
        UsageError, AugSelfError: the device or precision cannot be had, or not together; OpenVINO
            answers otherwise than the CPU does.
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
        name = None if model is None else path_text("model", model)
        self._engine = load(name, device, threads, precision, decode)
        self._options = {
            "device": device,
            "threads": threads,
            "precision": precision,
            "decode": decode,
        }
        self._model = str(Path(name).resolve()) if name and Path(name).is_dir() else name
        self._threads = threads or usable_cores()
        self._prepare = partial(prepared, preprocessing=self._engine.preprocessing)
        self.name: str = self._engine.name
        self.spec: Spec = self._engine.spec
        self.size: int = self._engine.preprocessing.size
        self.dim: int = self.spec.features

    def __reduce__(self) -> Any:
        return _again, (self._model, self._options, self._engine.digests)

    def __repr__(self) -> str:
        kinds = ", ".join(self.spec.answering()) or "none"
        return (
            f"Encoder({self.name}: {self.size} x {self.size} pixels -> {self.dim} features, "
            f"heads: {kinds}, {self._engine.provider})"
        )

    def features(
        self,
        images: Iterable[GivenImage],
        *,
        normalize: bool = False,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> np.ndarray:
        """N images -> (N, D) float32, in their order; N may be 0.

        Args:
            images: paths, bytes of image files, PIL images, or (H, W), (H, W, 3) or (H, W, 4)
                uint8 arrays; a list of any length or an iterator: so many are held at a time as
                fit in a batch.
            normalize: scale each row to length 1.
            on_error: what becomes of an image that cannot be read: `raise`, or `skip`, whose row
                is NaN and which the warning `augself_hub.images.given.Skipped` names.
            progress: a bar; None: on a terminal and in a notebook, where it takes over a second.

        Raises:
            UsageError: a single image, or something that is no image.
            ImageError, AugSelfError: one cannot be read; says which.
        """
        return features_of(
            images,
            self._prepare,
            self._engine.features,
            self.dim,
            batch=MAX_BATCH,
            threads=self._threads,
            normalize=normalize,
            on_error=on_error,
            progress=progress,
        )

    def difference(self, a: GivenImage, b: GivenImage) -> Difference:
        """What takes image a to image b.

        Raises:
            AugSelfError: the model has no heads.
            UsageError, ImageError, AugSelfError: as `features` does.
        """
        if not self.spec.answering():
            raise NoHeads(self.name)
        images = both(partial(named, prepare=self._prepare), None, (a, b))
        (difference,) = self._say([*images])
        return difference

    @overload
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        on_error: Literal["raise"] = "raise",
        progress: bool | None = None,
    ) -> list[Difference]: ...
    @overload
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        on_error: str,
        progress: bool | None = None,
    ) -> list[Difference | None]: ...
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> list[Any]:
        """What takes a to b of many pairs, in their order: as `difference` says of each.

        Example:
            for found in encoder.differences([("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")]):
                print(found.words())

        Args:
            pairs: (a, b) each, of images as `difference` takes them; a list of any length or an
                iterator: so many are held at a time as fit in a batch.
            on_error: what becomes of a pair that cannot be read: `raise`, or `skip`, which gives
                None and the warning `augself_hub.images.given.Skipped`.
            progress: as `features` takes it.

        Raises:
            AugSelfError: the model has no heads.
            UsageError, ImageError, AugSelfError: as `features` does; says of which pair.
        """
        if not self.spec.answering():
            raise NoHeads(self.name)
        return differences_of(
            pairs,
            self._prepare,
            self._say,
            batch=MAX_BATCH // 2,
            threads=self._threads,
            on_error=on_error,
            progress=progress,
        )

    def _say(self, images: list[Any]) -> list[Difference]:
        """Of 2 N prepared images, all first ones, then all second ones."""
        return Difference.of(self.name, self.spec, self._engine.predict(images))


def _again(model: str | None, options: dict[str, Any], digests: dict[str, str | None]) -> Encoder:
    """The encoder that was pickled. Raises AugSelfError: the model there is another one by now."""
    encoder = Encoder(model, **options)
    if encoder._engine.digests != digests:
        raise AugSelfError(
            f"{model or encoder.name} is not the model that was pickled: pickle again"
        )
    return encoder
