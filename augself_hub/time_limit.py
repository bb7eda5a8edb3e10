"""How long a graph may take to load and to answer first: one of a stranger's may have no end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from augself_hub.errors import ModelFolderError
from augself_hub.runtime import onnxruntime

# By device, to load a graph and to answer the first images; TensorRT compiles each for minutes.
LOAD_SECONDS = {"cpu": 60.0, "openvino": 120.0, "cuda": 120.0, "tensorrt": 3600.0}


class TimeLimit:
    """Ends what ONNX Runtime does when it takes too long: a Loop in a graph may have no end.

    Attributes:
        passed: whether it did.
        run: for the runs that are to be ended.
    """

    def __init__(self) -> None:
        self.passed = False
        self.run = onnxruntime.RunOptions()
        self._loading: list[onnxruntime.SessionOptions] = []

    def load(self, options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
        """The same options, of a session whose loading is to be ended."""
        self._loading.append(options)
        return options

    def end(self) -> None:
        self.passed = self.run.terminate = True
        for options in self._loading:
            options.set_load_cancellation_flag(True)


@contextlib.contextmanager
def time_limit(path: Path, seconds: float) -> Iterator[TimeLimit]:
    """For loading a graph and its first runs.

    Raises:
        ModelFolderError: the time is over; names the graph.
    """
    limit = TimeLimit()
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    except Exception as error:
        if limit.passed:
            raise ModelFolderError(
                f"{path} is refused: it did not load and answer within {seconds:g} s"
            ) from error
        raise
    finally:
        timer.cancel()
