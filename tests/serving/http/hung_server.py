"""The `augself` command, but models are loaded and run only while the file named by HELD is gone.

Started by test_faults: no graph is known that never ends, so that this stands for one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from augself_hub.cli import main
from serving.inference.engine import Engine
from serving.inference.source import ModelSource


def held(function):
    def waiting(*arguments):
        while Path(os.environ["HELD"]).exists():
            time.sleep(0.05)
        return function(*arguments)

    return waiting


if __name__ == "__main__":
    ModelSource.load = held(ModelSource.load)
    for name in ("features", "features_in_lane", "encode", "encode_in_lane"):
        setattr(Engine, name, held(getattr(Engine, name)))
    main()
