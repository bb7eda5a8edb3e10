"""Bad requests against the real process, each followed by a good one: same answer, same memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from pydantic import ValidationError
from pydantic_core import from_json

from serving.http import bodies
from serving.http.api import create_app
from serving.http.problems import Problem
from serving.http.schemas import AugmentationRequest, EmbeddingRequest, InferInput, InferRequest
from serving.inference.source import ModelSource
from serving.settings import ServerSettings

BAND = 100  # megabytes
SLICE = 2**20  # of base64, decoded at one go
EMBEDDINGS, AUGMENTATIONS = "/v1/embeddings", "/v1/augmentations"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.fixture(autouse=True)
def unharmed(server, client, pixels, encoded, expected, vectors) -> Iterator[None]:
    """After each row a good image has its answer, and at no moment was the memory beyond."""
    server.forget_peak()
    before = server.megabytes()
    yield
    good = client.post(EMBEDDINGS, files={"image": encoded(pixels(9))})
    np.testing.assert_allclose(vectors(good)[0], expected(pixels(9)), rtol=1e-4, atol=1e-5)
    assert server.megabytes("VmHWM") < before + BAND


@pytest.fixture(scope="module")
def png(pixels, encoded) -> bytes:
    return encoded(pixels(1))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def head(name: str, *more: str) -> bytes:
    """The beginning of one part of a form whose boundary is b."""
    lines = ["--b", f'Content-Disposition: form-data; name="{name}"', *more, "", ""]
    return "\r\n".join(lines).encode()


def answer_of(connection: socket.socket) -> bytes:
    """What comes until the server closes or nothing comes for ten seconds."""
    connection.settimeout(10)
    found = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65536):
            found += part
            if b"\r\n\r\n" in found and b'"code"' in found:
                break
    return found


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "bad_json", None),
        (b"{", 400, "bad_json", None),
        (b"\xef\xbb\xbf{}", 400, "bad_json", None),
        (b'{"input": "\xff"}', 400, "bad_json", None),
        (b'{"input": "\\ud800"}', 400, "bad_json", None),
        (b"[" * 5_000, 400, "bad_json", None),
        (b'{"input":' * 5_000, 400, "bad_json", None),
        (b"[" * 100_000, 413, "too_many_values", None),
        (b'{"input":' * 100_000, 413, "too_many_values", None),
        (b"[]", 422, "model_type", None),
        (b"NaN", 422, "model_type", None),
        (b"{}", 422, "missing", "input"),
        (b'{"input": []}', 400, "no_images", "input"),
        (b'{"input": NaN}', 422, "list_type", "input"),
        (b'{"input": [1e999]}', 422, "string_type", "input[0]"),
        (b'{"input": [1]}', 422, "string_type", "input[0]"),
        (b'{"input": "x", "normalize": 1e999}', 422, "bool_type", "normalize"),
        (b'{"input": ["data:,"], "model": "../x"}', 404, "model_not_found", "model"),
        (b'{"input": ["data:,"], "model": ""}', 404, "model_not_found", "model"),
        (b'{"model": "%s", "input": "x"}' % (b"m" * 1_000_000), 422, "string_too_long", "model"),
        (b'{"input": ["x","x","x","x","x","x","x","x","x"]}', 413, "too_many_items", "input"),
        (b'{"input": "x", "encoding_format": "hex"}', 422, "literal_error", "encoding_format"),
        (b'{"input": "x", "input": "y"}', 422, "given_twice", "input"),
    ],
)
def test_bad_json(client, problem, body, status, code, param):
    headers = {"Content-Type": "application/json"}
    answer = client.post(EMBEDDINGS, content=body, headers=headers)
    assert problem(answer) == (status, code, param)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "bad_data_url"),
        ("data:", "bad_data_url"),
        ("data:,", "bad_data_url"),
        ("data:image/png,abc", "bad_data_url"),
        ("DATA:image/png;base64,AAAA", "bad_data_url"),
        ("data:image/png;base64;x,AAAA", "bad_data_url"),
        ("http://example.org/a.png", "bad_data_url"),
        ("file:///etc/passwd", "bad_data_url"),
        ("data:image/png;base64,", "empty_image"),
        ("data:image/png;base64,AAA", "bad_base64"),
        ("data:image/png;base64,AAA=A", "bad_base64"),
        ("data:image/png;base64,_-==", "bad_base64"),
        ("data:image/png;base64,AA AA", "bad_base64"),
        ("data:image/png;base64,\u00fc\u00fc\u00fc\u00fc", "bad_base64"),
        ("data:image/png;base64,AAAA", "undecodable_image"),
    ],
)
def test_bad_data_urls(client, problem, png, url, code):
    good = "data:image/png;base64," + text(png)
    answer = client.post(EMBEDDINGS, json={"input": [good, url]})
    assert problem(answer) == (400, code, "input[1]")
    answer = client.post(AUGMENTATIONS, json={"pairs": [{"a": url, "b": good}]})
    assert problem(answer) == (400, code, "pairs[0].a")


# -- Forms -----------------------------------------------------------------------------------------

BAD_FORMS = {
    "no boundary named": (b"x", 400, "bad_multipart", "multipart/form-data"),
    "no boundary in it": (b"no boundary", 400, "bad_multipart", None),
    "an end that never comes": (head("image") + b"abc", 400, "bad_multipart", None),
    "no part": (b"--b--\r\n", 400, "no_images", None),
    "an empty part": (head("image") + b"\r\n--b--\r\n", 400, "empty_image", None),
    "10,000 parts": ((head("x") + b"\r\n") * 10_000 + b"--b--\r\n", 413, "too_many_items", None),
    "only a part without a name": (
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", 400, "no_images", None,
    ),
    "a header without an end": (b"--b\r\n" + b"x" * 100_000, 400, "bad_multipart", None),
    "an endless boundary": (
        b"x", 400, "bad_multipart", "multipart/form-data; boundary=" + "b" * 30_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FORMS)
def test_bad_forms(client, problem, name):
    body, status, code, content_type = BAD_FORMS[name]
    headers = {"Content-Type": content_type or "multipart/form-data; boundary=b"}
    answer = client.post(EMBEDDINGS, content=body, headers=headers)
    assert problem(answer)[:2] == (status, code)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a.exe", "", "x" * 1000, "\0", "\u202egnp.exe", "%n%s"],
)
def test_file_names_are_ignored(client, vectors, png, name):
    files = {"image": (name, png, "text/x-python")}
    named = vectors(client.post(EMBEDDINGS, files=files))
    np.testing.assert_array_equal(named, vectors(client.post(EMBEDDINGS, content=png)))


@pytest.mark.parametrize(
    "fields",
    [["image_a"], ["image_a", "image_a", "image_b"], ["image_a", "image_b", "image_c"], ["image"]],
)
def test_a_pair_is_two_images(client, problem, png, fields):
    answer = client.post(AUGMENTATIONS, files=[(field, png) for field in fields])
    assert problem(answer)[0] == 422


# -- Types, encodings, routes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_content_type"),
        ({"Content-Type": "application/x-npy"}, 415, "unsupported_content_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_content_type"),
        ({"Content-Type": "\xff"}, 415, "unsupported_content_type"),
        ({"Content-Type": "application/json"}, 400, "bad_json"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"Content-Type": "image/png", "Content-Encoding": "br"}, 415, "unsupported_encoding"),
    ],
)
def test_a_good_image_called_something_else(client, problem, png, headers, status, code):
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = client.post(EMBEDDINGS, content=png, headers=sent)
    assert problem(answer)[:2] == (status, code)


@pytest.mark.parametrize("kind", [None, "image/gif", "image/x-nothing", "application/octet-stream"])
def test_a_type_that_says_nothing_is_sniffed(client, vectors, png, kind):
    headers = {"Content-Type": kind} if kind else {}
    assert vectors(client.post(EMBEDDINGS, content=png, headers=headers)).shape[0] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/elsewhere", 404),
        ("GET", "/v1/" + "x" * 5000, 404),
        ("GET", "/v1/embeddings", 405),
        ("PUT", "/v1/embeddings", 405),
        ("PATCH", "/v1/augmentations", 405),
        ("DELETE", "/v1/models", 405),
        ("HEAD", "/v1/embeddings", 405),
        ("HEAD", "/v1/models/nothing", 404),
        ("OPTIONS", "/v1/nothing", 404),
        ("POST", "/health/live", 405),
        ("PUT", "/version", 405),
        ("DELETE", "/docs", 405),
    ],
)
def test_other_routes(client, problem, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert ("allow" in answer.headers) == (status == 405)
    if method != "HEAD":
        assert problem(answer)[0] == status


# -- Bodies that are too much, too slow or not what they say ---------------------------------------


def test_a_body_over_the_limit_is_413_with_and_without_its_length(client, problem):
    """The second body would never end: it is cut at the limit."""
    headers = {"Content-Type": "image/png"}
    for content in (bytes(5_000_000), (bytes(100_000) for _ in range(1000))):
        answer = client.post(EMBEDDINGS, content=content, headers=headers)
        assert problem(answer)[:2] == (413, "body_too_large")


@pytest.mark.parametrize("length", ["200000000", "1073741824", "9" * 18])
def test_a_length_over_the_limit_is_413_before_anything_is_sent(server, length):
    with server.connect() as connection:
        connection.sendall(HEAD + f"Content-Length: {length}\r\n\r\n".encode())
        assert answer_of(connection).startswith(b"HTTP/1.1 413")


def test_a_client_that_sends_all_its_body_first_finds_the_refusal(server):
    """Most clients read nothing before: closed too early, their connection would be reset."""
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 5000000\r\n\r\n")
        for _ in range(25):
            connection.sendall(bytes(200_000))
            time.sleep(0.1)
        assert answer_of(connection).startswith(b"HTTP/1.1 413")


def test_an_unnamed_field_of_a_gigabyte_is_413_at_the_limit(client, problem):
    def body() -> Iterator[bytes]:
        yield b"--b\r\nContent-Disposition: form-data\r\n\r\n"
        for _ in range(1000):
            yield bytes(1_000_000)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post(EMBEDDINGS, content=body(), headers=headers)
    assert problem(answer)[:2] == (413, "body_too_large")


OTHER_FIELDS = b"".join(b',"%d":1' % i for i in range(9_000))
MANY = {
    "wrong items": (b'{"input": [' + b"1," * 9_000 + b"1]}", 422, "string_type", "input[0]"),
    "wrong items, very many": (
        b"{\"input\": [" + b"1," * 99_999 + b"1]}", 413, "too_many_values", None,
    ),
    "fields": (
        b'{"input": "x"' + OTHER_FIELDS + b"}",
        400, "bad_data_url", "input[0]",
    ),
    "fields, very many": (
        b'{"input": "x"' + b"".join(b',"%d":1' % i for i in range(99_999)) + b"}",
        413, "too_many_values", None,
    ),
    "escapes": (b'{"input": "' + b"\\n" * 1_900_000 + b'"}', 413, "too_many_values", None),
    "blanks": (b'{"input": "x"' + b" " * 3_900_000 + b"}", 413, "too_many_values", None),
    "letters": (b'{"input": "' + b"\xc3\xa9" * 1_900_000 + b'"}', 413, "too_many_values", None),
    "digits": (b'{"input": "x", "normalize": ' + b"9" * 3_900_000 + b"}", 400, "bad_json", None),
    "fraction": (
        b"{\"input\": \"x\", \"normalize\": 0." + b"5" * 3_900_000 + b"}", 422, None, "normalize",
    ),
    "an endless name": (b'{"%b": 1}' % (b"k" * 3_900_000), 422, "missing", "input"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANY)
def test_much_json_is_one_error_at_its_first(client, problem, name):
    body, *wanted = MANY[name]
    answer = client.post(EMBEDDINGS, content=body, headers={"Content-Type": "application/json"})
    found = problem(answer)
    assert [f for f, w in zip(found, wanted, strict=True) if w is not None and f != w] == []


@pytest.mark.parametrize(
    ("pairs", "status", "param"),
    [
        (b"1," * 9_000 + b"1", 422, "pairs[0]"),
        (b"{}," * 3_000 + b"{}", 422, "pairs[0].a"),
        (b'{"a":"","b":""},' * 1_900 + b"1", 422, "pairs[1900]"),
        (b'{"a":"","b":""},' * 9 + b'{"a":"","b":""}', 413, "pairs"),
        (b"{\"a\":\"\",\"b\":\"\"%b}" % OTHER_FIELDS, 422, "pairs[0].0"),
    ],
    ids=["numbers", "empty", "a late one", "too many", "fields"],
)  # fmt: skip
def test_many_bad_pairs_are_one_error_at_the_first(client, problem, pairs, status, param):
    body = b'{"pairs": [%b]}' % pairs
    answer = client.post(AUGMENTATIONS, content=body, headers={"Content-Type": "application/json"})
    assert problem(answer)[::2] == (status, param)


def test_validation_stops_at_the_first_wrong_item():
    """It used to describe every one of 100,000, for two seconds, while nobody was answered."""
    for record, values in (
        (EmbeddingRequest, {"input": [1] * 1000}),
        (AugmentationRequest, {"pairs": [{}] * 1000}),
        (InferRequest, {"inputs": [1] * 1000}),
        (InferRequest, {"inputs": [], "outputs": [1] * 1000}),
        (InferInput, {"name": "x", "datatype": "x", "shape": ["1"] * 1000}),
    ):
        with pytest.raises(ValidationError) as caught:
            record.model_validate(values)
        assert caught.value.error_count() <= 2


@pytest.mark.parametrize("size", [0, 1, 2, 3, SLICE - 1, SLICE, SLICE * 3 // 4, 2_000_000])
def test_base64_is_decoded_in_slices_and_whole(size):
    data = np.random.default_rng(size).bytes(size)
    url = "data:image/png;base64," + text(data)
    assert bodies.Item("x", url).data() == data
    for place in (4, SLICE, SLICE - 1, SLICE - 2):
        if place < len(url) - 30:
            broken = url[: 22 + place] + "=" + url[23 + place :]
            with pytest.raises(Problem) as caught:
                bodies.Item("x", broken).data()
            assert caught.value.code == "bad_base64"


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("route", [EMBEDDINGS, AUGMENTATIONS, "/v2/models/tiny/infer"])
def test_large_bodies_are_read_on_a_thread(tiny_model, monkeypatch, route, size):
    threads = []

    def seen(*given, **more):
        threads.append(threading.current_thread())
        return from_json(*given, **more)

    monkeypatch.setattr(bodies, "from_json", seen)

    async def scenario() -> None:
        app = create_app([ModelSource("tiny", tiny_model, "cpu", 1)], ServerSettings(lazy=True))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            body = {"input": "x" * size, "pairs": [], "inputs": []}
            assert (await client.post(route, json=body)).status_code in (400, 422)

    asyncio.run(scenario())
    (thread,) = threads
    assert (thread is threading.main_thread()) is (size == 1000)


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'""'])
@pytest.mark.parametrize("field", [b"input", b"other"])
def test_json_of_very_many_values_is_413_before_it_is_parsed(client, problem, field, value):
    """Parsed, 4 MB of empty lists are 600 MB."""
    values = b",".join([value] * (3_900_000 // (len(value) + 1)))
    body = b'{"input": "x", "%b": [%b]}' % (field, values)
    headers = {"Content-Type": "application/json"}
    answer = client.post(EMBEDDINGS, content=body, headers=headers)
    assert problem(answer) == (413, "too_many_values", None)


def test_json_of_200_megabytes_is_413_at_the_limit(client, problem):
    body = (b'{"input": "' if i == 0 else b"A" * 1_000_000 for i in range(200))
    headers = {"Content-Type": "application/json"}
    answer = client.post(EMBEDDINGS, content=body, headers=headers)
    assert problem(answer)[:2] == (413, "body_too_large")


@pytest.mark.parametrize(
    "length", ["-1", "x", "1e3", "9" * 400, "", "3\r\nContent-Length: 4", "\u0663"]
)
def test_a_length_that_is_none_is_400(server, length):
    with server.connect() as connection:
        connection.sendall(HEAD + f"Content-Length: {length}\r\n\r\nabc".encode())
        assert answer_of(connection).startswith(b"HTTP/1.1 400")


def test_a_length_that_is_too_small_cuts_the_image(server, png):
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(png) // 2) + png)
        found = answer_of(connection)
    assert found.startswith(b"HTTP/1.1 400") and b"undecodable_image" in found


@pytest.mark.parametrize("pause", [0.0, 0.4], ids=["nothing more", "a byte now and then"])
def test_a_slow_upload_is_408_at_the_deadline(server, pause):
    started = time.monotonic()
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        for _ in range(4 if pause else 0):
            time.sleep(pause)
            connection.sendall(b"x")
        assert answer_of(connection).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 12


def test_chunks_that_are_none_are_400(server):
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\0\x01\0" * 50, b"GET\r\n\r\n", b"\0" * 1000],
)
def test_what_is_not_http_is_400(server, data):
    with server.connect() as connection:
        connection.sendall(data + b"\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 400")


def test_huge_headers_are_refused_by_the_server_library(server):
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(HEAD + b"X: " + b"x" * 300_000)
        assert answer_of(connection)[:12] in (b"HTTP/1.1 431", b"")  # or reset while it sent


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_bug(server, png):
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(png) + png[:50])
    time.sleep(0.1)
    assert "Traceback" not in "".join(server.log)


def test_a_query_of_thousands_of_options_is_414(client, problem, png):
    query = "&".join(f"{number}=1" for number in range(3_000))
    assert problem(client.post(f"{EMBEDDINGS}?{query}", content=png))[:2] == (414, "query_too_long")


def test_error_bodies_are_valid_whatever_the_path_says(client, problem):
    """A path of surrogates, quotes and line ends is not repeated in the answer."""
    answer = client.get('/v1/%ff%00"%0d%0aX: y')
    assert problem(answer)[0] == 404
    assert "ff" not in json.dumps(answer.json())
