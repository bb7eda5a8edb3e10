"""Limits on what one server takes on, checked against each other."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from augself_hub.errors import UsageError
from augself_hub.images.budget import DECODED
from augself_hub.preprocess import MAX_PIXELS, MOST_PIXELS

# Names of version 0.1, which scripts may hold.
RENAMED = {"slots": "max_concurrent_requests", "waiting_images": "max_queue_size"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Args:
        body_bytes: of one request's body, and of the images fetched for one request.
        total_bytes: of all requests' bodies and fetched images in memory at once; beyond it
            requests get 429.
        items: images (or pairs) in one request.
        pixels: width times height of one image, read off its header.
        decoded_bytes: of decoded images in memory at once; a decoder waits for its share.
        max_queue_size: images in the queue of one model; beyond it requests get 429.
        max_concurrent_requests: requests with a body worked on at once; others get 429.
        connections: open at once, fewer where the process may not open as many files; beyond it
            those that wait longest for a request are closed.
        header_seconds: for a request's head, from the connection's beginning or the answer before.
        upload_seconds: for the whole body of a request (408).
        answer_seconds: for a client to take some of its answer, else its connection is closed.
        fetch_seconds: for one image fetched from a URL, redirects included; it begins with its
            turn, as a server opens so many connections at once.
        deadline_seconds: from the whole body to the answer (504); also the time to drain.

    Raises:
        UsageError: a limit that nothing can keep, or two that contradict each other.
    """

    body_bytes: int = 32 * 2**20
    total_bytes: int = 256 * 2**20
    items: int = 64
    pixels: int = MAX_PIXELS
    decoded_bytes: int = DECODED.limit
    max_queue_size: int = 256
    max_concurrent_requests: int = 64
    connections: int = 1000
    header_seconds: float = 10.0
    upload_seconds: float = 30.0
    answer_seconds: float = 30.0
    fetch_seconds: float = 10.0
    deadline_seconds: float = 30.0

    def __post_init__(self) -> None:
        """A request within one limit must not be impossible under another."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:  # nan neither
                raise UsageError(f"the limit {name} is {value}: it must be more than 0, and finite")
            if name.endswith("_seconds") and value > threading.TIMEOUT_MAX:
                raise UsageError(f"the limit {name} is {value}: no thread can wait as long")
        if self.pixels > MOST_PIXELS:
            raise UsageError(
                f"the limit pixels is {self.pixels}: "
                f"Pillow opens no image of more than {MOST_PIXELS}"
            )
        if self.max_queue_size < 2 * self.items:
            raise UsageError(
                f"max_queue_size is {self.max_queue_size}, but one request may bring "
                f"{self.items} pairs: allow at least {2 * self.items}"
            )
        if self.total_bytes < self.body_bytes:
            raise UsageError(
                f"total_bytes is {self.total_bytes}, but one body may have {self.body_bytes} "
                "(body_bytes): allow at least as many"
            )

    def record(self) -> dict[str, int | float]:
        """Name -> value, those that had another name in 0.1 under it, too."""
        return vars(self) | {old: getattr(self, name) for old, name in RENAMED.items()}

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Limits:
        """`NAME=VALUE` texts -> limits, the defaults where nothing is said.

        Raises:
            UsageError: an unknown name, one that is given twice, no number, or limits that
                contradict each other.
        """
        types: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        values = {}
        for name, _, value in (setting.partition("=") for setting in settings):
            if name in RENAMED:
                logger.warning("the limit %s is called %s now", name, RENAMED[name])
                name = RENAMED[name]
            if name not in types:
                raise UsageError(f"unknown limit {name!r}: use one of {', '.join(types)}")
            if name in values:
                raise UsageError(f"the limit {name} is given twice: give it once")
            try:
                values[name] = types[name](value)
            except ValueError:
                raise UsageError(f"the limit {name} is {value!r}: give a number") from None
        return cls(**values)
