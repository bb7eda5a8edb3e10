"""The `augself` command, but an all-black image is decoded until the file named by HELD is gone.

Started by test_stuck_decoders: no image is known that holds a decoder, so that this stands for one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from augself_hub.cli import main
from augself_hub.preprocess import Preprocessing

prepare = Preprocessing.prepare


def slow(self, data, max_pixels):
    image = prepare(self, data, max_pixels)
    while not image.any() and Path(os.environ["HELD"]).exists():
        time.sleep(0.05)
    return image


if __name__ == "__main__":
    Preprocessing.prepare = slow
    main()
