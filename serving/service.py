"""From image bytes to answers: decoding threads, one batcher a model, deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from augself_hub.errors import ImageError, UsageError
from augself_hub.preprocess import Preprocessing
from serving.batcher import Batcher, Draining, QueueFull, WorkerLost
from serving.bodies import Item
from serving.client import Local
from serving.cores import usable_cores
from serving.engine import Engine
from serving.limits import Limits
from serving.metrics import Metrics
from serving.problems import Problem, image_problem

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Service:
    """The models of one server and what they share.

    Args:
        engines: at least one; the first answers requests that name no model.
        limits: of requests.

    Raises:
        UsageError: two models of one name.
    """

    def __init__(self, engines: Sequence[Engine], limits: Limits) -> None:
        self.limits, self.metrics = limits, Metrics()
        self.batchers = {
            engine.name: Batcher(engine, self.metrics, limits.waiting_images) for engine in engines
        }
        if len(self.batchers) < len(engines):
            raise UsageError("two models have the same name: serve them from different folders")
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")

    def start(self) -> None:
        for name, batcher in self.batchers.items():
            engine = batcher.engine
            self.metrics.model.labels(name, engine.sha256, engine.provider).set(1)
            logger.info("serving %s on %s", name, engine.provider)
            batcher.start()

    async def stop(self) -> None:
        """Answer what was accepted, within the deadline."""
        drains = (
            asyncio.to_thread(b.drain, self.limits.deadline_seconds) for b in self.batchers.values()
        )
        await asyncio.gather(*drains)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        return all(batcher.ready for batcher in self.batchers.values())

    def local(self) -> Local:
        """The first model for code in this process, through the same queue as everybody's."""
        batcher = next(iter(self.batchers.values()))
        return Local(batcher.engine, batcher.features)

    def batcher(self, model: str | None) -> Batcher:
        """The model a request names. Raises the 404."""
        name = next(iter(self.batchers)) if model is None else model
        if name not in self.batchers:
            raise Problem(404, "model_not_found", "no such model: see GET /v1/models", "model")
        return self.batchers[name]

    def text_metrics(self) -> bytes:
        for name, batcher in self.batchers.items():
            self.metrics.ready.labels(name).set(batcher.ready)
        return self.metrics.text()

    async def images(self, items: Sequence[Item], way: Preprocessing) -> list[np.ndarray]:
        """Decode fully before anything is queued. Raises the problem of the first bad image."""
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
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *args)

    async def answered(self, request: Request, work: Awaitable[Result]) -> Result:
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
            raise Problem(504, "deadline", "the answer took too long: send fewer images")
        finally:
            task.cancel()
            gone.cancel()

    def _image(self, item: Item, way: Preprocessing) -> np.ndarray:
        try:
            return way.prepare(item.data(), self.limits.pixels)
        except ImageError as error:
            raise image_problem(error, item.param) from error


async def _disconnected(request: Request) -> None:
    """Returns when the client has left. The body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
