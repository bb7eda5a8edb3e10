"""Gathers requests into batches on one worker thread.

    submit ──> queue, bounded in images ──> worker: take what waits, up to a batch ──> futures

Nothing waits for company: an idle worker takes a single image at once, and batches form only from
what arrived during the run before. A request that fails, fails alone. A worker that dies, or whose
session no longer runs even a black image, fails everybody who waits; the batcher is not ready until
the worker, started again on a new session, has run that image.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from augself_hub.errors import AugSelfError
from serving.engine import MAX_BATCH, Engine
from serving.metrics import Metrics

CHECK_SECONDS = 20.0  # an idle worker proves itself on a black image this often
STALE_SECONDS = 60.0  # a worker without a successful run for so long is stuck
FIRST_REST, LONGEST_REST = 0.5, 30.0  # seconds before a dead worker is started again; doubling
logger = logging.getLogger(__name__)


class QueueFull(AugSelfError):
    """Too many images wait already; try again later."""


class Draining(AugSelfError):
    """The server is shutting down and accepts nothing new."""


class WorkerLost(AugSelfError):
    """The worker has died and is not back yet."""


@dataclass
class _Work:
    images: Sequence[np.ndarray]
    answer: Future[np.ndarray] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue and the worker of one engine.

    Args:
        engine: only `engine.features`, `.name` and `.preprocessing` are used.
        metrics: where runs and drops are counted.
        max_waiting: images that may wait; a request beyond it is refused with `QueueFull`.
        max_batch: images gathered for one run. A larger single request runs by itself.
        renew: opens the model again after its worker died; None: the same engine goes on.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        max_waiting: int = 256,
        max_batch: int = MAX_BATCH,
        renew: Callable[[], Engine] | None = None,
    ) -> None:
        self.engine, self.metrics = engine, metrics
        self.max_waiting, self.max_batch = max_waiting, max_batch
        self._renew = renew or (lambda: engine)
        self._queue: deque[_Work] = deque()
        self._running: list[_Work] = []
        self._waiting = 0  # images in the queue
        self._changed = threading.Condition()
        self._draining = self._lost = False
        self._succeeded_at = -math.inf
        self._worker = threading.Thread(target=self._live, name="batcher", daemon=True)

    def start(self) -> None:
        self._worker.start()

    @property
    def ready(self) -> bool:
        """Accepting, alive, and a run succeeded lately."""
        lately = time.monotonic() - self._succeeded_at < STALE_SECONDS
        return lately and not self._lost and not self._draining

    def submit(self, images: Sequence[np.ndarray]) -> Future[np.ndarray]:
        """N preprocessed images -> the future (N, D). Cancelling it drops what still waits.

        Raises:
            QueueFull, Draining, WorkerLost: nothing was queued.
        """
        work = _Work(images)
        with self._changed:
            self._refuse(len(images))
            self._queue.append(work)
            self._count_waiting(len(images))
            self._changed.notify()
        return work.answer

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The same for code that may block: N images -> (N, D) float32."""
        return self.submit(images).result()

    def drain(self, seconds: float) -> None:
        """Accept nothing more, answer what was accepted, end the worker; wait so long for it."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._worker.join(seconds)

    def _refuse(self, images: int) -> None:
        if self._lost:
            raise WorkerLost("the model is not running: try again later")
        if self._draining:
            raise Draining("the server is shutting down: try again later")
        if self._waiting + images > self.max_waiting:
            raise QueueFull(f"{self._waiting} images are waiting already: try again later")

    def _count_waiting(self, images: int) -> None:
        self._waiting += images
        self.metrics.waiting.labels(self.engine.name).set(self._waiting)

    def _live(self) -> None:
        """It works; where that kills it, it rests and starts again on a new session."""
        rest = FIRST_REST
        while True:
            try:
                if self._lost:
                    self.engine = self._renew()
                self._check()
                self._lost, rest = False, FIRST_REST
                self._work()
                return
            except BaseException:  # a thread that ends silently would leave everybody waiting
                logger.exception("model %s does not run", self.engine.name)
                self._lose()
            if self._drained_within(rest):
                return
            rest = min(2 * rest, LONGEST_REST)
            self.metrics.restarts.labels(self.engine.name).inc()

    def _work(self) -> None:
        while self._wait():
            self._running = self._gather()
            if self._running:
                self._run(self._running)
            elif time.monotonic() - self._succeeded_at > CHECK_SECONDS:
                self._check()

    def _drained_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._draining, seconds)

    def _wait(self) -> bool:
        """Until something came or nothing came for a while. False: there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(self._called, CHECK_SECONDS)
            return bool(self._queue) or not self._draining

    def _called(self) -> bool:
        return bool(self._queue) or self._draining

    def _gather(self) -> list[_Work]:
        """What waits, up to a batch, without those whose client left."""
        batch: list[_Work] = []
        room = self.max_batch
        with self._changed:
            while self._queue and (not batch or len(self._queue[0].images) <= room):
                work = self._queue.popleft()
                self._count_waiting(-len(work.images))
                if work.answer.set_running_or_notify_cancel():
                    self.metrics.stages.labels("queue").observe(time.monotonic() - work.since)
                    batch.append(work)
                    room -= len(work.images)
                else:
                    self.metrics.dropped.labels(self.engine.name).inc()
        return batch

    def _run(self, batch: list[_Work]) -> None:
        """One run for all; where it fails, one for each, so that only the guilty fail.

        Raises what the check raises: then it is not the images' fault.
        """
        try:
            features = self._features([image for work in batch for image in work.images])
        except Exception as error:
            if len(batch) > 1:
                for work in batch:
                    self._run([work])
                return
            self._check()
            batch[0].answer.set_exception(error)
            return
        ends = np.cumsum([len(work.images) for work in batch])
        for work, part in zip(batch, np.split(features, ends[:-1]), strict=True):
            work.answer.set_result(part)

    def _features(self, images: list[np.ndarray]) -> np.ndarray:
        with self.metrics.stage("model"):
            features = self.engine.features(images)
        self._succeeded_at = time.monotonic()
        self.metrics.images.labels(self.engine.name).inc(len(images))
        self.metrics.batches.labels(self.engine.name).observe(len(images))
        return features

    def _check(self) -> None:
        """Prove on a black image that the model runs."""
        side = self.engine.preprocessing.size
        self.engine.features([np.zeros((side, side, 3), np.uint8)])
        self._succeeded_at = time.monotonic()

    def _lose(self) -> None:
        """The worker is dead: nobody waits for it any longer."""
        with self._changed:
            self._lost = True
            queued = [w for w in self._queue if w.answer.set_running_or_notify_cancel()]
            self._queue.clear()
            self._count_waiting(-self._waiting)
        for work in (*self._running, *queued):
            if not work.answer.done():
                work.answer.set_exception(WorkerLost("the model stopped running: try again later"))
        self._running = []
