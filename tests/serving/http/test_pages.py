"""`fetch` from a page of another origin, in a real browser. Needs Playwright and a Chromium."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install 'augself-hub[dev]'")

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)

# What the page gets to know: the status, and what it can read of the answer.
FETCH = """async ([url, options, size]) => {
  if (size) options.body = new Uint8Array(size);
  try {
    const answer = await fetch(url, options);
    const seen = Object.fromEntries(answer.headers.entries());
    return [answer.status, await answer.json(), seen];
  } catch (error) { return [0, String(error), {}]; }
}"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Where the page is: a server of its own."""
    folder = tmp_path_factory.mktemp("page")
    Path(folder / "index.html").write_text("<!doctype html><title>another site</title>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(origin):
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=root)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(origin)
        yield page
        browser.close()


@pytest.fixture
def fetch(page):
    def ask(url: str, size: int = 0, **options):
        return page.evaluate(FETCH, [url, options, size])

    return ask


def embeddings(image: str, **headers: str) -> dict:
    import json

    sent = {"Content-Type": "application/json", **headers}
    return {"method": "POST", "headers": sent, "body": json.dumps({"input": image})}


def test_a_page_that_is_named_reads_answers_and_errors(
    start_server, fetch, origin, pixels, encoded, expected
):
    import base64

    image = "data:image/png;base64," + base64.b64encode(encoded(pixels(1))).decode()
    limits = ("--limit", "body_bytes=100000", "--limit", "total_bytes=100000")
    server = start_server("--allow-origin", origin, "--token", "secret", *limits)
    url, key = f"{server.url}/v1/embeddings", {"Authorization": "Bearer secret"}
    status, answer, headers = fetch(url, **embeddings(image, **key))
    assert status == 200 and headers["x-request-id"]
    assert answer["data"][0]["embedding"] == pytest.approx(expected(pixels(1)), rel=1e-3, abs=1e-4)
    status, listed, _ = fetch(f"{server.url}/v1/models/tiny", headers=key)
    assert (status, listed["id"]) == (200, "tiny")
    refusals = {
        (401, "unauthorized"): fetch(url, **embeddings(image)),
        (413, "body_too_large"): fetch(url, 200_000, method="POST", headers=key),
        (400, "bad_data_url"): fetch(url, **embeddings("nothing", **key)),
        (404, "not_found"): fetch(f"{server.url}/v1/nothing", headers=key),
        (405, "method_not_allowed"): fetch(url, headers=key),
    }
    for (wanted, code), (status, answer, _) in refusals.items():
        assert (status, answer["error"]["code"]) == (wanted, code)


def test_the_429_of_a_full_server_can_be_read(start_server, fetch, origin):
    import socket

    server = start_server("--allow-origin", origin, "--limit", "max_concurrent_requests=1")
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with server.connect() as other:
        other.sendall(head)  # its slot is taken until its body has come
        for _ in range(100):
            status, answer, headers = fetch(f"{server.url}/v1/embeddings", 5, method="POST")
            if status == 429:
                break
        assert (status, answer["error"]["code"]) == (429, "busy")
        assert headers["retry-after"] == "1"
        other.shutdown(socket.SHUT_RDWR)


def test_a_page_that_is_not_named_gets_nothing(start_server, fetch):
    server = start_server("--allow-origin", "https://other.example")
    for route, options in (
        ("/v1/models", {}),
        ("/v1/embeddings", embeddings("x")),
        ("/v1/embeddings", {"method": "POST"}),  # asked without a preflight
        ("/health", {}),
    ):
        status, said, _ = fetch(server.url + route, **options)
        assert status == 0 and "Failed to fetch" in said
