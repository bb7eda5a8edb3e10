"""SIGTERM outside the optimizer's loop, where no step is at hand that a checkpoint could follow."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """The run was asked to end. What it was doing is done again when it is resumed."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While the `with` lasts, SIGTERM raises Stopped in the main thread.

    In other threads no handler can be set. One of several processes keeps the handler it has: the
    others may wait for it within a library, where no exception reaches them.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
