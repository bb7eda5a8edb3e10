"""Bytes of decoded pictures in this process at once, shared by all its threads that decode."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Lends bytes; who asks for more than are free waits, in the order in which they asked.

    Args:
        limit: bytes lent at once. One picture that takes more has all of it, alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lent = 0
        self.renew()

    def renew(self) -> None:
        """Free, with locks that nobody holds: in a new process after a fork."""
        self.lent = 0
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def lend(self, count: int) -> Iterator[None]:
        """Holds this many bytes, or all, for as long as the `with` lasts."""
        with self._turn, self._changed:  # the lock is the queue: the first in it waits
            count = min(count, self.limit)
            self._changed.wait_for(lambda: self.lent + count <= self.limit)
            self.lent += count
        try:
            yield
        finally:
            with self._changed:
                self.lent -= count
                self._changed.notify()


# A picture of 50 million pixels takes 50 to 1,000 MB, by format: docs/deploy/sizing.md.
DECODED = Budget(2**30)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODED.renew)
