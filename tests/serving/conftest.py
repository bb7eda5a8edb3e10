"""A real server process, images whose features are known, and errors that tell no secrets."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

SIDE = 32
LIMITS = {
    "body_bytes": 1_000_000,
    "items": 8,
    "pixels": 1_000_000,
    "waiting_images": 4096,
    "upload_seconds": 2,
}


class ServerProcess:
    """`augself serve` on a free port."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "augself_hub.cli", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.url = self._address()
        threading.Thread(target=self._drain_log, daemon=True).start()
        self.wait_until_ready()

    def _address(self) -> str:
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                return found[1]
        raise AssertionError("".join(self.log))

    def _drain_log(self) -> None:
        self.log.extend(self.process.stderr)

    def wait_until_ready(self) -> None:
        for _ in range(200):
            if httpx.get(f"{self.url}/health/ready").status_code == 200:
                return
            threading.Event().wait(0.05)
        raise AssertionError("".join(self.log))

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def start_server(tiny_model: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server of its own for one test; stops it afterwards."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        started.append(ServerProcess("--model", str(tiny_model), *options))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as it was, with small limits."""
    limits = [f"--limit={name}={value}" for name, value in LIMITS.items()]
    server = ServerProcess("--model", str(tiny_model), *limits)
    yield server
    assert server.stop() == 0


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def pixels() -> Callable[[int], np.ndarray]:
    """A number -> an image of its own, (32, 32, 3) uint8: preprocessing leaves it as it is."""
    return lambda number: np.random.default_rng(number).integers(
        0, 256, (SIDE, SIDE, 3), dtype=np.uint8
    )


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """An array -> an image file."""

    def encode(array: np.ndarray, form: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, form)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def expected(tiny_model: Path) -> Callable[[np.ndarray], np.ndarray]:
    """One image -> its features, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(tiny_model / "onnx/model.onnx"))
    return lambda array: session.run(None, {"images": array[None]})[0][0]
