"""Request ids, trace ids, and a line a request that never costs a request."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from augself_hub.errors import AugSelfError
from serving.http.access_log import AccessLog, RequestRecord
from serving.metrics import Metrics

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FULL = Path("/dev/full")  # every write to it fails: no space left
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def scope(**headers: str) -> dict:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": "/", "headers": pairs}


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a-B_3.z", True), ("", False), ("a b", False), ("x" * 129, False), ("<script>", False)],
)
def test_a_well_formed_request_id_is_taken_over(given, kept):
    visit = RequestRecord(scope(x_request_id=given))
    assert (visit.id == given) is kept
    assert visit.id and RequestRecord(scope()).id != RequestRecord(scope()).id


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-later", True),
        (f"00-{TRACE}-{SPAN}-1", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        ("", False),
    ],
)
def test_traceparent_as_the_standard_has_it(header, accepted):
    visit = RequestRecord(scope(traceparent=header))
    record = visit.line(200, 0)
    assert ("trace_id" in record) is accepted
    if accepted:
        assert record["trace_id"] == TRACE and record["span_id"] != SPAN


def lines(path: Path, count: int) -> list[dict]:
    """The log's lines, once there are so many."""
    for _ in range(100):
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return [json.loads(line) for line in found]
        time.sleep(0.05)
    raise AssertionError(found)


def test_every_request_has_its_line_and_its_id(start_server, tmp_path, pixels, encoded):
    path = tmp_path / "access.jsonl"
    server = start_server("--access-log", str(path))
    image = {"image": encoded(pixels(1))}
    headers = {"X-Request-Id": "mine-1", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    with httpx.Client(base_url=server.url) as client:
        good = client.post("/v1/embeddings", files=image, headers=headers)
        bad = client.post("/v1/embeddings", files={"image": b"x"})
        nowhere = client.get("/v1/" + "long" * 1000)
    assert server.stop() == 0
    found = {line["request_id"]: line for line in lines(path, 3)}
    assert good.headers["x-request-id"] == "mine-1"
    version, trace, span, flags = good.headers["traceresponse"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01") and "traceresponse" not in bad.headers
    line = found["mine-1"]
    assert (line["trace_id"], line["span_id"]) == (TRACE, span)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/embeddings", 200)
    assert (line["model"], line["images"], line["client"]) == ("tiny", 1, "127.0.0.1")
    assert line["seconds"] > 0 and line["body_bytes"] > len(image["image"])
    refused = found[bad.headers["x-request-id"]]
    assert (refused["status"], refused["error"]) == (400, "undecodable_image")
    assert len(found[nowhere.headers["x-request-id"]]["path"]) == 256


def test_the_line_goes_to_standard_output(start_server):
    server = start_server("--access-log", "-")
    httpx.get(f"{server.url}/health/live", headers={"X-Request-Id": "mine"})
    assert server.stop() == 0
    printed = [json.loads(line) for line in server.process.stdout]
    assert "mine" in {line["request_id"] for line in printed}


def test_what_the_gate_refuses_has_a_line_too(start_server, tmp_path):
    path = tmp_path / "access.jsonl"
    server = start_server("--access-log", str(path), "--token", "secret")
    httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": "mine"})
    (line,) = (line for line in lines(path, 2) if line["request_id"] == "mine")
    assert (line["status"], line["error"]) == (401, "unauthorized")
    assert "secret" not in path.read_text()


@needs_full
def test_a_full_disk_costs_lines_and_no_request(start_server, pixels, encoded):
    server = start_server("--access-log", str(FULL))
    for number in range(20):
        files = {"image": encoded(pixels(number))}
        assert httpx.post(f"{server.url}/v1/embeddings", files=files).status_code == 200
    metrics = httpx.get(f"{server.url}/metrics").text
    (lost,) = re.findall(r"^augself_access_log_lost_total (\S+)$", metrics, re.MULTILINE)
    assert float(lost) >= 20
    assert server.stop() == 0
    assert "".join(server.log).count("are lost: No space left") == 1


@needs_full
def test_a_full_disk_under_the_log_itself_costs_no_request(tiny_model, pixels, encoded):
    """Standard error and standard output both full, and a bug's traceback to write."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "augself_hub.cli", "serve", "--port", str(port)]
    command += ["--model", str(tiny_model), "--access-log", "-"]
    with FULL.open("w") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        url, transport = f"http://127.0.0.1:{port}", httpx.HTTPTransport(retries=8)
        with httpx.Client(base_url=url, transport=transport, timeout=20) as client:
            while client.get("/health/ready").status_code != 200:
                time.sleep(0.05)
            for number in range(20):
                answer = client.post("/v1/embeddings", files={"image": encoded(pixels(number))})
                assert answer.status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(tmp_path, monkeypatch):
    path = tmp_path / "log"
    real, log = os.write, AccessLog(str(path), Metrics())
    budget = [5, 0]  # bytes of the first two writes; then there is room again

    def write(file: int, data: bytes) -> int:
        if not budget:
            return real(file, data)
        if not (count := budget.pop(0)):
            raise OSError(28, "No space left on device")
        return real(file, data[:count])

    monkeypatch.setattr(os, "write", write)
    for number in range(3):
        log.write({"n": number})
    log.close()
    first, *rest = path.read_text().splitlines()
    assert first == '{"n":' and [json.loads(line) for line in rest] == [{"n": 1}, {"n": 2}]


def test_lines_that_come_too_fast_are_counted_and_nobody_waits(tmp_path, caplog):
    """A pipe that nobody reads stands for a disk that hangs."""
    pipe, metrics = tmp_path / "pipe", Metrics()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(pipe), metrics)
    with caplog.at_level(logging.ERROR):
        for _ in range(13_000):
            log.write({"text": "x" * 200})
    os.close(reader)
    assert "more lines come than can be written" in caplog.text
    assert metrics.lost_lines._value.get() > 0


def test_a_file_that_cannot_be_written_is_refused_at_start(tmp_path):
    with pytest.raises(AugSelfError, match="cannot write to"):
        AccessLog(str(tmp_path / "no" / "folder"), Metrics())


def test_a_bug_is_logged_with_the_request_it_belongs_to(tiny_model, caplog, pixels, encoded):
    import asyncio

    from serving.http.api import create_app
    from serving.inference.source import ModelSource

    app = create_app([ModelSource("tiny", tiny_model, "cpu", 1)])
    engine = app.app.state.service.models.first.batcher.engine
    engine.predict = lambda images, encoded: 1 / 0

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        files = {name: encoded(pixels(1)) for name in ("image_a", "image_b")}
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"X-Request-Id": "mine-7"}
            answer = await client.post("/v1/augmentations", files=files, headers=headers)
        await app.app.state.service.stop()
        return answer

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-7")
    assert "request mine-7 failed" in caplog.text and "ZeroDivisionError" in caplog.text
