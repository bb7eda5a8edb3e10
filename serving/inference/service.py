"""From image bytes to answers: decoding threads, the models, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images.budget import DECODED
from augself_hub.images.structure import kind
from augself_hub.preprocess import Preprocessing
from serving.http.bodies import Item
from serving.http.problems import Problem, image_problem
from serving.http.urls import Fetcher
from serving.inference.batcher import Batcher, Draining, QueueFull, WorkerLost
from serving.inference.client import Local
from serving.inference.cores import usable_cores
from serving.inference.decoders import AllStuck, Decoders
from serving.inference.models import Model, Models
from serving.limits import Limits
from serving.metrics import Metrics

Result = TypeVar("Result")


class Service:
    """The models of one server and what they share.

    Args:
        models: which there are.
        limits: of requests.
        decoders: threads that decode; None: as many as there are usable cores.
        fetcher: fetches images from URLs; None: none are fetched.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        metrics: Metrics,
        decoders: int | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.models, self.limits, self.metrics, self._fetcher = models, limits, metrics, fetcher
        self._count = usable_cores() if decoders is None else decoders
        self._decoders = Decoders(self._count, limits.deadline_seconds, metrics)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
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
        return {"models": models, "decoders": self._count, "limits": vars(self.limits)}

    def start(self) -> None:
        """On the event loop that will answer."""
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.create_task(self._decoders.watch())

    async def stop(self) -> None:
        """Answer what was accepted, within the deadline."""
        await self.models.stop(self.limits.deadline_seconds)
        if self._fetcher is not None:
            await self._fetcher.close()
        if self._watch is not None:
            self._watch.cancel()
        self._decoders.stop()

    @property
    def ready(self) -> bool:
        """Whatever is loaded ran lately, and there is a thread that can decode."""
        return self.models.ready and self._decoders.ready

    def locals(self) -> dict[str, Local]:
        """The models for code in this process, through the same queues as everybody's."""
        asked = {name: Queued(self, model) for name, model in self.models.all.items()}
        return {name: Local(each, self.limits, each.features) for name, each in asked.items()}

    def text_metrics(self) -> bytes:
        for name, model in self.models.all.items():
            self.metrics.ready.labels(name).set(model.state == "loaded")
        return self.metrics.text()

    async def images(self, items: Sequence[Item], way: Preprocessing) -> list[np.ndarray]:
        """Fetch and decode fully before anything is queued. Raises the first bad one's problem."""
        if self._fetcher is not None:
            items = await self._fetcher.fetched(items)
        work = (self.in_thread(self._image, item, way) for item in items)
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value]

    async def features(self, batcher: Batcher, images: list[np.ndarray]) -> np.ndarray:
        """N preprocessed images -> (N, D), through the model's queue."""
        try:
            return await asyncio.wrap_future(batcher.submit(images))
        except QueueFull as error:
            raise Problem(429, "queue_full", str(error)) from error
        except Draining as error:
            raise Problem(503, "draining", str(error)) from error
        except WorkerLost as error:
            raise Problem(503, "worker_lost", str(error)) from error

    async def in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        """On a decoding thread; what is cancelled before its turn is not done."""
        try:
            return await self._decoders.run(function, *args)
        except AllStuck:
            message = "every decoder is busy with an image past the deadline: try again later"
            raise Problem(503, "decoders_stuck", message) from None

    async def answered(self, request: Request, model: Model, work: Awaitable[Result]) -> Result:
        """The result of the work, given up when the client leaves or the deadline passes."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                {task, gone},
                timeout=self.limits.deadline_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            if model.loading is not None:
                raise Problem(503, "loading", "the model is being loaded: try again later")
            raise Problem(504, "deadline", "the answer took too long: send fewer images")
        finally:
            task.cancel()
            gone.cancel()

    def on_loop(self, work: Awaitable[Result]) -> Result:
        """The result of work for a thread that may block; the deadline holds for it too."""
        assert self._loop is not None, "the server has not started"
        timed = asyncio.wait_for(work, self.limits.deadline_seconds)
        try:
            return asyncio.run_coroutine_threadsafe(timed, self._loop).result()
        except TimeoutError:
            raise AugSelfError("the answer took too long: try again later") from None
        except Problem as problem:
            raise AugSelfError(problem.message) from problem

    def _image(self, item: Item, way: Preprocessing) -> np.ndarray:
        with self.metrics.stage("decode"):
            try:
                data = item.data()
                self._decoders.note(f"{kind(data) or 'no image'} of {len(data)} bytes")
                return way.prepare(data, self.limits.pixels)
            except ImageError as error:
                raise image_problem(error, item.param) from error


class Queued:
    """One model for code on other threads: loaded if need be, asked through its queue."""

    def __init__(self, service: Service, model: Model) -> None:
        self._service, self._model = service, model

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def folder(self) -> Path:
        return self._model.source.folder

    @property
    def spec(self) -> Spec:
        return self._model.source.spec

    @property
    def preprocessing(self) -> Preprocessing:
        return self._model.source.preprocessing

    @property
    def sha256(self) -> str:
        return self._model.source.sha256

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self._service.on_loop(self._features(list(images)))

    def differences(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        return self._service.on_loop(self._differences(features_a, features_b))

    async def _features(self, images: list[np.ndarray]) -> np.ndarray:
        async with self._service.models.held(self._model) as batcher:
            return await self._service.features(batcher, images)

    async def _differences(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        async with self._service.models.held(self._model) as batcher:
            return await self._service.in_thread(batcher.engine.differences, a, b)


async def _disconnected(request: Request) -> None:
    """Returns when the client has left. The body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
