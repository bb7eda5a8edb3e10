"""Client and AsyncClient against a real server, and against answers written by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from answers import same_answers
from PIL import Image

from augself_hub import AsyncClient, Client, Encoder
from augself_hub.errors import AugSelfError, UndecodableImage, UsageError
from augself_hub.images.given import Skipped
from serving.client_steps import ServerError


@pytest.fixture(scope="module")
def files(tmp_path_factory, pixels, encoded):
    place = tmp_path_factory.mktemp("files")
    for number in range(12):
        (place / f"{number:02}.png").write_bytes(encoded(pixels(number)))
    return sorted(place.iterdir())


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_features_are_the_encoder_s(client, files, tiny_model):
    """Twelve images where a request may have eight."""
    assert client.models()[0]["limits"]["items"] == 8
    wanted = Encoder(tiny_model, device="cpu").features(files)
    np.testing.assert_allclose(client.features(files), wanted, rtol=1e-4, atol=1e-5)
    lengths = np.linalg.norm(client.features(iter(files), normalize=True), axis=1)
    assert lengths == pytest.approx(np.ones(12))
    assert client.features([]).shape == (0, wanted.shape[1])


def test_every_kind_of_image(client, files):
    arrays = [np.asarray(Image.open(path)) for path in files[:2]]
    wanted = client.features(files[:2])
    for kind in (
        [str(path) for path in files[:2]],
        [path.read_bytes() for path in files[:2]],
        [Image.open(path) for path in files[:2]],
        arrays,
        np.stack(arrays),
    ):
        assert np.array_equal(client.features(kind), wanted)


def test_requests_stay_within_the_server_s_bytes(client, server):
    """Each about 900 kB of noise; a body may have 4 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 550, 550, 3), np.uint8)
    assert client.features(noise).shape[0] == 6


def test_a_difference_is_the_encoder_s(client, files, tiny_model):
    wanted = Encoder(tiny_model, device="cpu").difference(*files[:2])
    found = client.difference(*files[:2])
    assert found.convention == wanted.convention == "relative"
    assert [row[:2] for row in found.rows()] == [row[:2] for row in wanted.rows()]
    ours, theirs = (one.to_dict()["differences"]["color"] for one in (found, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["value"] == pytest.approx(other["value"], abs=1e-3)


def test_differences_of_many_pairs_are_those_of_each(client, server, files, tiny_model):
    """Twelve pairs where a request may have eight; then so large that three fit into its bytes."""
    pairs = [(files[0], other) for other in files]
    wanted = [client.difference(*pair) for pair in pairs]
    found = client.differences(pairs)
    same_answers(found, wanted)
    with_encoder = Encoder(tiny_model, device="cpu").differences(pairs)
    for one, other in zip(found, with_encoder, strict=True):
        assert [row[:2] for row in one.rows()] == [row[:2] for row in other.rows()]
    assert client.differences([]) == []
    noise = np.random.default_rng(0).integers(0, 256, (6, 400, 400, 3), np.uint8)
    found = client.differences([(one, files[0]) for one in noise])
    same_answers(found[4:], [client.difference(one, files[0]) for one in noise[4:]])

    async def ask():
        async with AsyncClient(server.url) as awaited:
            return await awaited.differences(iter(pairs))

    same_answers(asyncio.run(ask()), wanted)


def test_of_many_pairs_one_that_cannot_be_read_is_named_or_skipped(client, files):
    """By us, as a file that is not there, or by the server."""
    pairs = [(file, files[0]) for file in files]
    pairs[2], pairs[5], pairs[9] = (files[0], b"no"), ("none.png", files[0]), (b"no", files[0])
    with pytest.raises(UndecodableImage, match=r"^pair 2: image b: "):
        client.differences(pairs[:4])
    with pytest.raises(AugSelfError, match=r"^pair 5: none\.png: No such file"):
        client.differences(pairs)
    with pytest.raises(AugSelfError, match=r"^pair 0: 57\d{5} bytes as both images are sent"):
        client.differences([(b"x" * 2_150_000, b"x" * 2_150_000)])
    with pytest.warns(Skipped, match="3 of 12 pairs .*: pair 2: image b: .*; pair 5: ") as caught:
        found = client.differences(pairs, on_error="skip")
    (warning,) = [one.message for one in caught if isinstance(one.message, Skipped)]
    assert sorted(warning.reasons) == [2, 5, 9] == [n for n, one in enumerate(found) if not one]
    same_answers(found[11:], [client.difference(*pairs[11])])
    with pytest.raises(UsageError, match="pair 1 is no pair of images"):
        client.differences([pairs[0], files[0]])


def test_a_broken_image_is_named_wherever_it_is_found(client, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(UndecodableImage, match=r"broken\.png: "):
        client.features([*files, broken])
    with pytest.raises(AugSelfError, match=r"none\.png: No such file"):
        client.features([tmp_path / "none.png"])
    with pytest.raises(UndecodableImage, match="image b: "):
        client.difference(files[0], broken.read_bytes())


def test_broken_images_are_skipped_and_reported(client, files, tmp_path):
    damaged = files[0].read_bytes()[:60]
    images = [tmp_path / "none.png", *files[:3], damaged, damaged, *files[3:9]]
    with pytest.warns(Skipped, match="3 of 12 images cannot be read") as told:
        rows = client.features(images, on_error="skip")
    there = ~np.isnan(rows).any(axis=1)
    assert np.flatnonzero(~there).tolist() == [0, 4, 5]
    np.testing.assert_allclose(rows[there], client.features(files[:9]), rtol=1e-4, atol=1e-5)
    assert list(told[0].message.reasons) == [0, 4, 5]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.features("a.jpg"), "a list of images: put the one into a list"),
        (lambda c: c.features(3), "a list of images, not int"),
        (lambda c: c.features([3]), "image 0: int is no image"),
        (lambda c: c.features([3], on_error="skip"), "image 0: int is no image"),
        (lambda c: c.features([], on_error="no"), "give raise or skip"),
        (lambda c: c.features([b""], model="nobody"), "serves no model 'nobody': it has tiny"),
    ],
)
def test_what_cannot_work_is_one_sentence(client, call, said):
    with pytest.raises(UsageError, match=said):
        call(client)


def test_urls_are_fetched_by_a_server_that_allows_them(client):
    with pytest.raises(ServerError, match=r"http://127.0.0.1:1/a.jpg: "):
        client.features(["http://127.0.0.1:1/a.jpg"])


def test_the_wrong_address_and_the_wrong_key(start_server, files):
    with pytest.raises(UsageError, match="no address of a server"):
        Client("localhost:7860")
    with pytest.raises(AugSelfError, match=r"no server answers at http.*: start one"):
        Client("http://127.0.0.1:1").models()
    server = start_server("--token", "secret")
    with pytest.raises(ServerError, match="api_key"):
        Client(server.url).models()
    with Client(server.url, api_key="secret") as client:
        assert len(client.features(files[:1])) == 1


def test_the_same_with_await(server, files):
    async def ask():
        async with AsyncClient(server.url) as client:
            rows = await asyncio.gather(*(client.features(files[i : i + 4]) for i in (0, 4, 8)))
            return np.concatenate(rows), await client.difference(*files[:2]), await client.models()

    rows, difference, models = asyncio.run(ask())
    with Client(server.url) as client:
        np.testing.assert_allclose(rows, client.features(files), rtol=1e-4, atol=1e-5)
        assert [row[:2] for row in difference.rows()] == [
            row[:2] for row in client.difference(*files[:2]).rows()
        ]
        assert models == client.models()


RECORD = {
    "id": "m", "dimension": 2, "augmentations": {}, "limits": {"items": 2, "body_bytes": 10**6},
}  # fmt: skip


@contextlib.contextmanager
def answering(
    busy: Sequence[tuple[int, dict[str, str]] | None] = (), sizes: list[int] | None = None, **limits
) -> Iterator[tuple[str, list[float]]]:
    """A server that answers POSTs with these statuses and headers first, None by hanging up.

    It cannot read images that begin with `bad`. Images of each request are added to `sizes`.
    """
    asked: list[float] = []
    record = RECORD | {"limits": RECORD["limits"] | limits}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._say(200, {"data": [record]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(time.monotonic())
            if len(asked) <= len(busy):
                if (told := busy[len(asked) - 1]) is None:
                    self.close_connection = True
                    return
                error = {"message": "the server is full", "code": "full", "param": None}
                self._say(told[0], {"error": error}, told[1])
                return
            images = [base64.b64decode(url.partition(",")[2]) for url in body["input"]]
            if sizes is not None:
                sizes.append(len(images))
            for place, image in enumerate(images):
                if image.startswith(b"bad"):
                    where = {"code": "undecodable_image", "param": f"input[{place}]"}
                    self._say(400, {"error": {"message": "no image", **where}})
                    return
            ones = np.ones(2, "<f4")
            told = {"embedding": base64.b64encode(ones.tobytes()).decode()}
            self._say(200, {"data": [told] * len(body["input"])})

        def _say(self, status, answer, headers=()):
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**dict(headers), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}", asked
        finally:
            httpd.shutdown()


def blocking(url: str, **options: object) -> np.ndarray:
    with Client(url, **options) as client:
        return client.features([b"x"])


def awaited(url: str, **options: object) -> np.ndarray:
    async def ask():
        async with AsyncClient(url, **options) as client:
            return await client.features([b"x"])

    return asyncio.run(ask())


EITHER = pytest.mark.parametrize("ask", [blocking, awaited])


def test_an_image_larger_than_a_request_is_named_or_skipped():
    """A body of 1,000,000 bytes, of which base64 takes four for three of the file's."""
    images = [b"x", b"x" * 800_000, b"x" * 700_000]
    with answering() as (url, asked), Client(url, retries=0) as client:
        with pytest.raises(AugSelfError, match=r"image 1: 10666\d\d bytes .* takes 1000000"):
            client.features(images)
        before = len(asked)
        with pytest.warns(Skipped, match="1 of 3 images"):
            rows = client.features(images, on_error="skip")
        assert len(asked) == before + 2
    assert np.isnan(rows[:, 0]).tolist() == [False, True, False]


def test_an_image_of_a_difference_larger_than_a_request_is_named(client):
    with pytest.raises(AugSelfError, match=r"image b: 53333\d\d bytes .* takes 4000000 in a req"):
        client.difference(b"x", b"x" * 4_000_000)


@pytest.mark.parametrize(
    ("bad", "most"),
    [([40], 2 * 64), (range(64), 4 * 64), (range(0, 64, 2), 4 * 64), (range(1, 64, 2), 4 * 64)],
)
def test_skipping_sends_no_image_often(bad, most):
    """Each bad image ends its request: of 64 all behind it would be sent 64 times."""
    images, sizes = [b"bad" if n in bad else b"x" for n in range(64)], []
    with (
        answering(sizes=sizes, items=64) as (url, _),
        Client(url) as client,
        pytest.warns(Skipped, match=f"{len(bad)} of 64"),
    ):
        rows = client.features(images, on_error="skip")
    assert np.flatnonzero(np.isnan(rows[:, 0])).tolist() == list(bad)
    assert sum(sizes) <= most


@EITHER
def test_a_busy_server_is_asked_again_when_it_says(ask: Callable[..., np.ndarray]):
    for status in (429, 503):
        with answering([(status, {"Retry-After": "1"})] * 2) as (url, asked):
            assert ask(url).tolist() == [[1, 1]]
        assert len(asked) == 3
        assert all(b - a >= 1 for a, b in itertools.pairwise(asked))


def test_retry_after_may_be_a_date():
    with answering([(503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})]) as found:
        url, asked = found
        assert len(blocking(url)) == 1
    assert 0.9 <= asked[1] - asked[0] < 10


@EITHER
def test_without_a_time_the_pauses_grow(ask, monkeypatch):
    with answering([(429, {})] * 3) as (url, asked):
        ask(url)
    pauses = np.diff(asked)
    assert 0.25 <= pauses[0] < pauses[2] and pauses[2] >= 1


@EITHER
def test_a_connection_that_breaks_is_tried_again(ask):
    with answering([None]) as (url, asked):
        assert len(ask(url)) == 1
    assert len(asked) == 2


@EITHER
def test_at_last_it_gives_up(ask):
    with (
        answering([(429, {"Retry-After": "0"})] * 9) as (url, asked),
        pytest.raises(ServerError, match="the server is full") as error,
    ):
        ask(url, retries=2)
    assert len(asked) == 3 and error.value.status == 429


def test_a_wait_beyond_patience_is_not_waited_for():
    with (
        answering([(503, {"Retry-After": "3600"})]) as (url, _),
        pytest.raises(ServerError, match="left alone for 3600 seconds"),
    ):
        blocking(url)


def test_a_server_that_does_not_answer_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        with pytest.raises(ServerError, match="longer timeout="):
            client.models()
