"""Client and AsyncClient at addresses where no server of ours is, with options that cannot be, and
in other processes and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from augself_hub import AsyncClient, Client
from augself_hub.errors import UsageError
from serving.client_steps import ServerError

LIMITS = {"items": 2, "body_bytes": 10**6}
RECORD = {"id": "m", "dimension": 2, "augmentations": {"color": ["hue"]}, "limits": LIMITS}
Answer = tuple[int, dict[str, str], bytes]


def said(answer: object, status: int = 200, **headers: str) -> Answer:
    return status, headers, json.dumps(answer).encode()


class Server:
    """Answers every request of a path alike, on connections that stay open."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"/v1/models": said({"data": [RECORD]})}
        self.ports: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                server.ports.append(self.client_address[1])
                status, headers, body = server.answers[self.path]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that is gone
                    super().handle()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "text/html"}, b"<html>It works!</html>"),
        (204, {}, b""),
        said(None),
        said([]),
        said({"data": [{"id": "gpt", "object": "model"}]}),
        said({"data": [{**RECORD, "dimension": "2"}]}),
        said({"data": [{**RECORD, "limits": {"items": 0, "body_bytes": 1}}]}),
        said({"data": [{**RECORD, "augmentations": None}]}),
    ],
)
def test_a_web_server_that_is_not_ours(server: Server, answer: Answer):
    server.answers["/v1/models"] = answer
    with pytest.raises(ServerError, match="does not answer /v1/models as augself serve does"):
        Client(server.url, retries=0).features([b"x"])


@pytest.mark.parametrize(
    "answer",
    [
        said({"data": []}),
        said({"data": [{"embedding": "!!"}]}),
        said({"data": [{"embedding": [1.0, 2.0]}]}),
        said({"data": [{"embedding": "AAAA"}]}),  # three bytes
        said({"data": [{"embedding": "AACAPw=="}]}),  # one number, which would fill both places
        said("text"),
    ],
)
def test_features_that_cannot_be_understood(server: Server, answer: Answer):
    server.answers["/v1/embeddings"] = answer
    with pytest.raises(ServerError, match="does not answer /v1/embeddings"):
        Client(server.url).features([b"x"])


@pytest.mark.parametrize(
    "answer",
    [
        said({"model": "m", "data": []}),
        said({"model": "m", "data": [{"index": 0}]}),
        said({"model": "m", "data": [{"match": 1.0, "differences": {"flip": {}}}]}),
    ],
)
def test_a_difference_that_cannot_be_understood(server: Server, answer: Answer):
    server.answers["/v1/augmentations"] = answer
    with pytest.raises(ServerError, match="does not answer /v1/augmentations"):
        Client(server.url).difference(b"x", b"y")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said({"error": {"message": None, "code": None, "param": 3}}, 400), "HTTP status 400 from"),
        (said({"error": "text"}, 400), "HTTP status 400 from"),
        (said({"error": {"message": "m", "code": "c", "param": "input[7]"}}, 400), "^m$"),
        (said("no gzip at all", Content_Encoding="gzip"), "cannot be read"),
        (said("", 301, Location="https://x/v1/embeddings"), "sends on to https://x: give Client"),
        (said("", 429, Retry_After="²"), "HTTP status 429"),
    ],
)
def test_errors_that_are_not_ours(server: Server, answer: Answer, words: str):
    server.answers["/v1/embeddings"] = (
        answer[0],
        {k: v.encode().decode("latin-1") for k, v in answer[1].items()},
        answer[2],
    )
    with pytest.raises(ServerError, match=words):
        Client(server.url, retries=0).features([b"x"])


def test_tls_where_there_is_none(server: Server):
    with pytest.raises(ServerError, match="speaks no TLS"):
        Client(server.url.replace("http", "https"), retries=0).models()


def test_a_proxy_that_refuses(server: Server, monkeypatch: pytest.MonkeyPatch):
    """It answers CONNECT with 501, as it does not know it."""
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    with pytest.raises(ServerError, match=r"the proxy before .* refuses"):
        Client("https://nobody.example", retries=0).models()


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://", {}, "no address"),
        ("http://h:x", {}, "no address of a server .*port"),
        ("http://h:99999", {}, "no port has the number 99999"),
        ("http://h/?key=1", {}, "before its"),
        ("http://h/#top", {}, "before its"),
        ("ftp://h", {}, "no address"),
        ("http://h", {"api_key": ""}, "api_key is no token"),
        ("http://h", {"api_key": "a\nb"}, "api_key is no token"),
        ("http://h", {"api_key": "é"}, "api_key is no token"),
        ("http://h", {"api_key": 3}, "api_key is of type int"),
        ("http://h", {"model": 3}, "model is of type int"),
        ("http://h", {"retries": -1}, "retries -1: give a whole number"),
        ("http://h", {"retries": None}, "retries None: give a whole number"),
        ("http://h", {"timeout": 0}, "timeout 0: give seconds"),
        ("http://h", {"timeout": "1"}, "timeout '1': give seconds"),
        ("http://h", {"timeout": float("nan")}, "timeout nan: give seconds"),
        ("http://h", {"longest_wait": -1}, "longest_wait -1: give seconds"),
    ],
)
def test_options_that_cannot_be(url: str, options: dict[str, object], words: str):
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match=words):
            kind(url, **options)


def test_an_address_in_capitals_and_with_blanks(server: Server):
    assert Client(f" {server.url.upper()}/ ").models() == [RECORD]


def test_every_event_loop_has_its_own_connections(server: Server):
    client = AsyncClient(server.url, retries=0)
    for _ in range(3):
        assert asyncio.run(client.models()) == [RECORD]
    assert len(set(server.ports)) == 3


def _ask(client: Client, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(client.models())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_goes_to_another_process(server: Server, method: str):
    """By fork it would write on the connection of its parent, by spawn it is pickled."""
    context = multiprocessing.get_context(method)
    client, answers = Client(server.url, api_key="secret", retries=0), context.SimpleQueue()
    assert client.models() == [RECORD]
    child = context.Process(target=_ask, args=(client, answers))
    child.start()
    assert answers.get() == client.models() == [RECORD]
    child.join()
    here, there, again = server.ports
    assert here == again != there


def test_a_pickled_client_is_the_same_one():
    client = Client("http://h/sub/", model="m", api_key="secret", timeout=3, retries=1)
    copy = pickle.loads(pickle.dumps(client))
    assert (copy.url, copy.model, copy.retries, copy._given) == (
        "http://h/sub",
        "m",
        1,
        client._given,
    )
    assert copy._http.headers["authorization"] == "Bearer secret"
