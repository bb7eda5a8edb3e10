"""Threads that decode, and which of them are stuck.

A request that is given up leaves its thread at work: no library for images can be interrupted. So
a thread counts as busy until it is free, not until nobody waits for it, and a server all of whose
threads are past the deadline is not ready: it says so at once, and queues nothing that it cannot
do.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from serving.inference.errors import DecodersStuck
from serving.inference.memory import return_large_blocks
from serving.metrics import Metrics

Result = TypeVar("Result")
WATCH_SECONDS = 0.5
logger = logging.getLogger(__name__)


@dataclass
class _Job:
    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)
    about: str = "something that is no image"
    began: float = 0.0
    reported: bool = False


class Decoders:
    """A number of threads for work that blocks.

    Args:
        count: threads.
        deadline_seconds: a thread that has been at one thing for longer is stuck.
    """

    def __init__(self, count: int, deadline_seconds: float, metrics: Metrics) -> None:
        return_large_blocks()
        self.count, self._deadline = count, deadline_seconds
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._running: dict[int, _Job] = {}  # by thread
        metrics.decoders.set(count)
        metrics.decoders_busy.set_function(lambda: len(self._running))
        metrics.decode_queue.set_function(self._queue.qsize)
        metrics.decoders_stuck.set_function(lambda: len(self.stuck))
        for number in range(count):
            # Daemons: one that is stuck does not keep the process from ending.
            threading.Thread(target=self._live, name=f"decode_{number}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """A thread is free, or will be: not all are stuck."""
        return len(self.stuck) < self.count

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """On a thread; what is cancelled before its turn is not done. Raises DecodersStuck."""
        if not self.ready:
            raise DecodersStuck(
                "every decoder is busy with an image past the deadline: try again later"
            )
        job = _Job(lambda: function(*args))
        self._queue.put(job)
        try:
            return await asyncio.wrap_future(job.answer)
        finally:
            if job.answer.cancelled():  # it stays in the queue, but not what it would have decoded
                job.work = lambda: None

    def note(self, about: str) -> None:
        """What the calling thread is at now, for the log: never a name that a client sent."""
        self._running[threading.get_ident()].about = about

    async def watch(self) -> None:
        """Log every stuck thread once. Never returns."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for job in self.stuck:
                if not job.reported:
                    job.reported = True
                    seconds = time.monotonic() - job.began
                    logger.warning("a decoder has been busy for %.0f s: %s", seconds, job.about)

    def stop(self) -> None:
        """Begin nothing more; whatever waits is cancelled."""
        while not self._queue.empty():
            job = self._queue.get()
            if job is not None:
                job.answer.cancel()
        for _ in range(self.count):
            self._queue.put(None)

    @property
    def stuck(self) -> list[_Job]:
        """What threads have been at for longer than the deadline."""
        now = time.monotonic()
        return [j for j in list(self._running.values()) if now - j.began > self._deadline]

    def _live(self) -> None:
        thread = threading.get_ident()
        while (job := self._queue.get()) is not None:
            if not job.answer.set_running_or_notify_cancel():
                continue
            job.began = time.monotonic()
            self._running[thread] = job
            try:
                result = job.work()
            except BaseException as error:  # also SystemExit: whoever waits must hear of it
                del self._running[thread]
                job.answer.set_exception(error)
            else:
                del self._running[thread]
                job.answer.set_result(result)
            job = None  # and with it the pictures, while the thread waits for the next
