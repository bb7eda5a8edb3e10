"""Images from URLs: allowed hosts alone, checked addresses alone, within limits."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from augself_hub.errors import UsageError
from serving.http.api import create_app
from serving.http.bodies import Item
from serving.http.problems import Problem
from serving.http.urls import AllowedHosts, Fetcher
from serving.inference.source import ModelSource
from serving.limits import Limits
from serving.metrics import Metrics
from serving.settings import ServerSettings

LIMIT = 20_000


class Images(ThreadingHTTPServer):
    """Answers GET by its path; remembers the Host of each request."""

    daemon_threads = True

    def __init__(self, image: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.image, self.asked = image, []
        self.gate = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Images

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        self.close_connection = True
        name, _, argument = self.path.lstrip("/").partition("?")
        getattr(self, name)(argument)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def good(self, _: str) -> None:
        self.head(content_length=len(self.server.image))
        self.wfile.write(self.server.image)

    def late(self, _: str) -> None:
        time.sleep(1)
        self.text("")

    def held(self, announced: str) -> None:
        self.head(**{"content_length": len(self.server.image)} if announced else {})
        self.wfile.write(self.server.image[:-1])
        self.server.gate.wait(10)
        self.wfile.write(self.server.image[-1:])

    def to(self, where: str) -> None:
        self.head(302, location=where, content_length=0)

    def round(self, _: str) -> None:
        self.head(301, location="/round", content_length=0)

    def missing(self, _: str) -> None:
        self.head(404, content_length=0)

    def large(self, _: str) -> None:
        self.head(content_length=LIMIT + 1)
        self.write(bytes(LIMIT + 1))

    def endless(self, _: str) -> None:
        self.head()
        while self.write(bytes(1000)):
            pass

    def drip(self, _: str) -> None:
        self.head(content_length=1000)
        while self.write(b"x"):
            time.sleep(0.05)

    def bomb(self, _: str) -> None:
        self.head(content_encoding="gzip")
        self.write(gzip.compress(bytes(10_000_000)))

    def cut(self, _: str) -> None:
        self.head(content_length=len(self.server.image))
        self.wfile.write(self.server.image[:50])

    def text(self, _: str) -> None:
        self.head(content_length=5)
        self.wfile.write(b"hello")

    def write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:
            return False
        return True


@pytest.fixture
def images(pixels, encoded) -> Iterator[Images]:
    server = Images(encoded(pixels(1)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch():
    """URLs, allowed hosts, resolver -> what is fetched, or the problem of the first bad one."""

    def run(urls: list[str], hosts: list[str], resolve=None) -> list[bytes]:
        limits = Limits(body_bytes=LIMIT, fetch_seconds=3)

        async def fetched() -> list[bytes]:
            fetcher = Fetcher(AllowedHosts.parse(hosts), limits, Metrics(), resolve)
            items = [Item(f"input[{i}]", url) for i, url in enumerate(urls)]
            try:
                return [i.content for i in await fetcher.fetched(items, lambda count: None)]
            finally:
                await fetcher.close()

        return asyncio.run(fetched())

    return run


def resolver(**names: list[str]):
    """Names -> the addresses of each question in turn; remembers what was asked."""

    async def resolve(host: str, port: int) -> list[str]:
        resolve.asked.append(host)
        found = names[host.replace(".", "_")]
        return [found.pop(0) if len(found) > 1 else found[0]]

    resolve.asked = []
    return resolve


def test_an_image_of_an_allowed_host_is_embedded(start_server, images, pixels, expected):
    server = start_server("--allow-url-host", images.host)
    asked = {"input": [images.url("to?/good"), images.url("good")]}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=asked)
    for item in answer.json()["data"]:
        np.testing.assert_allclose(item["embedding"], expected(pixels(1)), rtol=1e-4, atol=1e-5)
    pairs = {"pairs": [{"a": images.url("good"), "b": images.url("text")}]}
    error = httpx.post(f"{server.url}/v1/augmentations", json=pairs).json()["error"]
    assert (error["param"], error["code"]) == ("pairs[0].b", "undecodable_image")


def test_without_allowed_hosts_nothing_is_fetched(client, images):
    answer = client.post("/v1/embeddings", json={"input": [images.url("good")]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_data_url")
    assert images.asked == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("missing", 400, "url_failed"),
        ("cut", 400, "url_failed"),
        ("round", 400, "too_many_redirects"),
        ("drip", 400, "url_too_slow"),
        ("large", 413, "url_too_large"),
        ("endless", 413, "url_too_large"),
        ("bomb", 400, "url_compressed"),
        ("to?http://localhost:1/good", 400, "url_not_allowed"),
        ("to?//example.org/good", 400, "url_not_allowed"),
        ("to?file:///etc/passwd", 400, "bad_url"),
        ("to?http://user:password@127.0.0.1/", 400, "bad_url"),
        ("to?http://[", 400, "bad_url"),
    ],
)
def test_what_a_host_may_not_do(fetch, images, path, status, code):
    """Each names its item, takes no longer than its time, and the good image beside it is right."""
    started = time.monotonic()
    with pytest.raises(Problem) as caught:
        fetch([images.url("good"), images.url(path)], [images.host])
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.param == "input[1]"
    assert time.monotonic() - started < 20  # the drip would take 50
    assert fetch([images.url("good")], [images.host]) == [images.image]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://example.org:81/",
        "https://example.org:80/",
        "http://example.org.evil.com/",
        "http://127.0.0.1/",
        "http://example.org@127.0.0.1/",
        "http://exämple.org/",
        "http://example.org:99999/",
        "http://[::1/",
        "http:///good",
        "http://example.org/" + "x" * 5000,
    ],
)
def test_what_is_not_an_allowed_url_is_not_even_resolved(fetch, url):
    resolve = resolver()
    with pytest.raises(Problem) as caught:
        fetch([url], ["example.org"], resolve)
    assert caught.value.code in ("url_not_allowed", "bad_url")
    assert resolve.asked == []


# By hand from IANA's registries and the standards named there; the last of a network, mostly.
SPECIAL = """
    0.0.0.0 0.255.255.255 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 169.254.169.254 172.16.0.1
    172.31.255.255 192.0.0.8 192.0.0.170 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.1.1
    192.175.48.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
    255.255.255.255
    :: ::1 ::7f00:1 ::808:808 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:808:808 64:ff9b::7f00:1
    64:ff9b::a00:1 64:ff9b::c058:6301 64:ff9b:1::808:808 100::1 100:0:0:1::1 2001::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::
    2002:808:808:: 2620:4f:8000::1 3ffe::1 3fff::1 3fff:fff::1 5f00::1 fc00::1 fd00::1 fe80::1
    fe80::1%eth0 febf::1 fec0::1 feff::1 ff02::1
"""


@pytest.mark.parametrize("address", SPECIAL.split())
def test_an_allowed_name_at_an_address_that_is_not_public_is_refused(fetch, address):
    with pytest.raises(Problem) as caught:
        fetch(["http://example.org/"], ["example.org"], resolver(example_org=[address]))
    assert caught.value.code == "url_address_not_allowed"


def test_the_list_needs_no_word_of_python(monkeypatch):
    """Versions differ: 3.11 takes fec0::/10, 192.88.99.0/24 and 3fff::/20 for public."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        for name, value in (("is_global", True), ("is_reserved", False), ("is_multicast", False)):
            monkeypatch.setattr(kind, name, value)
    hosts = AllowedHosts.parse(["example.org"])
    assert [text for text in SPECIAL.split() if hosts.allow_address(text)] == []


@pytest.mark.parametrize("address", ["fec0::1", "192.88.99.1", "64:ff9b::a00:1", "10.0.0.1"])
def test_a_redirect_to_an_address_that_is_not_public_is_refused(fetch, images, address):
    port = images.server_address[1]
    resolve = resolver(images_test=["127.0.0.1"], other_test=[address])
    url = f"http://images.test:{port}/to?http://other.test/good"
    with pytest.raises(Problem) as caught:
        fetch([url], [f"images.test:{port}", "127.0.0.1", "other.test"], resolve)
    assert caught.value.code == "url_address_not_allowed"
    assert resolve.asked == ["images.test", "other.test"]


PUBLIC = "8.8.8.8 1.1.1.1 100.63.255.255 172.32.0.1 192.0.1.1 198.20.0.1 223.255.255.255"
PUBLIC += " 2606:4700::1111 2001:4860:4860::8888 2001:200::1 2a00::1 64:ff9b::808:808 2620:fe::fe"


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_are_allowed(address):
    assert AllowedHosts.parse(["example.org"]).allow_address(address)


def test_an_address_named_by_the_operator_is_allowed_under_a_name_too(fetch, images):
    port = images.server_address[1]
    hosts = [f"images.test:{port}", "127.0.0.1"]
    resolve = resolver(images_test=["127.0.0.1"])
    assert fetch([f"http://images.test:{port}/good"], hosts, resolve) == [images.image]
    assert images.asked == [(f"images.test:{port}", "/good")]  # Host is the name


def test_the_address_that_was_checked_is_the_one_connected_to(fetch, images):
    """DNS rebinding: one question a connection, and each answer is checked."""
    port = images.server_address[1]
    resolve = resolver(images_test=["127.0.0.1", "127.0.0.2"])
    url = f"http://images.test:{port}/to?/good"
    with pytest.raises(Problem) as caught:
        fetch([url], [f"images.test:{port}", "127.0.0.1"], resolve)
    assert caught.value.code == "url_address_not_allowed"
    assert resolve.asked == ["images.test"] * 2 and len(images.asked) == 1


def test_tls_names_the_host_and_not_its_address(fetch):
    hello = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def listen() -> None:
            connection, _ = listener.accept()
            hello.extend(connection.recv(4096))
            connection.close()

        threading.Thread(target=listen, daemon=True).start()
        with pytest.raises(Problem) as caught:
            fetch(
                [f"https://images.test:{port}/"],
                [f"images.test:{port}", "127.0.0.1"],
                resolver(images_test=["127.0.0.1"]),
            )
    assert caught.value.code == "url_failed"
    assert b"images.test" in hello


def test_all_images_of_a_request_share_its_bytes(fetch, images):
    count = LIMIT // len(images.image) + 1
    with pytest.raises(Problem) as caught:
        fetch([images.url("good")] * count, [images.host])
    assert (caught.value.status, caught.value.code) == (413, "url_too_large")


def test_waiting_for_a_connection_is_no_fault_of_a_host(fetch, images):
    """64 images of a second each, 16 at once: the last come after the three that each may take."""
    urls = [images.url("late")] * 64
    assert fetch(urls, [images.host]) == [b"hello"] * 64


@pytest.mark.parametrize("announced", ["", "announced"])
def test_fetched_images_count_among_the_bytes_of_all_requests(announced, images, tiny_model):
    """Until their request is answered; one that there is no room for gets 429."""
    size = len(images.image)
    limits = Limits(body_bytes=size + 500, total_bytes=size * 3 // 2 + 500)
    settings = ServerSettings(limits, url_hosts=(images.host,))
    gate = create_app([ModelSource("tiny", tiny_model, "cpu", 1)], settings)
    transport = httpx.ASGITransport(gate)

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            ask = {"input": [images.url(f"held?{announced}")]}
            first = asyncio.create_task(client.post("/v1/embeddings", json=ask))
            async with asyncio.timeout(5):
                while gate.held_bytes < size:
                    await asyncio.sleep(0.01)
            second = await client.post("/v1/embeddings", json={"input": [images.url("good")]})
            assert (second.status_code, second.json()["error"]["code"]) == (429, "busy")
            assert size <= gate.held_bytes < limits.total_bytes
            images.gate.set()
            assert (await first).status_code == 200
            assert gate.held_bytes == 0
            third = await client.post("/v1/embeddings", json={"input": [images.url("good")]})
            assert third.status_code == 200 and gate.held_bytes == 0
        await gate.app.state.service.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["", "http://example.org", "a b", "*.example.org", "a:b", "u@h"])
def test_what_is_no_host_is_refused_at_start(host):
    with pytest.raises(UsageError, match="write a host"):
        AllowedHosts.parse([host])
