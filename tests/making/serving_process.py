"""`augself serve` as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """On a free port, ready; its host:port."""
    command = [sys.executable, "-m", "augself_hub.cli", "serve", *options, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = iter(process.stderr.readline, "")
            (found,) = next(
                filter(None, (re.findall(r"listening on http://(\S+)", x) for x in log))
            )
            while httpx.get(f"http://{found}/health/ready").status_code != 200:
                pass
            yield found
        finally:
            process.terminate()
