"""The models of one server: loaded at start or when asked for, the least recently used evicted.

    unloaded ──asked for──> loading ──> loaded ──room needed──> evicting ──idle──> unloaded

A request holds its model while it works. A model that must make room takes no new requests, answers
those that hold it, and goes; requests that come meanwhile wait for it to be loaded again. Loading
happens on a thread of its own, one model after the other, so it stops neither the event loop nor
other models. Everything else here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from augself_hub.errors import UsageError
from augself_hub.images.budget import DECODED
from serving.inference.batcher import Batcher
from serving.inference.engine import LANE_IMAGES
from serving.inference.errors import ModelNotLoaded, UnknownModel
from serving.inference.memory import give_back, resident
from serving.inference.source import ModelSource
from serving.metrics import Metrics

RETRY_SECONDS = 10.0  # a model that could not be loaded is tried again after so long
logger = logging.getLogger(__name__)


@dataclass
class Model:
    """One model's state.

    Attributes:
        batcher: its queue and worker; None: it is not in memory.
        bytes: what it took when it was last loaded; before that, what its graphs take on disk.
        provider: what it runs on, while it is loaded.
        users: requests that hold it. waiting: requests that wait for it to be loaded.
    """

    source: ModelSource
    bytes: int
    name: str = field(init=False)
    batcher: Batcher | None = None
    provider: str | None = None
    evicting: bool = False
    users: int = 0
    used_at: float = 0.0
    failed_at: float | None = None
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    loading: asyncio.Task[None] | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.name = self.source.name

    @property
    def state(self) -> str:
        """loaded, lost (its worker died), loading, failed (to load) or unloaded."""
        if self.batcher is not None and not self.evicting:
            return "loaded" if self.batcher.ready else "lost"
        if self.loading is not None:
            return "loading"
        return "unloaded" if self.failed_at is None else "failed"


class Models:
    """All of them; the first answers requests that name none.

    Args:
        sources: at least one.
        max_queue_size, max_batch_size: of each model's queue, see `Batcher`.
        memory_limit: bytes all loaded models may take; None: any.

    Raises:
        UsageError: two models of one name, or one that can never fit.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        metrics: Metrics,
        max_queue_size: int,
        max_batch_size: int,
        memory_limit: int | None = None,
    ) -> None:
        self.metrics, self.memory_limit = metrics, memory_limit
        self.all = {source.name: Model(source, source.graph_bytes) for source in sources}
        self.first = self.all[sources[0].name]
        if len(self.all) < len(sources):
            twice = next(s.name for s in sources if self.all[s.name].source is not s)
            raise UsageError(
                f"two models have the same name, {twice}: give one another, --model NAME=FOLDER"
            )
        for model in self.all.values():
            self._refuse_too_large(model)
        self._batcher = partial(
            Batcher, metrics=metrics, max_queue_size=max_queue_size, max_batch_size=max_batch_size
        )
        self._max_batch_size = max_batch_size
        self._one_at_a_time = asyncio.Lock()

    @property
    def in_memory(self) -> list[Model]:
        return [model for model in self.all.values() if model.batcher is not None]

    @property
    def ready(self) -> bool:
        """Whatever is loaded ran lately. What is not loaded is not asked."""
        return all(m.batcher.ready for m in self.in_memory if m.batcher and not m.evicting)

    def preload(self) -> None:
        """Load at start, in their order, what fits; the rest is loaded when it is asked for.

        Raises:
            UsageError: one that, measured, would not fit alone.
        """
        for model in self.all.values():
            batcher = self._open(model) if self._fits(model) else None
            self._refuse_too_large(model)  # now that it has been measured
            if batcher is not None and self._fits(model):
                self._enter(model, batcher)
            else:
                logger.info("%s does not fit beside the others: loaded when asked for", model.name)

    def named(self, name: str | None) -> Model:
        """The model a request names. Raises UnknownModel."""
        model = self.first if name is None else self.all.get(name)
        if model is None:
            raise UnknownModel("no such model: see GET /v1/models")
        return model

    @contextlib.asynccontextmanager
    async def acquired(self, model: Model) -> AsyncIterator[Batcher]:
        """The model's queue, loaded if need be, which stays while the `with` lasts.

        Raises:
            ModelNotLoaded: and will not be for some seconds.
        """
        if model.batcher is None or model.evicting:
            await self._loaded(model)
        else:
            self._grant(model)
        try:
            assert model.batcher is not None
            yield model.batcher
        finally:
            self._release(model)

    async def stop(self, seconds: float) -> None:
        """Answer what was accepted, within the time."""
        for model in self.all.values():
            if model.loading is not None:
                model.loading.cancel()
        drains = (asyncio.to_thread(m.batcher.drain, seconds) for m in self.in_memory if m.batcher)
        await asyncio.gather(*drains)

    async def _loaded(self, model: Model) -> None:
        """Wait until the model is loaded; whoever waited is granted it then."""
        if model.failed_at is not None and time.monotonic() - model.failed_at < RETRY_SECONDS:
            raise _not_loaded()
        grant = asyncio.get_running_loop().create_future()
        model.waiting.append(grant)
        if model.loading is None:
            model.loading = asyncio.create_task(self._load(model))
        try:
            await grant
        except asyncio.CancelledError:
            if grant.done() and not grant.cancelled() and grant.exception() is None:
                self._release(model)
            raise

    def _grant(self, model: Model) -> None:
        model.users += 1
        model.used_at = time.monotonic()
        model.idle.clear()

    def _release(self, model: Model) -> None:
        model.users -= 1
        if model.users == 0:
            model.idle.set()

    async def _load(self, model: Model) -> None:
        """Make room, load, and let in all who wait; or tell them all that it failed."""
        failure: ModelNotLoaded | None = _not_loaded()
        try:
            async with self._one_at_a_time:
                await self._make_room(model)
                batcher = await self._opened(model)
                self._enter(model, batcher)
                await self._make_room(model)  # now that it has been measured
                failure = None
        except Exception:
            logger.exception("model %s cannot be loaded", model.name)
            await self._evict(model)
            model.bytes = model.source.graph_bytes  # measured anew the next time
            model.failed_at = time.monotonic()
        finally:
            model.loading = None
            # Those who wait hold the model from now on, so that nothing evicts it before they ran.
            waiting, model.waiting = model.waiting, []
            for grant in waiting:
                if grant.done():
                    continue
                if failure is not None:
                    grant.set_exception(failure)
                else:
                    self._grant(model)
                    grant.set_result(None)

    async def _opened(self, model: Model) -> Batcher:
        """`_open` on a thread of its own, a daemon: one that hangs keeps no process from ending."""
        batcher: Future[Batcher] = Future()
        batcher.set_running_or_notify_cancel()  # so that nobody cancels what the thread will say

        def run() -> None:
            try:
                batcher.set_result(self._open(model))
            except BaseException as error:  # whoever waits must hear of it
                batcher.set_exception(error)

        threading.Thread(target=run, name="load", daemon=True).start()
        return await asyncio.wrap_future(batcher)

    def _open(self, model: Model) -> Batcher:
        """Load and run all at once that may, since arenas keep their memory; measure it.

        Pictures that are decoded meanwhile are no part of it; whatever else makes the process grow
        is taken for the model's, until it is loaded again.
        """
        before = resident() - DECODED.lent
        engine = model.source.load()
        side = engine.preprocessing.size
        black = np.zeros((side, side, 3), np.uint8)
        engine.encode([black] * self._max_batch_size)
        if engine.lanes > 1:
            with ThreadPoolExecutor(engine.lanes) as pool:
                list(pool.map(engine.encode_in_lane, [[black] * LANE_IMAGES] * engine.lanes))
        grown = resident() - DECODED.lent - before
        model.bytes = max(model.source.graph_bytes, grown)
        return self._batcher(engine, renew=model.source.load)

    def _enter(self, model: Model, batcher: Batcher) -> None:
        engine = batcher.engine
        batcher.start()
        model.batcher, model.provider, model.failed_at = batcher, engine.provider, None
        model.used_at = time.monotonic()
        model.idle.set()
        self.metrics.loads.labels(model.name).inc()
        self.metrics.memory.labels(model.name).set(model.bytes)
        self.metrics.model.labels(model.name, engine.sha256, engine.provider).set(1)
        logger.info("serving %s on %s", model.name, engine.provider)

    def _fits(self, model: Model) -> bool:
        """Together with what is loaded already."""
        others = sum(other.bytes for other in self.in_memory if other is not model)
        return self.memory_limit is None or others + model.bytes <= self.memory_limit

    async def _make_room(self, model: Model) -> None:
        """Evict the least recently used until this model fits; each first answers its requests."""
        while not self._fits(model):
            self._refuse_too_large(model)
            others = [m for m in self.in_memory if m is not model]
            await self._evict(min(others, key=lambda m: m.used_at))

    async def _evict(self, model: Model) -> None:
        if model.batcher is None:
            return
        model.evicting = True
        await model.idle.wait()
        batcher, model.batcher, model.evicting = model.batcher, None, False
        self.metrics.evictions.labels(model.name).inc()
        self.metrics.memory.labels(model.name).set(0)
        self.metrics.model.remove(model.name, model.source.sha256, model.provider)
        model.provider = None
        await asyncio.to_thread(batcher.drain, 1)
        del batcher
        await asyncio.to_thread(give_back)
        logger.info("evicted %s", model.name)

    def _refuse_too_large(self, model: Model) -> None:
        if self.memory_limit is not None and model.bytes > self.memory_limit:
            raise UsageError(
                f"{model.name} takes {model.bytes} bytes, more than --memory-limit "
                f"{self.memory_limit}: give more, or leave the model out"
            )


def _not_loaded() -> ModelNotLoaded:
    return ModelNotLoaded("the model cannot be loaded: try again later")
