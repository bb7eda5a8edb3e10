"""Host and Origin: against pages of strangers, and for those that are allowed."""

from __future__ import annotations

import socket

import httpx
import pytest
from starlette.datastructures import Headers

from augself_hub.errors import UsageError
from serving.http.callers import Callers

LOCAL = [
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "a.localhost:80",
    "127.0.0.1",
    "127.0.0.9:7860",
    "[::1]",
    "[::1]:7860",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]:1",
]
FOREIGN = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.1",
    "::1",
    "[fe80::1]",
    "evil.example:7860",
    "localhost@evil.example",
    "0.0.0.0",
    "2130706433",
    "localhost:x",
    "notlocalhost",
    "a/localhost",
    "[::ffff:8.8.8.8]",
]
FOREIGN += ["", "localhost evil.example"]
LOOPBACK = ["127.0.0.1", "localhost", "::1", "127.1.2.3", "::ffff:127.0.0.1"]


def code(callers: Callers, health: bool = False, **headers: str) -> str | None:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    problem = callers.refusal(Headers(given), health)
    return problem and problem.code


@pytest.mark.parametrize("bound", LOOPBACK)
def test_on_loopback_only_names_of_this_machine_are_answered(bound):
    callers = Callers(bound)
    assert [host for host in LOCAL if code(callers, host=host)] == []
    assert [host for host in FOREIGN if not code(callers, host=host)] == []
    assert [host for host in FOREIGN if not code(callers, health=True, host=host)] == []


def test_on_loopback_more_names_are_those_allowed():
    callers = Callers("127.0.0.1", ["images.example.org"])
    assert code(callers, host="Images.Example.org:443") is None
    assert code(callers, host="localhost:7860") is None
    assert code(callers, host="a.images.example.org") == "host_not_allowed"
    assert code(Callers("127.0.0.1", ["*"]), host="evil.example") is None


def test_a_name_that_leads_to_loopback_is_loopback(monkeypatch):
    found = [(0, 0, 0, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    assert code(Callers("box"), host="box:7860") is None
    assert code(Callers("box"), host="evil.example") == "host_not_allowed"
    found.append((0, 0, 0, "", ("192.0.2.1", 0)))
    assert code(Callers("box"), host="evil.example") is None


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "192.0.2.1", None])
def test_bound_wider_any_name_is_answered_unless_some_are_allowed(bound):
    assert code(Callers(bound), host="evil.example") is None
    callers = Callers(bound, ["svc"])
    assert code(callers, host="svc:80") is code(callers, host="localhost") is None
    assert code(callers, host="evil.example") == "host_not_allowed"
    assert code(callers, health=True, host="10.0.0.7:7860") is None  # how Kubernetes probes


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://localhost:7860", {"host": "localhost:7860"}),
        ("http://[::1]:7860", {"host": "[::1]:7860"}),
        ("https://me-space.hf.space", {"host": "me-space.hf.space"}),
        ("https://a.example", {"host": "a.example:443"}),
        ("http://a.example", {"host": "a.example:80"}),
        ("https://a.example", {"host": "10.0.0.1", "x-forwarded-host": "a.example"}),
        ("https://a.example", {"host": "10.0.0.1", "x-forwarded-host": "a.example, b.example"}),
        ("https://named.example", {"host": "10.0.0.1"}),
        ("http://named.example:81", {"host": "10.0.0.1"}),
    ],
)
def test_pages_of_its_own_and_those_named_may_ask(origin, headers):
    callers = Callers(None, (), ["https://named.example:443", "HTTP://named.example:81"])
    assert code(callers, origin=origin, **headers) is None


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://evil.example", {"host": "localhost:7860"}),
        ("http://localhost:3000", {"host": "localhost:7860"}),
        ("http://localhost", {"host": "localhost:7860"}),
        ("https://a.example", {"host": "a.example:7860"}),
        ("null", {"host": "localhost"}),
        ("", {"host": "localhost"}),
        ("file://", {"host": "localhost"}),
        ("https://", {"host": ""}),
        ("http://a.example/x", {"host": "a.example"}),
        ("http://evil@a.example", {"host": "a.example"}),
        ("https://b.example", {"host": "h", "x-forwarded-host": "a.example, b.example"}),
        ("http://named.example", {"host": "h"}),
        ("https://named.example.evil", {"host": "h"}),
        ("*", {"host": "*"}),
    ],
)
def test_pages_of_other_origins_may_not(origin, headers):
    callers = Callers(None, (), ["https://named.example"])
    assert code(callers, origin=origin, **headers) == "origin_not_allowed"


def test_two_origins_are_both_checked():
    given = [(b"host", b"a.example"), (b"origin", b"http://a.example"), (b"origin", b"http://b")]
    problem = Callers().refusal(Headers(raw=given), False)
    assert problem is not None and problem.code == "origin_not_allowed"


@pytest.mark.parametrize("text", ["", "a.org:80", "http://a.org", "a b", "*.a.org/", "[::1]:80"])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(UsageError, match="write a name"):
        Callers(None, [text])


@pytest.mark.parametrize("text", ["", "a.org", "null", "https://a.org/", "ftp://a.org", "https://"])
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(UsageError, match="write an origin"):
        Callers(None, (), [text])


# -- Against a server ------------------------------------------------------------------------------

ROUTES = ["/v1/models", "/v2", "/health/live", "/metrics", "/docs", "/", "/elsewhere"]


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_answers_a_strangers_page(client, problem, route):
    for headers, wanted in (
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Origin": "http://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
    ):
        for method in ("GET", "POST", "OPTIONS"):
            answer = client.request(method, route, headers=headers)
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]
            if not route.startswith("/v2"):
                assert problem(answer)[1] == wanted


def test_a_preflight_of_a_strangers_page_is_refused(client):
    asked = {"Access-Control-Request-Method": "POST", "Origin": "http://evil.example"}
    answer = client.options("/v1/embeddings", headers=asked)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_websocket_is_not_opened(server):
    """Neither by the server library nor by what is mounted: it is an ordinary request."""
    head = "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    for host, status in (("localhost", b"404"), ("evil.example", b"403")):
        with server.connect() as connection:
            connection.sendall(head.format("/queue/join", host).encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)


def test_pages_that_are_named_get_cors_on_the_api_and_nothing_else(start_server, encoded, pixels):
    page = "https://page.example"
    server = start_server("--allow-origin", page, "--token", "secret")
    image = encoded(pixels(1))
    with httpx.Client(base_url=server.url, headers={"Origin": page}) as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
            "Access-Control-Request-Private-Network": "true",
        }
        for route in ("/v1/embeddings", "/v2/models/tiny/infer"):
            preflight = client.options(route, headers=asked)
            assert preflight.status_code == 200
            allowed = preflight.headers["access-control-allow-headers"]
            assert "authorization" in allowed and "x-stainless-lang" in allowed
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-private-network"] == "true"
        key = {"Authorization": "Bearer secret", "Content-Type": "image/png"}
        gzip = key | {"Content-Encoding": "gzip"}
        for headers, status in ((key, 200), ({}, 401), (gzip, 415)):
            answer = client.post("/v1/embeddings", content=image, headers=headers)
            assert answer.status_code == status  # errors too: the page shows them
            assert answer.headers["access-control-allow-origin"] == page
            assert "Origin" in answer.headers["vary"]
            assert "access-control-allow-credentials" not in answer.headers
        other = client.get("/v1/models", headers={"Origin": "https://page.example.evil"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
        outside = client.get("/metrics")
        assert outside.status_code == 200 and "access-control-allow-origin" not in outside.headers


def test_what_is_mounted_cannot_open_answers_to_pages():
    """A mounted application that reflects the origin with credentials, as Gradio's does."""
    import asyncio

    from serving.http.gate import Gate
    from serving.http.keys import Keys
    from serving.limits import Limits
    from serving.metrics import Metrics

    async def reflecting(scope, receive, send):
        headers = [(b"Access-Control-Allow-Origin", b"http://a"), (b"x-a", b"1")]
        headers.append((b"access-control-allow-credentials", b"true"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> httpx.Response:
        gate = Gate(reflecting, Limits(), Metrics(), Keys(), Callers(), None, False)
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return await client.get("/", headers={"Origin": "http://a"})

    answer = asyncio.run(scenario())
    assert answer.headers["x-a"] == "1"
    assert not [name for name in answer.headers if name.startswith("access-control")]
