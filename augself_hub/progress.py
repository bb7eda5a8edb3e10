"""One bar for everything that takes long: on terminals and in notebooks, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

with warnings.catch_warnings():  # in a notebook without ipywidgets the bar is text, and that is all
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

SECONDS = 1.0  # before a bar is shown: what is done sooner needs none
SAY_EVERY = 8.0  # seconds between two lines where there is no bar
Part = TypeVar("Part", bound=Sized)
log = logging.getLogger(__name__)


def shows_bars() -> bool:
    """Whether somebody looks: at a terminal, or at a notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def bar(total: int | None, unit: str, progress: bool | None = None, **options: Any) -> Any:
    """A tqdm bar.

    Args:
        total: units there will be; None: only reading tells.
        progress: True or False: show it or not; None: as `shows_bars` says.
        options: of tqdm.
    """
    shown = shows_bars() if progress is None else progress
    options = {"delay": 0 if progress else SECONDS, **options}
    return tqdm(total=total, unit=unit, disable=not shown, **options)


def counted(parts: Iterable[Part], total: int, what: str, unit: str) -> Iterator[Part]:
    """The parts of some work; how far it is, is shown by a bar or said every SAY_EVERY seconds.

    A part is done when the next one is asked for, so that parts should take a few seconds at most.

    Args:
        total: units of all parts; a part is its length of them.
        what: the work, e.g. "encoding views".
    """
    done, began = 0, time.monotonic()
    said = began
    with bar(total, unit, desc=what, leave=False) as shown:
        for part in parts:
            yield part
            done += len(part)
            shown.update(len(part))
            if shown.disable and time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                log.info("%s: %d of %d %ss, %.0f s", what, done, total, unit, said - began)
