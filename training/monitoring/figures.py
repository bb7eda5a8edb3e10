"""Figures, drawn by matplotlib without a trace in HOME."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

from augself_hub.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    matplotlib keeps a list of fonts in ~/.cache. Where nobody has imported it yet or said where
    (MPLCONFIGDIR), the list is made anew in a folder that is removed at exit: under a second.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    private = "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ
    if private:
        os.environ["MPLCONFIGDIR"] = folder = tempfile.mkdtemp(prefix="augself-fonts-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import matplotlib.font_manager  # noqa: F401  asks for the folder, once
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", "train") from error
    finally:
        if private:
            del os.environ["MPLCONFIGDIR"]
    return Figure(figsize=(width, height), layout="constrained")
