"""Good and bad input for minutes: every answer as it should be, and memory that does not grow.

AUGSELF_SOAK_SECONDS=30 python -m pytest -m slow tests/serving/http/test_soak.py
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image

SECONDS = float(os.environ.get("AUGSELF_SOAK_SECONDS", 600))
WARM_UP = SECONDS / 5  # caches and arenas fill
CLIENTS, SAMPLES = 4, 120
GROWTH = 10.0  # megabytes over the whole soak, beyond what the scatter of the samples explains
Request = tuple[dict, int]  # what to post, and the status of its answer
JSON = {"Content-Type": "application/json"}
HOSTILE_JSON = [
    (b"[" * 100_000, 413),
    (b"[" * 5_000, 400),
    (b'{"input": [' + b"1," * 9_000 + b"1]}", 422),
    (b'{"input": "x"' + b"".join(b',"%d":{}' % i for i in range(5_000)) + b"}", 400),
    (b'{"input": "' + b"\\n" * 1_900_000 + b'"}', 413),
    (b'{"input": "' + b"\xc3\xa9" * 900_000 + b'"}', 400),
    (b'{"normalize": ' + b"9" * 3_900_000 + b"}", 400),
    (b'{"%b": 1}' % (b"k" * 3_900_000), 422),
]
HOSTILE_HTTP = [  # by a connection of its own each
    b"\0" * 100_000,
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n" + b"X:\r\n" * 50_000,
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 40_000,
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,  # left in the middle
    b"GET /v1/models HTTP/1.1\r\n",
]


class Soak:
    """Clients that ask one thing after the other, good and bad by turns.

    Attributes:
        codes: how many answers of each kind. wrong: what came instead of what should have.
    """

    def __init__(self, url: str, requests: list[Request], wanted: np.ndarray) -> None:
        self.url, self.requests, self.wanted = url, requests, wanted
        self.codes: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._harass))

    def __enter__(self) -> Soak:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.is_set():
                what, status = self.requests[number % len(self.requests)]
                answer = client.post("/v1/embeddings", **what)
                self.codes[answer.status_code] += 1
                if answer.status_code != status or not self._right(answer):
                    self.wrong.append(f"{number % len(self.requests)}: {answer.text[:200]}")
                number += 1

    def _harass(self) -> None:
        """What is no HTTP, half of it, or too much of it; the connection left as it is."""
        address = httpx.URL(self.url)
        while not self.over.is_set():
            for data in HOSTILE_HTTP:
                with (
                    contextlib.suppress(ConnectionError, TimeoutError),
                    socket.create_connection((address.host, address.port or 80), 1) as connection,
                ):
                    connection.sendall(data)
                    connection.recv(1)
                self.over.wait(0.05)

    def _right(self, answer: httpx.Response) -> bool:
        if answer.status_code != 200:
            return True
        found = [item["embedding"] for item in answer.json()["data"]]
        return np.allclose(found, self.wanted[: len(found)], rtol=1e-4, atol=1e-5)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def large() -> bytes:
    """A photograph of a megapixel: decoding takes memory that must come back."""
    file = io.BytesIO()
    Image.effect_noise((1000, 1000), 50).save(file, "JPEG")
    return file.getvalue()


def requests_of(files: list[bytes]) -> list[Request]:
    """Good ones whose first image is the first file, and bad ones of every kind."""
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in files]
    good: list[dict] = [
        {"content": files[0]},
        {"json": {"input": urls[:1]}},
        {"files": [("image", data) for data in files]},
        {"json": {"input": urls}},
    ]
    bad: list[Request] = [
        ({"content": cut(files[0])}, 400),
        ({"content": cut(large())}, 400),
        ({"content": b""}, 400),
        ({"content": b"II*\0" + bytes(100)}, 415),
        ({"json": {"input": [*urls, "data:,"]}}, 400),
        ({"json": {"input": urls * 9}}, 413),
        ({"json": {"input": "x", "model": "nobody"}}, 404),
        ({"json": {}}, 422),
        ({"content": bytes(4_500_000)}, 413),
        ({"files": {"other": large()}}, 400),
        ({"content": b"x", "headers": {"Host": "evil.example"}}, 403),
        ({"content": b"x", "headers": {"Origin": "http://evil.example"}}, 403),
        *(({"content": body, "headers": JSON}, status) for body, status in HOSTILE_JSON),
    ]
    return [request for each in bad for request in ((good[len(each[0]) % 4], 200), each)] + [
        (what, 200) for what in good
    ]


def sampled(resident: Callable[[], float]) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, megabytes) after the warm-up."""
    time.sleep(WARM_UP)
    began, rows = time.monotonic(), []
    while time.monotonic() - began < SECONDS - WARM_UP:
        rows.append((time.monotonic() - began, resident()))
        time.sleep((SECONDS - WARM_UP) / SAMPLES)
    seconds, megabytes = np.array(rows).T
    return seconds, megabytes


def growth(seconds: np.ndarray, megabytes: np.ndarray) -> tuple[float, float]:
    """(megabytes gained over the soak by linear regression, three standard errors of it)."""
    centred = seconds - seconds.mean()
    slope = centred @ megabytes / (centred @ centred)
    rest = megabytes - megabytes.mean() - slope * centred
    error = np.sqrt(rest @ rest / (len(seconds) - 2) / (centred @ centred))
    return float(slope * np.ptp(seconds)), float(3 * error * np.ptp(seconds))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_memory_does_not_grow(server, pixels, encoded, expected):
    """The line through the resident memory is flat within its noise, and nothing is answered
    wrongly or not at all."""
    files = [encoded(pixels(number)) for number in range(4)]
    wanted = np.stack([expected(pixels(number)) for number in range(4)])
    with Soak(server.url, requests_of(files), wanted) as soak:
        gained, noise = growth(*sampled(server.megabytes))
    assert not soak.wrong, soak.wrong[:3]
    assert {200, 400, 403, 404, 413, 415, 422} == set(soak.codes)
    assert gained < GROWTH + noise, f"{gained:.1f} MB gained, {noise:.1f} MB of noise"
    print(f"{sum(soak.codes.values())} answers {dict(soak.codes)}; {gained:+.1f} ± {noise:.1f} MB")
    assert "Traceback" not in "".join(server.log)


def test_a_leak_would_be_seen():
    """40 MB gained in the noise of a heap that breathes by 10 MB."""
    seconds = np.linspace(0, 480, SAMPLES)
    noise = 10 * np.random.default_rng(0).normal(size=SAMPLES)
    flat, leaking = 300 + noise, 300 + seconds / 12 + noise
    for megabytes, grows in ((flat, False), (leaking, True)):
        gained, error = growth(seconds, megabytes)
        assert (gained > GROWTH + error) is grows
