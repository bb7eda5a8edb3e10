"""A real server process, images whose features are known, and errors that tell no secrets."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from inference import INFER, images_json
from PIL import Image

SIDE = 32
LIMITS = {
    "body_bytes": 4_000_000,
    "items": 8,
    "pixels": 1_000_000,
    "max_queue_size": 4096,
    "upload_seconds": 2,
}


SECRETS = ("/", "0x", "Error", "Exception", "Traceback", "object at")
AUGSELF = ("-m", "augself_hub.cli")


class ServerProcess:
    """`augself serve` on a free port; `environment` is added to ours.

    Args:
        program: what Python runs instead of the command.
        authority: a certificate that clients trust.
    """

    def __init__(
        self,
        *options: str,
        program: tuple[str, ...] = AUGSELF,
        authority: Path | None = None,
        **environment: str,
    ) -> None:
        port = [] if "--uds" in options else ["--port", "0"]
        command = [sys.executable, *program, "serve", *port, *options]
        self.authority = authority
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self.url = self._address()
        threading.Thread(target=self._drain_log, daemon=True).start()
        self.wait_until_ready()

    def _address(self) -> str:
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on ((?:https?|unix):[^\s\"]+)", line):
                return found[1]
        raise AssertionError("".join(self.log))

    def _drain_log(self) -> None:
        self.log.extend(self.process.stderr)

    def client(self, **given: Any) -> httpx.Client:
        if self.url.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=self.url.removeprefix("unix:"))
            return httpx.Client(transport=transport, base_url="http://server", **given)
        context = self.authority and ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.url, verify=context or True, **given)

    def wait_until_ready(self) -> None:
        with self.client() as client:
            for _ in range(200):
                if client.get("/health/ready").status_code == 200:
                    return
                threading.Event().wait(0.05)
        raise AssertionError("".join(self.log))

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def megabytes(self, what: str = "VmRSS") -> float:
        """Its memory now, or the most it had (VmHWM) since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def connect(self) -> socket.socket:
        """A connection for what no HTTP client would send."""
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def noisy_pictures(tmp_path_factory) -> Callable[[int], Path]:
    """A folder of so many pictures of two classes, each tenth of them damaged."""

    def make(count: int) -> Path:
        folder = tmp_path_factory.mktemp("source")
        for number in range(count):
            path = folder / "ab"[number % 2] / f"{number:03}.png"
            path.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            if number % 10 == 9:
                path.write_bytes(path.read_bytes()[:100])
        return folder

    return make


@pytest.fixture(scope="session")
def server_process() -> type[ServerProcess]:
    """For a test that says by itself what is served."""
    return ServerProcess


@pytest.fixture
def start_server(tiny_model: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server of its own for one test; stops it afterwards."""
    started: list[ServerProcess] = []

    def start(*options: str, **more: Any) -> ServerProcess:
        started.append(ServerProcess("--model", str(tiny_model), *options, **more))
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


@pytest.fixture(scope="session")
def hasty(tiny_model: Path) -> Iterator[ServerProcess]:
    """One server with short times for heads, bodies and answers."""
    times = ("header_seconds=1", "answer_seconds=1", "upload_seconds=3")
    server = ServerProcess("--model", str(tiny_model), *(f"--limit={time}" for time in times))
    yield server
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def infers_after(client, pixels, expected) -> Iterator[None]:
    """After each request under /v2, good or bad, a good one has its answer."""
    yield
    good = client.post(INFER, json={"inputs": [images_json(pixels(9)[None])]})
    features = np.array(good.json()["outputs"][0]["data"], np.float32)
    np.testing.assert_allclose(features, expected(pixels(9)), rtol=1e-4, atol=1e-5)


class Load:
    """Clients that post unique images one after the other, and what became of every one.

    Attributes:
        codes: status -> how many. wrong: numbers of images whose features were not theirs.
        broken: answers that were begun and not ended.
    """

    NO_CONNECTION = 0  # refused or closed before a byte of an answer: nothing was accepted

    def __init__(self, url: str, pixels, encoded, expected, images: int = 40) -> None:
        self.url, self.images = url, images
        self.files = [encoded(pixels(number)) for number in range(images)]
        self.wanted = [expected(pixels(number)) for number in range(images)]
        self.codes: Counter[int] = Counter()
        self.wrong: list[int] = []
        self.broken: list[str] = []

    @contextmanager
    def running(self, clients: int = 8) -> Iterator[None]:
        """So many clients, until the `with` ends."""
        over = threading.Event()
        threads = [
            threading.Thread(target=self._client, args=(first, over)) for first in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def wait_for(self, code: int, count: int = 1) -> None:
        """Until so many answers of this kind have come."""
        until = time.monotonic() + 60
        while self.codes[code] < count:
            assert time.monotonic() < until, self.codes
            time.sleep(0.01)

    def _client(self, number: int, over: threading.Event) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not over.is_set():
                self.codes[self._ask(client, number % self.images)] += 1
                number += 7

    def _ask(self, client: httpx.Client, number: int) -> int:
        try:
            answer = client.post("/v1/embeddings", content=self.files[number])
        except httpx.NetworkError:
            time.sleep(0.01)
            return self.NO_CONNECTION
        except httpx.RemoteProtocolError as error:
            if "without sending a response" not in str(error):
                self.broken.append(str(error))
            return self.NO_CONNECTION
        if answer.status_code == 200:
            found = np.array(answer.json()["data"][0]["embedding"], np.float32)
            if not np.allclose(found, self.wanted[number], rtol=1e-4, atol=1e-5):
                self.wrong.append(number)
        return answer.status_code


@pytest.fixture
def load(pixels, encoded, expected):
    return lambda url: Load(url, pixels, encoded, expected)


@pytest.fixture(scope="session")
def vectors() -> Callable[[httpx.Response], np.ndarray]:
    """The features (N, D) of an answer, in the order of the request."""

    def read(response: httpx.Response) -> np.ndarray:
        assert response.status_code == 200, response.text
        data = response.json()["data"]
        assert [item["index"] for item in data] == list(range(len(data)))
        return np.array([item["embedding"] for item in data], np.float32)

    return read


@pytest.fixture(scope="session")
def problem() -> Callable[[httpx.Response], tuple[int, str, str | None]]:
    """(status, code, param) of an error, whose body must tell nothing of our inside."""

    def read(response: httpx.Response) -> tuple[int, str, str | None]:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        message = error["message"].replace("application/", "").replace("image/", "")
        message = message.replace("multipart/", "").replace("/v1/models", "")
        assert not any(secret in message for secret in SECRETS), error["message"]
        return response.status_code, error["code"], error["param"]

    return read


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
    session = onnxruntime.InferenceSession(str(tiny_model / "onnx/features.onnx"))
    return lambda array: session.run(None, {"images": array[None]})[0][0]
