"""The `augself` command, but the thread that runs a model dies of an all-white image.

Started by test_faults: no input kills the real one, so that this stands for what could.
"""

from __future__ import annotations

from augself_hub.cli import main
from serving.engine import Engine

_run = Engine.features


def _fragile(self: Engine, images):
    if any((image == 255).all() for image in images):
        raise SystemExit
    return _run(self, images)


if __name__ == "__main__":
    Engine.features = _fragile
    main()
