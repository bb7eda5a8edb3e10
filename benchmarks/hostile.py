"""How long /health/live waits while the server is asked what it must refuse, or at its limits.

    python benchmarks/hostile.py [--model FOLDER] [--only NAME ...] [--times 3] [--at-once 30]

One server process with its default limits. Every kind of request is sent one after the other, then
thirty at once, while a process of its own asks /health/live every 5 ms. The table shows the longest
time an answer of /health/live took and its 99th percentile, what the requests got and how long the
slowest of them took; `loop` is the longest time that the server's event loop was late, measured
inside it. The bars: 100 ms at most under one request, p99 below 250 ms under thirty.

With --json the rows go to a file. Exit status 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from findings import machine
from PIL import Image

MB = 2**20
ONE_BAR, THIRTY_BAR = 0.100, 0.250
Sent = tuple[str, str, bytes]  # route, Content-Type, body

# Started with -c: the server, with a watch on its loop that /metrics shows and then forgets.
WATCHED = """
import asyncio, time
from prometheus_client import Gauge
from augself_hub.cli import main
from serving.http.server import _Server
startup = _Server.startup
async def watched(self, sockets=None):
    await startup(self, sockets)
    late = [0.0]
    async def watch():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            late[0] = max(late[0], time.perf_counter() - began - 0.002)
    def seen():
        found, late[0] = late[0], 0.0
        return found
    registry = self.gate.metrics.registry
    Gauge("augself_loop_late_seconds", "Since the last look", registry=registry).set_function(seen)
    self.watch = asyncio.create_task(watch())
_Server.startup = watched
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model folder; default: the embedded model")
    parser.add_argument("--only", nargs="*", default=[], help="these kinds alone")
    parser.add_argument("--times", type=int, default=3, help="requests one after the other")
    parser.add_argument("--at-once", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{machine()}; {options.times} one by one, {options.at_once} at once\n")
    print(
        "| request | one: live max | loop | answers | slowest | thirty: live p99 | max | answers |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, Any] = {}
    with server(["--model", options.model] if options.model else []) as port:
        for name, make in KINDS.items():
            if options.only and name not in options.only:
                continue
            request = make()
            one = measured(port, request, options.times, 1)
            thirty = measured(port, request, options.at_once, options.at_once)
            rows[name] = {"one": one, "thirty": thirty}
            print(
                f"| {name} | {ms(one['max'])} | {ms(one['loop'])} | {one['answers']} | "
                f"{one['slowest']:.2f} s | {ms(thirty['p99'])} | {ms(thirty['max'])} | "
                f"{thirty['answers']} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    missed = [n for n, r in rows.items() if r["one"]["max"] > ONE_BAR]
    missed += [f"{n} (thirty)" for n, r in rows.items() if r["thirty"]["p99"] > THIRTY_BAR]
    print(f"\nbeyond a bar: {', '.join(missed) or 'none'}")
    sys.exit(bool(missed))


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


@contextmanager
def server(options: list[str]) -> Iterator[int]:
    command = [sys.executable, "-c", WATCHED, "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"listening.*:(\d+)", x) for x in process.stderr)))
        # Nobody reads the log; a full pipe would stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        port = int(found[1])
        while ask(port, "GET", "/health/ready")[0] != 200:
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, route: str, kind: str = "", body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        with suppress(ConnectionError):  # refused and closed while it is sent: the answer is there
            connection.request(method, route, body or None, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.HTTPException):
        return 0, b""  # reset before its answer was read
    finally:
        connection.close()


def measured(port: int, request: Sent | bytes, count: int, at_once: int) -> dict[str, Any]:
    """So many of a request, `at_once` at a time, and /health/live meanwhile."""
    context = multiprocessing.get_context("spawn")
    over, begun, found = context.Event(), context.Event(), context.SimpleQueue()
    probe = context.Process(target=watch, args=(port, begun, over, found), daemon=True)
    probe.start()
    begun.wait()
    late_seconds(port)  # forgets what was before
    with ThreadPoolExecutor(at_once) as pool:
        sent = list(pool.map(lambda _: post(port, request), range(count)))
    late = late_seconds(port)
    over.set()
    times = found.get()
    probe.join()
    statuses = Counter(status for status, _ in sent)
    return {
        "max": max(times),
        "p99": float(np.quantile(times, 0.99)),
        "loop": late,
        "slowest": max(seconds for _, seconds in sent),
        "answers": ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items())),
    }


def watch(port: int, begun: Event, over: Event, found: Any) -> None:
    """On one connection, so that only the server's own time counts."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
    begun.set()
    while not over.is_set() or not times:
        began = time.perf_counter()
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
        time.sleep(0.005)
    found.put(times)


def late_seconds(port: int) -> float:
    metrics = ask(port, "GET", "/metrics")[1].decode()
    return float(re.findall(r"^augself_loop_late_seconds (\S+)$", metrics, re.MULTILINE)[0])


def post(port: int, request: Sent | bytes) -> tuple[int, float]:
    began = time.perf_counter()
    if isinstance(request, bytes):
        status = raw(port, request)
    else:
        route, kind, body = request
        status = ask(port, "POST", route, kind, body)[0]
    return status, time.perf_counter() - began


def raw(port: int, data: bytes) -> int:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        try:
            connection.sendall(data)
            return int(connection.recv(65536)[9:12] or 0)
        except ConnectionError:
            return 0


# -- The requests ----------------------------------------------------------------------------------


def embeddings(body: bytes) -> Sent:
    return "/v1/embeddings", "application/json", body


def pairs(body: bytes) -> Sent:
    return "/v1/augmentations", "application/json", body


def image(body: bytes) -> Sent:
    return "/v1/embeddings", "image/x", body


def form(part: bytes, end: bytes = b"\r\n--b--\r\n") -> Sent:
    head = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    return "/v1/embeddings", "multipart/form-data; boundary=b", head + part + end


def tensors(data: bytes) -> Sent:
    head = b'{"inputs":[{"name":"pixel_values","shape":[1,9],"datatype":"UINT8","data":['
    return "/v2/models/embedded/infer", "application/json", head + data + b"]}]}"


def head(fields: bytes) -> bytes:
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n" + fields


def photograph(side: int = 2000, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).convert(mode).save(file, kind)
    return file.getvalue()


def png(chunks: list[tuple[bytes, bytes]], width: int = 8, height: int = 8) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 8) for _ in range(8)))
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    inside = b"".join(chunk(*each) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + first + inside + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def segments(count: int) -> bytes:
    """A JPEG with so many small Exif segments before its picture."""
    whole = photograph(64)
    return whole[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08" * count + whole[2:]


def gif(frames: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    whole = file.getvalue()
    start = whole.index(b",", 13)
    return whole[:-1] + whole[start:-1] * frames + b";"


def data_urls(count: int, data: bytes) -> bytes:
    url = b'"data:image/jpeg;base64,' + base64.b64encode(data) + b'"'
    return b'{"input":[' + b",".join([url] * count) + b"]}"


KINDS: dict[str, Callable[[], Sent | bytes]] = {
    "a good photograph of 4 MP": lambda: image(photograph()),
    "64 data: URLs, 28 MB": lambda: embeddings(data_urls(64, (photograph(512) + bytes(330_000)))),
    "one string of 32 MB": lambda: embeddings(b'{"input":"' + b"A" * (31 * MB) + b'"}'),
    "base64 of 31 MB": lambda: embeddings(data_urls(1, bytes(23 * MB))),
    "100,000 wrong items": lambda: embeddings(b'{"input":[' + b"1," * 99_999 + b"1]}"),
    "10,000 wrong items": lambda: embeddings(b'{"input":[' + b"1," * 9_999 + b"1]}"),
    "16 million wrong items": lambda: embeddings(b'{"input":[' + b"1," * (15 * MB) + b"1]}"),
    "3,000 wrong pairs": lambda: pairs(b'{"pairs":[' + b"{}," * 2_999 + b"{}]}"),
    "9,000 unknown fields": lambda: pairs(
        b'{"pairs":[]' + b"".join(b',"%d":1' % i for i in range(9_000)) + b"}"
    ),
    "a name of 31 MB": lambda: pairs(b'{"' + b"k" * (31 * MB) + b'":1}'),
    "31 MB of escapes": lambda: embeddings(b'{"input":"' + b"\\n" * (15 * MB) + b'"}'),
    "1 million escapes": lambda: embeddings(
        b'{"input":"' + b"\\n" * MB + b"A" * (29 * MB) + b'"}'
    ),
    "31 MB of letters": lambda: embeddings(b'{"input":"' + b"\xc3\xa9" * (15 * MB) + b'"}'),
    "1 million letters": lambda: embeddings(
        b'{"input":"' + b"\xc3\xa9" * (MB - 9) + b"A" * (29 * MB) + b'"}'
    ),
    "wide letters": lambda: embeddings(b'{"input":"\xf0\x9f\x98\x80' + b"A" * (31 * MB) + b'"}'),
    "31 MB of blanks": lambda: embeddings(b'{"input":"x"' + b" " * (31 * MB) + b"}"),
    "a number of 31 MB": lambda: embeddings(b'{"normalize":' + b"9" * (31 * MB) + b"}"),
    "depth 100,000": lambda: embeddings(b"[" * 100_000),
    "1 MB of numbers to /v2": lambda: tensors(b"1," * (MB // 2 - 99) + b"1"),
    "59,000 lists to /v2": lambda: tensors(b"[1,2,3,4,5,6,7]," * 58_999 + b"1"),
    "1 MB of empty lists to /v2": lambda: tensors(b"[]," * (MB // 3 - 99) + b"1"),
    "31 MB of binary data to /v2": lambda: (
        "/v2/models/embedded/infer", "application/octet-stream", bytes(31 * MB),
    ),
    "a part of 31 MB": lambda: form(b"x" * (31 * MB)),
    "line ends in a part": lambda: form(b"\r\n" * (15 * MB)),
    "near boundaries": lambda: form(b"\r\n--" * (7 * MB)),
    "a part's header of 31 MB": lambda: form(b"", b"\r\n--b\r\nX: " + b"y" * (31 * MB)),
    "10,000 parts": lambda: form(b"", b"\r\n--b\r\n\r\n" * 10_000),
    "a query of 30 KB": lambda: (
        "/v1/embeddings?" + "&".join(f"{i}=1" for i in range(3_500)), "image/png", b"x",
    ),
    "40,000 chunks of a byte": lambda: head(
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000
    ),
    "50,000 header fields": lambda: head(b"X:\r\n" * 50_000 + b"\r\n"),
    "5,000 pipelined requests": lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5_000,
    "a truncated JPEG": lambda: image(photograph()[:-100_000]),
    "random bytes, 31 MB": lambda: image(np.random.default_rng(0).bytes(31 * MB)),
    "a PNG of 50 MP": lambda: image(photograph(7000, "PNG", "L")),
    "a PNG that says 30,000 x 30,000": lambda: image(png([], 30_000, 30_000)),
    "PNG, 64 MB of packed text": lambda: image(
        png([(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * MB)))])
    ),
    "PNG, 500,000 chunks": lambda: image(png([(b"teXt", b"a\0b")] * 500_000)),
    "PNG, a profile bomb": lambda: image(
        png([(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MB)))])
    ),
    "JPEG, 3 MB of Exif segments": lambda: image(segments(165_000)),
    "JPEG, 30 MB of Exif segments": lambda: image(segments(1_650_000)),
    "GIF of 100,000 frames": lambda: image(gif(100_000)),
}  # fmt: skip


if __name__ == "__main__":
    main()
