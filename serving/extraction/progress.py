"""How far an extraction is: a bar on a terminal and in a notebook, one line a minute elsewhere."""

from __future__ import annotations

import logging
import time

from tqdm import tqdm

from augself_hub.progress import bar

SECONDS = 60.0  # between two lines
logger = logging.getLogger(__name__)


class Progress:
    """Counts images as they are done.

    Args:
        total: images there will be; None where only reading tells.
        shown: the bar; None: where somebody looks.
    """

    def __init__(self, total: int | None, shown: bool | None = None) -> None:
        self.total = total
        self.done = self.kept = self.errors = 0
        self._started = self._logged = time.monotonic()
        self._bar = bar(total, "image", shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def keep(self, images: int, errors: int) -> None:
        """Images of a part that was there already: they say nothing about the speed."""
        self.done += images
        self.kept += images
        self.errors += errors
        if not self._bar.disable:
            self._bar.initial += images  # which the bar's rate leaves out
            self._bar.update(images)

    def add(self, images: int, errors: int) -> None:
        """Images that were computed now."""
        self.done += images
        self.errors += errors
        self._bar.set_postfix_str(f"{self.errors} errors", refresh=False)
        self._bar.update(images)
        if self._bar.disable and time.monotonic() - self._logged >= SECONDS:
            self._logged = time.monotonic()
            logger.info("%s", self.line())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Images a second, of those computed now."""
        return (self.done - self.kept) / max(self.seconds, 1e-9)

    def line(self) -> str:
        """`4096 of 10000 images, 52 images/s, 1:53 left, 3 errors`."""
        known = self.total is not None and self.rate > 0
        total = f" of {self.total}" if known else ""
        left = self._left() if known else ""
        return f"{self.done}{total} images, {self.rate:.0f} images/s{left}, {self.errors} errors"

    def _left(self) -> str:
        seconds = max((self.total or 0) - self.done, 0) / self.rate
        return f", {tqdm.format_interval(seconds)} left"
