"""The demo on the embedded model: `python app.py`; also what a Hugging Face Space runs.

Listens on 127.0.0.1:7860 unless GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say otherwise.
"""

from __future__ import annotations

import sys

from augself_hub.errors import AugSelfError
from serving.client import Local
from serving.demo import LAUNCH, build
from serving.engine import load


def main() -> None:
    try:
        client = Local(load())
    except AugSelfError as error:
        sys.exit(f"error: {error}")
    build(client).launch(**LAUNCH)


if __name__ == "__main__":
    main()
