"""How code in the server's own process, the demo, asks one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from augself_hub.augmentations.spec import Spec
from augself_hub.differences import Answered
from augself_hub.preprocess import Preprocessing, decoded, preprocess
from serving.limits import Limits

SHOWN = 1024  # pixels of a side; what a page shows, and several times what a model sees
Features = Callable[[Sequence[np.ndarray]], np.ndarray]
Predict = Callable[[Sequence[np.ndarray]], Answered]


class ModelInfo(Protocol):
    """What is known of a model without running it: an `Engine`, or a server's `ModelSource`."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def sha256(self) -> str: ...


class ModelClient:
    """One model, asked by plain blocking calls from any thread.

    Args:
        model: what it is.
        limits: of the server; what comes from outside stays within them.
        features: N preprocessed images, each (S, S, 3) uint8 -> (N, D) float32; a server's go
            through its queue, so that the demo shares it, and its limits, with everybody else.
            Raises AugSelfError where the server is full or is shutting down.
        predict: 2 N preprocessed images, all first ones, then all second ones -> what is said of
            the N pairs, by the matcher where there is one; `augself_hub.differences.records` words
            it.
    """

    def __init__(
        self,
        model: ModelInfo,
        limits: Limits,
        features: Features,
        predict: Predict,
    ) -> None:
        self._model, self.limits = model, limits
        self.features, self.predict = features, predict

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def folder(self) -> Path:
        return self._model.folder

    @property
    def spec(self) -> Spec:
        return self._model.spec

    @property
    def sha256(self) -> str:
        """Of the encoder's graph."""
        return self._model.sha256

    @property
    def side(self) -> int:
        """S, of the (S, S, 3) images the model takes."""
        return self._model.preprocessing.size

    @contextmanager
    def picture(self, data: bytes) -> Iterator[Image.Image]:
        """Image bytes -> RGB, upright. Its memory is lent, and what is waited for meanwhile keeps
        everybody's decoders waiting: take views of it, and leave.

        Raises:
            ImageError: also for more pixels than the limit.
        """
        with decoded(data, self.limits.pixels) as image:
            yield image

    def reduced(self, data: bytes) -> Image.Image:
        """The same with sides of at most `SHOWN` pixels, to keep. Raises as `picture` does."""
        with self.picture(data) as image:
            image.thumbnail((SHOWN, SHOWN))
            return image

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> (S, S, 3) uint8, as the model takes it."""
        return preprocess(image, self.side)
