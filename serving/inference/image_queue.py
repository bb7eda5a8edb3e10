"""What waits for one model: requests in the order they came, bounded in images.

It has no lock of its own: its batcher holds one around every call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.inference.errors import QueueFull
from serving.metrics import Metrics


@dataclass
class Work:
    """One request's images, (S, S, 3) uint8 each.

    Args:
        maps: the answer is what `Engine.encode` gives, else the features alone.
    """

    images: Sequence[np.ndarray]
    maps: bool = False
    answer: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class ImageQueue:
    """The queue of one model; its length is that of requests.

    Args:
        name: of the model, for the metrics.
        max_images: that may wait.

    Attributes:
        images: that wait.
    """

    def __init__(self, name: str, metrics: Metrics, max_images: int) -> None:
        self._name, self._metrics, self._max_images = name, metrics, max_images
        self._works: deque[Work] = deque()
        self.images = 0
        metrics.queue.labels(name).set_function(lambda: self.images)

    def __len__(self) -> int:
        return len(self._works)

    @property
    def first(self) -> int:
        """Images of the request that has waited longest."""
        return len(self._works[0].images)

    def put(self, work: Work) -> None:
        """Raises QueueFull where it would be too many images."""
        if self.images + len(work.images) > self._max_images:
            raise QueueFull(f"{self.images} images are waiting already: try again later")
        self._works.append(work)
        self.images += len(work.images)

    def take(self, room: int) -> list[Work]:
        """As many requests as have so many images; one that has more comes by itself.

        Those whose client left are dropped.
        """
        taken: list[Work] = []
        while self._works and (not taken or len(self._works[0].images) <= room):
            work = self._works.popleft()
            self.images -= len(work.images)
            if work.answer.set_running_or_notify_cancel():
                self._metrics.stages.labels("queue").observe(time.monotonic() - work.since)
                taken.append(work)
                room -= len(work.images)
            else:
                self._metrics.cancelled.labels(self._name).inc()
        return taken

    def clear(self) -> list[Work]:
        """All that wait, to be told why they get no answer."""
        left = [work for work in self._works if work.answer.set_running_or_notify_cancel()]
        self._works.clear()
        self.images = 0
        return left
