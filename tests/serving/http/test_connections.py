"""Connections against the real process: too many, too slow, and what HTTP leaves open."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import select
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

FILES = 1024
LOWERED = (
    "-c",
    f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({FILES}, {FILES})); "
    "from augself_hub.cli import main; main()",
)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


def answers(server, *sent: bytes, pause: float = 0.0, seconds: float = 5) -> bytes:
    """What comes back until the server closes, or nothing comes for so many seconds."""
    found = b""
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            for part in sent:
                connection.sendall(part)
                time.sleep(pause)
        connection.settimeout(seconds)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                found += part
    return found


def error(answer: bytes) -> tuple[int, str]:
    """(status, code) of the only answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@contextlib.contextmanager
def idle(server, count: int, say: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections that send this and nothing more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < count + 500:
        pytest.skip(f"this process may open {most} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(server.connect())
            with contextlib.suppress(ConnectionError):
                opened[-1].sendall(say)
        yield opened
    finally:
        for connection in opened:
            connection.close()


@pytest.mark.parametrize("say", [b"", GET], ids=["silent", "half a head"])
def test_more_idle_connections_than_descriptors_stop_nobody(start_server, say):
    """1,100 at a limit of 1,024 files. No good request waits, and the log is a few lines."""
    server = start_server(program=LOWERED)
    lines = len(server.log)
    with idle(server, 1100, say):
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            assert httpx.get(f"{server.url}/v1/models", timeout=5).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        metrics = httpx.get(f"{server.url}/metrics").text
    (held,) = re.findall(r"^augself_connections (\S+)$", metrics, re.MULTILINE)
    (dropped,) = re.findall(r"^augself_dropped_connections_total (\S+)$", metrics, re.MULTILINE)
    assert FILES / 2 < float(held) <= FILES - 256
    assert float(dropped) >= 1100 - (FILES - 256)
    assert slowest < 5
    assert len(server.log) - lines < 10, server.log[lines : lines + 20]
    assert httpx.get(f"{server.url}/v1/models").status_code == 200


def test_descriptors_that_ran_out_all_the_same_do_not_fill_the_log(start_server):
    """The limit is lowered under the running server, so that its own count comes too late."""
    server = start_server()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (100, 100))
    lines = len(server.log)
    with idle(server, 300):
        time.sleep(3)
        said = server.log[lines:]
    assert [line for line in said if "accept" in line] and len(said) < 10, said[:20]
    time.sleep(1.5)
    assert httpx.get(f"{server.url}/v1/models", timeout=5).status_code == 200


def test_a_connection_beyond_those_that_are_answered_is_503(start_server):
    server = start_server("--limit", "connections=2")
    body = b"Content-Length: 9\r\n\r\nabc"
    with server.connect() as first, server.connect() as second:
        for upload in (first, second):
            upload.sendall(HEAD + body)
        time.sleep(0.3)
        answer = answers(server, b"")
        assert error(answer) == (503, "too_many_connections") and b"Retry-After" in answer


@pytest.mark.parametrize(
    "sent",
    [
        [GET],
        [b"G"] * 8,
        [GET, *[b"X: y\r\n"] * 8],
        [GET + b"\r\n", *[b"G"] * 8],  # after an answer on the same connection
    ],
    ids=["half a head", "a byte now and then", "a field now and then", "a second head"],
)
def test_a_head_that_does_not_end_is_408(hasty, sent):
    began = time.monotonic()
    answer = answers(hasty, *sent, pause=0.3)
    assert time.monotonic() - began < 6
    assert error(answer[answer.rindex(b"HTTP/1.1 ") :]) == (408, "slow_headers")


@pytest.mark.parametrize("sent", [[b""], [GET + b"\r\n"]], ids=["silent", "after an answer"])
def test_an_idle_connection_is_closed(hasty, sent):
    with hasty.connect() as connection:
        connection.sendall(sent[0])
        connection.settimeout(4)
        found = b"x"
        with contextlib.suppress(ConnectionResetError):
            while found:
                found = connection.recv(65536)


def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever(hasty):
    """Nobody reads the body of this request; its bytes used to keep the connection."""
    began = time.monotonic()
    head = b"POST /elsewhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with hasty.connect() as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 8:
                connection.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began < 7


def test_a_client_that_takes_nothing_of_its_answers_is_closed(hasty):
    """Answers fill its window; the server does not keep them, nor the connection, for ever."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", hasty.port))
        connection.setblocking(False)
        request, left = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100, b""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                left = left or request
                left = left[connection.send(left) :]
            except BlockingIOError:
                select.select([], [], [connection], 0.1)
            except ConnectionError:
                return
    raise AssertionError("the connection was kept")


def test_clients_that_read_slowly_do_not_hold_every_connection(start_server):
    """Answers that have begun, more of them than connections: the oldest makes room.

    It is the mend of endless streams, too, where the demo has any.
    """
    server = start_server("--limit", "connections=4")
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(requests)
        time.sleep(3)
        for _ in range(5):
            assert httpx.get(f"{server.url}/health/live", timeout=5).status_code == 200


# -- What HTTP leaves open -------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
BAD = {
    "both lengths": (CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n" + GET + b"\r\n", 400),
    "both lengths, folded": (
        b"Content-Length: 3\r\nTransfer-Encoding:\r\n chunked\r\n\r\nabc", 400,
    ),
    "a folded coding": (b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n", 400),
    "a folded field": (b"X: a\r\n\tb\r\nContent-Length: 0\r\n\r\n", 400),
    "a coding behind a line feed": (b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "trailers of two line ends": (CHUNKED + b"\r\n0\r\nX: a\nY: b\r\n\r\n" + GET + b"\r\n", 400),
    "two lengths": (b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    "a list of lengths": (b"Content-Length: 3, 4\r\n\r\nabc", 400),
    "two codings": (CHUNKED * 2 + b"\r\n0\r\n\r\n", 501),
    "another coding": (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "a coding that is none": (b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "blanks before the colon": (b"Content-Length : 3\r\n\r\nabc", 400),
    "a NUL in a field": (b"X: a\0b\r\n\r\n", 400),
    "a field without a name": (b": a\r\n\r\n", 400),
    "two hosts": (b"Host: localhost\r\n\r\n", 400),
    "101 fields": (b"X: y\r\n" * 101 + b"\r\n", 431),
    "50,000 fields": (b"X:\r\n" * 50_000 + b"\r\n", 431),
    "200 KB of a field": (b"X: " + b"y" * 200_000 + b"\r\n\r\n", 431),
    "a chunk's length without end": (CHUNKED + b"\r\n" + b"0" * 100_000 + b"3\r\nabc", 431),
    "a chunk's extension without end": (CHUNKED + b"\r\n3;" + b"x" * 100_000, 431),
    "a negative chunk": (CHUNKED + b"\r\n-1\r\nabc", 400),
    "chunks of a byte": (CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 100_000, 400),
    "chunks of a byte with extensions": (
        CHUNKED + b"\r\n" + (b"1;" + b"e" * 1000 + b"\r\nx\r\n") * 5000, 400,
    ),
    "trailers without end": (CHUNKED + b"\r\n0\r\n" + b"X: y\r\n" * 50_000, 431),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_request_of_two_meanings_or_none_is_one_error_and_the_end(server, name):
    more, status = BAD[name]
    began = time.monotonic()
    answer = answers(server, HEAD + more)
    # A client that still sends may find the connection reset before its answer.
    if answer or len(more) < 10_000:
        assert error(answer)[0] == status
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://evil.example/v1/models HTTP/1.1", 400),
        (b"CONNECT evil.example:80 HTTP/1.1", 400),
        (b"PRI * HTTP/2.0", 400),
        (b"GET /v1/models HTTP/9.9", 400),
        (b"GET  /v1/models HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 404),
    ],
)
def test_other_first_lines(server, line, status):
    answer = answers(server, line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert error(answer)[0] == status


@pytest.mark.parametrize(
    ("request_", "closed"),
    [
        (GET.replace(b"\r", b"") + b"\n", False),
        (GET + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", False),
        (GET.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n", True),
        (GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", False),
    ],
    ids=["line feeds", "an equal length twice", "HTTP/1.0", "h2c"],
)
def test_what_a_lenient_reader_may_take_is_answered_once(server, request_, closed):
    answer = answers(server, request_, seconds=0.7)
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
    assert (b"connection: close" in answer.lower()) is closed


def test_many_chunks_are_read_where_they_are_large_enough(server, pixels, encoded):
    data = encoded(pixels(1)) + bytes(200_000)  # what follows an image does not count
    pieces = [data[at : at + 1] for at in range(150)] + [
        data[at : at + 600] for at in range(150, len(data), 600)
    ]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    answer = answers(server, HEAD + CHUNKED + b"\r\n" + body + b"0\r\n\r\n", seconds=3)
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_client_that_waits_for_100_gets_it_only_where_its_body_is_read(server):
    expect = b"Expect: 100-continue\r\nContent-Type: image/png\r\n"
    answer = answers(server, HEAD + expect + b"Content-Length: 3\r\n\r\n", b"abc", pause=0.5)
    assert answer.startswith(b"HTTP/1.1 100") and b"\r\n\r\nHTTP/1.1 400" in answer
    answer = answers(server, HEAD + expect + b"Content-Length: 999999999\r\n\r\n")
    assert error(answer) == (413, "body_too_large")


def test_what_strangers_send_does_not_fill_the_log(start_server):
    server = start_server()
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    lines = len(server.log)
    for _ in range(50):
        answers(server, b"\0\r\n\r\n")
        answers(server, upgrade, seconds=0.05)
    time.sleep(0.3)
    assert len(server.log) - lines < 5, server.log[lines:]
