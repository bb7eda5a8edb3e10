"""Gathers requests into batches on one worker thread.

    submit ──> `ImageQueue` ──> worker: take what waits, up to a batch ──> futures
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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import numpy as np

from serving.inference.engine import LANE_IMAGES, MAX_BATCH, Encoded, Engine
from serving.inference.errors import Draining, WorkerLost
from serving.inference.image_queue import ImageQueue, Work
from serving.metrics import Metrics

CHECK_SECONDS = 20.0  # an idle worker proves itself on a black image this often
STALE_SECONDS = 60.0  # a worker without a successful run for so long is stuck
FIRST_REST, LONGEST_REST = 0.5, 30.0  # seconds before a dead worker is started again; doubling
logger = logging.getLogger(__name__)


_Run = Callable[[Sequence[np.ndarray]], Any]  # -> N rows, which can be sliced


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
        self.engine, self.metrics, self.max_batch_size = engine, metrics, max_batch_size
        self._renew = renew or (lambda: engine)
        self._changed = threading.Condition()  # held around all of the next four
        self._queue = ImageQueue(engine.name, metrics, max_queue_size)
        self._busy = 0  # lanes
        self._failure: BaseException | None = None  # of a lane
        self._draining = self._lost = False
        self._succeeded_at = -math.inf
        self._for_lanes: SimpleQueue[list[Work] | None] = SimpleQueue()  # None ends one
        # Daemons, lanes too: a run that never ends does not keep the process from ending.
        self._worker = threading.Thread(target=self._live, name="batcher", daemon=True)

    def start(self) -> None:
        self._worker.start()
        for number in range(self.engine.lanes if self.engine.lanes > 1 else 0):
            threading.Thread(target=self._lane, name=f"lane_{number}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Accepting, alive, and a run succeeded lately."""
        lately = time.monotonic() - self._succeeded_at < STALE_SECONDS
        return lately and not self._lost and not self._draining

    def submit(self, images: Sequence[np.ndarray], maps: bool = False) -> Future[Any]:
        """N preprocessed images -> the future (N, D). Cancelling it drops what still waits.

        Args:
            maps: with the maps for a matcher, an `Encoded`, of a model that has one.

        Raises:
            QueueFull, Draining, WorkerLost: nothing was queued.
        """
        work = Work(images, maps)
        with self._changed:
            if self._lost:
                raise WorkerLost("the model is not running: try again later")
            if self._draining:
                raise Draining("the server is shutting down: try again later")
            self._queue.put(work)
            self._changed.notify()
        return work.answer

    def drain(self, seconds: float) -> None:
        """Accept nothing more, answer what was accepted, end the worker; wait so long for it."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._worker.join(seconds)

    # The worker's life

    def _live(self) -> None:
        """It works; where that kills it, it tells everybody who waits, rests, and starts again on a
        new session.
        """
        rest = FIRST_REST
        while True:
            try:
                if self._lost:
                    self.engine = self._renew()
                self._check()
                self._lost, rest = False, FIRST_REST
                self._work()
                with self._changed:
                    self._changed.wait_for(lambda: self._busy == 0)
                break
            except BaseException:  # a thread that ends silently would leave everybody waiting
                logger.exception("model %s does not run", self.engine.name)
            with self._changed:
                self._lost = True
                queued = self._queue.clear()
            _tell_lost(queued)
            with self._changed:
                if self._changed.wait_for(lambda: self._draining, rest):
                    break
            rest = min(2 * rest, LONGEST_REST)
            self.metrics.restarts.labels(self.engine.name).inc()
        for _ in range(self.engine.lanes):
            self._for_lanes.put(None)

    def _work(self) -> None:
        """Until everything accepted was answered and nothing more is accepted."""
        while (taken := self._next()) is not None:
            batch, alone = taken
            if batch and alone:
                self._run(batch)
            elif batch:
                self._for_lanes.put(batch)
            elif time.monotonic() - self._succeeded_at > CHECK_SECONDS:
                self._check()

    def _check(self) -> None:
        """Prove on a black image that the model runs, and its lanes."""
        side = self.engine.preprocessing.size
        black = np.zeros((side, side, 3), np.uint8)
        self.engine.features([black])
        if self.engine.lanes > 1:
            self.engine.features_in_lane([black])
        self._succeeded_at = time.monotonic()

    # What runs next, and where

    def _next(self) -> tuple[list[Work], bool] | None:
        """The next batch, and whether it runs alone, with all threads; None: nothing is left to do.

        Alone where there are no lanes, too few requests for them, or a large one; else it is a
        lane's share of the images that wait. An empty batch: nothing came for a while.

        Raises what killed a lane, when the other lanes are done.
        """
        lanes, queue = self.engine.lanes, self._queue
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._may_run() or self._failure is not None or (self._draining and not queue)
                ),
                CHECK_SECONDS,
            )
            if self._failure is not None:
                self._changed.wait_for(lambda: self._busy == 0)
                failure, self._failure = self._failure, None
                raise failure
            if not self._may_run():
                return ([], False) if queue or not self._draining else None
            few = len(queue) < lanes or lanes == 1
            alone = self._busy == 0 and (few or queue.first > LANE_IMAGES)
            share = min(LANE_IMAGES, math.ceil(queue.images / lanes))
            batch = queue.take(self.max_batch_size if alone else share)
            self._busy += bool(batch) and not alone
            return batch, alone

    def _may_run(self) -> bool:
        """Something waits, and there is a lane for it, or nothing runs at all."""
        if not self._queue:
            return False
        small = self._queue.first <= LANE_IMAGES
        return self._busy == 0 or (small and self._busy < self.engine.lanes)

    def _lane(self) -> None:
        """The life of a lane's thread."""
        while (batch := self._for_lanes.get()) is not None:
            try:
                self._run(batch, in_lane=True)
            except BaseException as error:  # for the worker, which dies of it
                self._failure = error
            batch = None  # and with it the images, while the thread waits for the next
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    # A run

    def _run(self, batch: list[Work], in_lane: bool = False) -> None:
        """What it dies of, it raises, when everybody in the batch was told.

        Maps are computed for all where one asks for them: features are the same.
        """
        name = "encode" if any(work.maps for work in batch) else "features"
        run: _Run = getattr(self.engine, f"{name}_in_lane" if in_lane else name)
        try:
            self._answer(batch, run)
        except BaseException:
            self._lost = True  # before anybody is told, and asks again
            _tell_lost(batch)
            raise

    def _answer(self, batch: list[Work], run: _Run) -> None:
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


def _tell_lost(works: Sequence[Work]) -> None:
    for work in works:
        if not work.answer.done():
            work.answer.set_exception(WorkerLost("the model stopped running: try again later"))
