"""One bar for everything that takes long: on terminals and in notebooks, nowhere else."""

from __future__ import annotations

import sys
import warnings
from typing import Any

with warnings.catch_warnings():  # in a notebook without ipywidgets the bar is text, and that is all
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

SECONDS = 1.0  # before a bar is shown: what is done sooner needs none


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
