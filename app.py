"""The demo: `python app.py` is `augself serve --demo`; also what a Hugging Face Space runs.

Takes the options of `augself serve`. Listens on 127.0.0.1:7860 unless GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT, which a Space sets, or --host and --port say otherwise. Pages of SPACE_HOST, the
name that a Space's visitors use, may ask whatever its proxy makes of the Host.
"""

from __future__ import annotations

import os
import sys

from augself_hub.cli import main

_ADDRESS = {"--host": "GRADIO_SERVER_NAME", "--port": "GRADIO_SERVER_PORT"}


def options() -> list[str]:
    """What the environment says of the address, as options; later ones win."""
    space = os.environ.get("SPACE_HOST")
    page = ["--allow-origin", f"https://{space}"] if space else []
    return page + [
        text
        for name, variable in _ADDRESS.items()
        if variable in os.environ
        for text in (name, os.environ[variable])
    ]


if __name__ == "__main__":
    main(["serve", "--demo", *options(), *sys.argv[1:]])
