"""The models of one server and the threads that decode for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from augself_hub.cores import usable_cores
from augself_hub.differences import Answered
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images.budget import DECODED
from augself_hub.images.structure import kind
from augself_hub.preprocess import Preprocessing
from serving.inference.batcher import Batcher
from serving.inference.client import ModelClient
from serving.inference.decoders import Decoders
from serving.inference.models import Model, Models
from serving.limits import Limits
from serving.metrics import Metrics

Result = TypeVar("Result")
_LEAST_SECONDS = 1.0  # for threads to end


class ImageFile(Protocol):
    """An image of a request: its name there, and its bytes, which may take time to read."""

    @property
    def param(self) -> str: ...
    def data(self) -> bytes: ...


class Service:
    """What answers, whoever asks: routes on the event loop, the demo on threads.

    Args:
        models: which there are.
        limits: of requests.
        decoders: threads that decode; None: as many as there are usable cores.
    """

    def __init__(
        self, models: Models, limits: Limits, metrics: Metrics, decoders: int | None = None
    ) -> None:
        self.models, self.limits, self.metrics = models, limits, metrics
        count = usable_cores() if decoders is None else decoders
        self.decoders = Decoders(count, limits.deadline_seconds, metrics)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._drained_by: float | None = None
        DECODED.limit = limits.decoded_bytes
        metrics.decoded_bytes.set_function(lambda: DECODED.lent)

    @property
    def described(self) -> dict[str, Any]:
        """What runs here, and how."""
        models = [
            {
                "id": model.name,
                "provider": model.provider,
                "precision": model.source.precision,
                "threads": model.source.threads or usable_cores(),
                "sha256": model.source.sha256,
            }
            for model in self.models.all.values()
        ]
        return {"models": models, "decoders": self.decoders.count, "limits": vars(self.limits)}

    def start(self) -> None:
        """On the event loop that will answer."""
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.create_task(self.decoders.watch())

    def drain(self) -> float:
        """From the first call on what was accepted has the deadline; when that ends, monotonic."""
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.limits.deadline_seconds
        return self._drained_by

    async def stop(self) -> None:
        """Answer what was accepted, in what is left of the time since `drain`."""
        await self.models.stop(max(_LEAST_SECONDS, self.drain() - time.monotonic()))
        if self._watch is not None:
            self._watch.cancel()
        self.decoders.stop()

    @property
    def ready(self) -> bool:
        """Whatever is loaded ran lately, and there is a thread that can decode."""
        return self.models.ready and self.decoders.ready

    def text_metrics(self) -> bytes:
        for name, model in self.models.all.items():
            self.metrics.ready.labels(name).set(model.state == "loaded")
        return self.metrics.text()

    async def images(
        self, files: Sequence[ImageFile], preprocessing: Preprocessing
    ) -> list[np.ndarray]:
        """Image files -> (S, S, 3) uint8 each, decoded on threads before anything is queued.

        Raises:
            ImageError: the first bad one's, with its `param`; whatever its `data` raises.
            DecodersStuck: none is decoded.
        """

        def image(file: ImageFile) -> np.ndarray:
            with self.metrics.stage("decode"):
                try:
                    data = file.data()
                    self.decoders.note(f"{kind(data) or 'no image'} of {len(data)} bytes")
                    return preprocessing.prepare(data, self.limits.pixels)
                except ImageError as error:
                    error.param = file.param
                    raise

        work = (self.decoders.run(image, file) for file in files)
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value]

    async def predict_pairs(self, batcher: Batcher, images: list[np.ndarray]) -> Answered:
        """2 N preprocessed images, all first ones, then all second ones -> what the model says of
        the pairs; encoded through the model's queue.
        """
        encoded = await asyncio.wrap_future(batcher.submit(images, maps=True))
        return await self.decoders.run(batcher.engine.predict, images, encoded)

    def clients(self) -> dict[str, ModelClient]:
        """The models for code on other threads, through the same queues as everybody's."""
        return {name: self._client(model) for name, model in self.models.all.items()}

    def _client(self, model: Model) -> ModelClient:
        async def features(images: Sequence[np.ndarray]) -> np.ndarray:
            async with self.models.acquired(model) as batcher:
                return await asyncio.wrap_future(batcher.submit(list(images)))

        async def predict(images: Sequence[np.ndarray]) -> Answered:
            async with self.models.acquired(model) as batcher:
                return await self.predict_pairs(batcher, list(images))

        return ModelClient(
            model.source,
            self.limits,
            lambda images: self._blocking(features(images)),
            lambda images: self._blocking(predict(images)),
        )

    def _blocking(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work for a thread that may block; the deadline holds for it too."""
        assert self._loop is not None, "the server has not started"
        timed = asyncio.wait_for(work, self.limits.deadline_seconds)
        try:
            return asyncio.run_coroutine_threadsafe(timed, self._loop).result()
        except TimeoutError:
            raise AugSelfError("the answer took too long: try again later") from None
