"""Faults under load, against real processes: what was accepted is answered, and rightly."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

EMBEDDINGS = "/v1/embeddings"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
FRAGILE, HUNG = (
    (str(Path(__file__).with_name(f"{name}_server.py")),) for name in ("fragile", "hung")
)


def metric(client: httpx.Client, name: str) -> float:
    """The sum of a metric over its labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


# -- The end ---------------------------------------------------------------------------------------


def test_sigterm_answers_what_was_accepted_and_exits_with_0(start_server, pixels, encoded, problem):
    """Rule 7: an upload is under way; ready is off, new work is refused, the upload is answered."""
    server, data = start_server(), encoded(pixels(1))
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data[:100])
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.5)
        ready = httpx.get(f"{server.url}/health/ready")
        new = httpx.post(server.url + EMBEDDINGS, files={"image": data})
        assert (ready.status_code, new.status_code) == (503, 503)
        assert problem(new)[1] == "draining" and "retry-after" in new.headers
        connection.sendall(data[100:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.process.wait(20) == 0


def test_sigterm_under_load_loses_no_answer(start_server, load, tmp_path):
    """Whatever the server has seen, by its own log, is what the clients have been told."""
    log = tmp_path / "access.jsonl"
    server = start_server("--access-log", str(log))
    clients = load(server.url)
    with clients.running():
        clients.wait_for(200, 40)
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert not clients.wrong and not clients.broken
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seen = Counter(line["status"] for line in lines if line["method"] == "POST")
    del clients.codes[clients.NO_CONNECTION]
    assert seen == clients.codes and set(seen) <= {200, 503}


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start_server, first):
    """An upload that would hold the drain for half a minute holds it no longer."""
    server = start_server()
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        time.sleep(0.3)
        server.process.send_signal(first)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(15)


def test_the_drain_ends_at_the_deadline(start_server):
    """A client that never sends its body cannot keep the server."""
    server = start_server("--limit", "deadline_seconds=1")
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        time.sleep(0.3)
        assert server.stop() == 0  # within 20 seconds; the upload could take 30


@pytest.mark.parametrize("what", ["loading", "run"])
def test_a_model_that_hangs_does_not_keep_the_server_from_ending(
    what, start_server, pixels, encoded, tmp_path
):
    """The drain has one deadline, and no thread that hangs is waited for after it."""
    held, options = tmp_path / "held", ("--lazy",) if what == "loading" else ()
    if what == "loading":
        held.touch()
    server = start_server(*options, "--limit", "deadline_seconds=8", program=HUNG, HELD=str(held))
    held.touch()
    with server.connect() as connection:
        data = encoded(pixels(1))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        assert connection.recv(4096).startswith(b"HTTP/1.1 50")
        assert server.process.wait(30) == 0
    assert time.monotonic() - began < 8 + 6


# -- Clients and workers ---------------------------------------------------------------------------


def test_clients_that_leave_cost_the_others_nothing(start_server, load, pixels, encoded):
    """Half of the connections are cut after the request was sent, at various moments."""
    server, data = start_server(), encoded(pixels(1))
    clients = load(server.url)
    with clients.running(4):
        for number in range(60):
            with server.connect() as connection:
                sent = len(data) if number % 2 else number
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data[:sent])
                time.sleep(number % 5 * 0.005)
                reset = b"\1\0\0\0\0\0\0\0"  # no lingering: the peer sees a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        clients.wait_for(200, 40)
    assert set(clients.codes) == {200} and not clients.wrong
    with httpx.Client(base_url=server.url) as client:
        until = time.monotonic() + 10
        while metric(client, "augself_active_requests") and time.monotonic() < until:
            time.sleep(0.05)
        assert metric(client, "augself_active_requests") == 0
        assert metric(client, "augself_body_bytes") == 0
    assert "Traceback" not in "".join(server.log)


def test_a_worker_that_dies_under_load_comes_back(start_server, load, encoded):
    """503 for those who waited, ready off until it is back; then everybody is answered again."""
    server = start_server(program=FRAGILE)
    white = encoded(np.full((32, 32, 3), 255, np.uint8))
    clients = load(server.url)
    with clients.running(), httpx.Client(base_url=server.url, timeout=30) as client:
        clients.wait_for(200, 20)
        deadly = client.post(EMBEDDINGS, content=white)
        assert (deadly.status_code, deadly.json()["error"]["code"]) == (503, "worker_lost")
        assert deadly.headers["retry-after"]
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        server.wait_until_ready()
        clients.wait_for(200, clients.codes[200] + 20)
        assert metric(client, "augself_worker_restarts_total") == 1
    assert set(clients.codes) == {200, 503} and not clients.wrong and not clients.broken
    assert server.stop() == 0


# -- More than there is room for -------------------------------------------------------------------


def test_every_request_has_one_answer_under_any_load(
    start_server, pixels, encoded, expected, vectors, problem
):
    """More requests and images than are allowed at once: sent = 200 + 400 + 404 + 429."""
    server = start_server(
        *(
            "--limit",
            "max_concurrent_requests=8",
            "--limit",
            "items=4",
            "--limit",
            "max_queue_size=8",
        ),
        *("--max-batch-size", "4"),
    )
    wanted = {number: expected(pixels(number)) for number in range(20)}

    def ask(number: int) -> int:
        image = b"x" if number % 5 == 0 else encoded(pixels(number % 20))
        data = {"model": "nobody"} if number % 7 == 0 else {}
        answer = client.post(EMBEDDINGS, files=[("image", image)] * 3, data=data)
        if answer.status_code == 200:
            rows = vectors(answer)
            np.testing.assert_allclose(rows, [wanted[number % 20]] * 3, rtol=1e-4, atol=1e-5)
        else:
            problem(answer)
        return answer.status_code

    limits = httpx.Limits(max_connections=32)
    with httpx.Client(base_url=server.url, timeout=60, limits=limits) as client:
        with ThreadPoolExecutor(32) as pool:
            codes = Counter(pool.map(ask, range(400)))
        metrics = client.get("/metrics").text
    assert set(codes) == {200, 400, 404, 429}, codes
    counted = re.findall(r'requests_total\{code="(\d+)",path="/v1/embeddings"\} (\S+)', metrics)
    assert {int(code): float(count) for code, count in counted} == codes
    assert "augself_active_requests 0.0" in metrics and "augself_body_bytes 0.0" in metrics


def test_a_deadline_nobody_can_keep_is_504_and_the_server_goes_on(
    start_server, pixels, encoded, problem
):
    """Every answer takes longer than a microsecond; health does not care."""
    server = start_server("--limit", "deadline_seconds=0.000001")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for number in range(20):
            answer = client.post(EMBEDDINGS, content=encoded(pixels(number)))
            assert problem(answer)[:2] == (504, "deadline")
        assert client.get("/health/ready").status_code == 200
        assert metric(client, "augself_active_requests") == 0
