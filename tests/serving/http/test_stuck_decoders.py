"""Decoders that are held by an image past the deadline: counted, told, refused, recovered from."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

SLOW = (str(Path(__file__).with_name("slow_server.py")),)
EMBEDDINGS = "/v1/embeddings"


def metrics(server, *names):
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    return [float(re.search(rf"^augself_{name} (\S+)$", text, re.M)[1]) for name in names]


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_whose_decoders_are_all_held_says_so_and_recovers(
    start_server, pixels, encoded, problem, tmp_path
):
    held, options = tmp_path / "held", ("--decoders", "2", "--limit", "deadline_seconds=1")
    held.touch()
    server = start_server(*options, program=SLOW, HELD=str(held))
    black, good = encoded(np.zeros_like(pixels(1))), encoded(pixels(1))

    def post(data):
        files = {"image": ("secret-name.png", data)}
        return httpx.post(server.url + EMBEDDINGS, files=files, timeout=20)

    def ready(path="/health/ready"):
        return httpx.get(server.url + path, timeout=20).status_code

    assert problem(post(black))[:2] == (504, "deadline")
    assert metrics(server, "decoders", "decoders_busy", "decoders_stuck") == [2, 1, 1]
    assert ready() == 200 and post(good).status_code == 200  # there is another
    assert problem(post(black))[:2] == (504, "deadline")
    until(lambda: metrics(server, "decoders_stuck") == [2])
    assert (ready(), ready("/v2/health/ready"), ready("/health/live")) == (503, 503, 200)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, [good] * 8))
    assert {problem(answer)[:2] for answer in answers} == {(503, "decoders_stuck")}
    assert all("retry-after" in answer.headers for answer in answers)
    assert time.monotonic() - started < 5
    assert metrics(server, "decoders_busy", "decode_queue_size") == [2, 0]

    def reported():
        return [line for line in server.log if "a decoder has been busy" in line]

    until(lambda: len(reported()) == 2)  # the log follows twice a second
    held.unlink()
    until(lambda: ready() == 200)
    assert post(good).status_code == 200
    assert metrics(server, "decoders_busy", "decoders_stuck", "decoded_bytes") == [0, 0, 0]
    lines = reported()
    assert len(lines) == 2 and all(f"PNG of {len(black)} bytes" in line for line in lines)
    assert not any("secret-name" in line for line in server.log)


def test_a_held_decoder_does_not_keep_the_server_from_ending(
    start_server, pixels, encoded, tmp_path
):
    held = tmp_path / "held"
    held.touch()
    server = start_server("--limit", "deadline_seconds=1", program=SLOW, HELD=str(held))
    black = encoded(np.zeros_like(pixels(1)))
    assert (
        httpx.post(server.url + EMBEDDINGS, files={"image": black}, timeout=20).status_code == 504
    )
    server.process.terminate()
    assert server.process.wait(10) == 0
