"""Gathers requests into batches on one worker thread.

    submit ──> queue, bounded in images ──> worker: take what waits, up to a batch ──> futures
                                               └──> lanes: small runs side by side ──> futures

Nothing waits for company: an idle worker takes a single image at once, and batches form only from
what arrived during the run before. An engine with lanes (on a CPU) gets one run with all threads
while few wait, and a run of one thread in every lane when there are enough requests for them.

A request that fails, fails alone. A worker that dies, in a lane or not, or whose session no longer
runs even a black image, fails everybody who waits; the batcher is not ready until the worker,
started again on a new session, has run that image.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.inference.engine import MAX_BATCH, Encoded, Engine
from serving.inference.errors import Draining, QueueFull, WorkerLost
from serving.metrics import Metrics

CHECK_SECONDS = 20.0  # an idle worker proves itself on a black image this often
STALE_SECONDS = 60.0  # a worker without a successful run for so long is stuck
FIRST_REST, LONGEST_REST = 0.5, 30.0  # seconds before a dead worker is started again; doubling
LANE_IMAGES = 4  # of one run in a lane; on one thread more are no faster
logger = logging.getLogger(__name__)


_Run = Callable[[Sequence[np.ndarray]], Any]  # -> N rows, which can be sliced


@dataclass
class _Work:
    """Images, and their features or, with `maps`, what `Engine.encode` gives."""

    images: Sequence[np.ndarray]
    maps: bool = False
    answer: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue and the worker of one engine.

    Args:
        engine: only `engine.features`, `.encode`, these `_in_lane`, `.lanes`, `.name` and
            `.preprocessing` are used.
        metrics: where runs and drops are counted.
        max_queue_size: images that may wait; a request beyond it is refused with `QueueFull`.
        max_batch_size: images gathered for one run. A larger single request runs by itself.
        renew: opens the model again after its worker died; None: the same engine goes on.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        max_queue_size: int = 256,
        max_batch_size: int = MAX_BATCH,
        renew: Callable[[], Engine] | None = None,
    ) -> None:
        self.engine, self.metrics = engine, metrics
        self.max_queue_size, self.max_batch_size = max_queue_size, max_batch_size
        self._renew = renew or (lambda: engine)
        self._queue: deque[_Work] = deque()
        self._waiting = 0  # images in the queue
        self._busy = 0  # lanes
        self._failure: BaseException | None = None  # of a lane
        self._lanes = ThreadPoolExecutor(engine.lanes, thread_name_prefix="lane")
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
        return self._submit(_Work(images))

    def encode(self, images: Sequence[np.ndarray]) -> Future[Encoded]:
        """The same with the maps for a matcher, of a model that has one."""
        return self._submit(_Work(images, maps=True))

    def _submit(self, work: _Work) -> Future[Any]:
        with self._changed:
            if self._lost:
                raise WorkerLost("the model is not running: try again later")
            if self._draining:
                raise Draining("the server is shutting down: try again later")
            if self._waiting + len(work.images) > self.max_queue_size:
                raise QueueFull(f"{self._waiting} images are waiting already: try again later")
            self._queue.append(work)
            self._count_waiting(len(work.images))
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

    def _count_waiting(self, images: int) -> None:
        self._waiting += images
        self.metrics.queue.labels(self.engine.name).set(self._waiting)

    def _live(self) -> None:
        """The worker's life: it works; where that kills it, it tells everybody who waits, rests,
        and starts again on a new session.
        """
        rest = FIRST_REST
        while True:
            try:
                if self._lost:
                    self.engine = self._renew()
                self._check()
                self._lost, rest = False, FIRST_REST
                self._work()
                self._lanes.shutdown()
                return
            except BaseException:  # a thread that ends silently would leave everybody waiting
                logger.exception("model %s does not run", self.engine.name)
            with self._changed:
                self._lost = True
                queued = [w for w in self._queue if w.answer.set_running_or_notify_cancel()]
                self._queue.clear()
                self._count_waiting(-self._waiting)
            _tell_lost(queued)
            with self._changed:
                if self._changed.wait_for(lambda: self._draining, rest):
                    return
            rest = min(2 * rest, LONGEST_REST)
            self.metrics.restarts.labels(self.engine.name).inc()

    def _work(self) -> None:
        while self._wait():
            batch, alone = self._gather()
            if batch and alone:
                self._run(batch, self._runner(batch))
            elif batch:
                self._lanes.submit(self._run_in_lane, batch)
            elif time.monotonic() - self._succeeded_at > CHECK_SECONDS:
                self._check()

    def _wait(self) -> bool:
        """Until something came or nothing came for a while. False: there is nothing left to do.

        Raises what killed a lane, when the other lanes are done.
        """

        def called() -> bool:
            drained = self._draining and not self._queue
            return self._may_run() or drained or self._failure is not None

        with self._changed:
            self._changed.wait_for(called, CHECK_SECONDS)
            if self._failure is not None:
                self._changed.wait_for(lambda: self._busy == 0)
                failure, self._failure = self._failure, None
                raise failure
            return bool(self._queue) or not self._draining

    def _may_run(self) -> bool:
        """Something waits, and there is a lane for it, or nothing runs at all."""
        if not self._queue:
            return False
        small = len(self._queue[0].images) <= LANE_IMAGES
        return self._busy == 0 or (small and self._busy < self.engine.lanes)

    def _gather(self) -> tuple[list[_Work], bool]:
        """What waits, up to a batch, without those whose client left; whether it runs alone.

        Alone, with all threads, where there are no lanes, too few requests for them, or a large
        one; else with a lane's share of the images that wait.
        """
        batch: list[_Work] = []
        lanes = self.engine.lanes
        with self._changed:
            if not self._may_run():
                return batch, False
            few = len(self._queue) < lanes or lanes == 1
            alone = self._busy == 0 and (few or len(self._queue[0].images) > LANE_IMAGES)
            share = min(LANE_IMAGES, math.ceil(self._waiting / lanes))
            room = self.max_batch_size if alone else share
            while self._queue and (not batch or len(self._queue[0].images) <= room):
                work = self._queue.popleft()
                self._count_waiting(-len(work.images))
                if work.answer.set_running_or_notify_cancel():
                    self.metrics.stages.labels("queue").observe(time.monotonic() - work.since)
                    batch.append(work)
                    room -= len(work.images)
                else:
                    self.metrics.cancelled.labels(self.engine.name).inc()
            self._busy += bool(batch) and not alone
        return batch, alone

    def _run_in_lane(self, batch: list[_Work]) -> None:
        """On a lane's thread."""
        try:
            self._run(batch, self._runner(batch, in_lane=True))
        except BaseException as error:  # for the worker, which dies of it
            self._failure = error
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def _runner(self, batch: list[_Work], in_lane: bool = False) -> _Run:
        """Maps are computed for all where one asks for them: features are the same."""
        name = "encode" if any(work.maps for work in batch) else "features"
        run: _Run = getattr(self.engine, f"{name}_in_lane" if in_lane else name)
        return run

    def _run(self, batch: list[_Work], run: _Run) -> None:
        """What it dies of, it raises, when everybody in the batch was told."""
        try:
            self._answer(batch, run)
        except BaseException:
            self._lost = True  # before anybody is told, and asks again
            _tell_lost(batch)
            raise

    def _answer(self, batch: list[_Work], run: _Run) -> None:
        """One run for all; where it fails, one for each, so that only the guilty fail.

        Raises what the check raises: then it is not the images' fault.
        """
        try:
            images = [image for work in batch for image in work.images]
            with self.metrics.stage("model"):
                features = run(images)
        except Exception as error:
            if len(batch) > 1:
                for work in batch:
                    self._answer([work], run)
                return
            self._check()
            batch[0].answer.set_exception(error)
            return
        self._succeeded_at = time.monotonic()
        self.metrics.images.labels(self.engine.name).inc(len(images))
        self.metrics.batches.labels(self.engine.name).observe(len(images))
        ends = np.cumsum([len(work.images) for work in batch])
        for work, end in zip(batch, ends, strict=True):
            part = features[end - len(work.images) : end]
            plain = isinstance(part, Encoded) and not work.maps
            work.answer.set_result(part.features if plain else part)

    def _check(self) -> None:
        """Prove on a black image that the model runs, and its lanes."""
        side = self.engine.preprocessing.size
        black = np.zeros((side, side, 3), np.uint8)
        self.engine.features([black])
        if self.engine.lanes > 1:
            self.engine.features_in_lane([black])
        self._succeeded_at = time.monotonic()


def _tell_lost(works: Sequence[_Work]) -> None:
    for work in works:
        if not work.answer.done():
            work.answer.set_exception(WorkerLost("the model stopped running: try again later"))
