"""The HTTP contract, over sockets, against a real process."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

JPEG_HEAD = "data:image/jpeg;base64,"
SECRETS = ("/", "0x", "Error", "Exception", "Traceback", "object at")


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def vectors(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], np.float32)


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    """(status, code, param) of an error, whose body must tell nothing of our inside."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    message = error["message"].replace("application/", "").replace("image/", "")
    message = message.replace("multipart/", "").replace("/v1/models", "")
    assert not any(secret in message for secret in SECRETS), error["message"]
    return response.status_code, error["code"], error["param"]


def test_every_answer_belongs_to_its_image(client, pixels, encoded, expected):
    """Rule 8: unique images, many clients at once, requests of one to four images."""

    def ask(start: int) -> None:
        numbers = range(start, start + 1 + start % 4)
        files = [("image", encoded(pixels(n))) for n in numbers]
        found = vectors(client.post("/v1/embeddings", files=files))
        wanted = np.stack([expected(pixels(n)) for n in numbers])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(0, 400, 4)))


def test_three_ways_to_send_an_image_agree(client, pixels, encoded):
    data = encoded(pixels(1))
    raw = client.post("/v1/embeddings", content=data, headers={"Content-Type": "image/png"})
    unnamed = client.post("/v1/embeddings", content=data)
    form = client.post("/v1/embeddings", files={"image": ("../../etc/x.exe", data, "text/html")})
    text = client.post("/v1/embeddings", json={"input": data_url(data), "unknown": 1})
    for response in (unnamed, form, text):
        np.testing.assert_array_equal(vectors(response), vectors(raw))


def test_base64_is_little_endian_float32(client, pixels, encoded):
    request = {"model": "tiny", "input": [data_url(encoded(pixels(n))) for n in range(3)]}
    floats = vectors(client.post("/v1/embeddings", json=request))
    answer = client.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()
    assert answer["object"] == "list" and answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    rows = [np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in answer["data"]]
    np.testing.assert_array_equal(np.stack(rows), floats)


def test_normalised_only_when_asked(client, pixels, encoded):
    files = {"image": encoded(pixels(2))}
    plain = vectors(client.post("/v1/embeddings", files=files))
    unit = vectors(client.post("/v1/embeddings", files=files, data={"normalize": "true"}))
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("application/x-npy", "application/x-npy"),
        ("application/x-npy;q=0.2, application/*", "application/json"),
        ("text/html, application/x-npy;q=0.1", "application/x-npy"),
    ],
)
def test_accept_chooses_the_form_of_the_answer(client, pixels, encoded, accept, content_type):
    files = {"image": encoded(pixels(3))}
    response = client.post("/v1/embeddings", files=files, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == content_type
    if content_type == "application/x-npy":
        found = np.load(io.BytesIO(response.content), allow_pickle=False)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors(client.post("/v1/embeddings", files=files)))


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*;q=x"])
def test_nothing_acceptable_is_406(client, accept):
    response = client.post("/v1/embeddings", content=b"x", headers={"Accept": accept})
    assert problem(response)[:2] == (406, "not_acceptable")


def test_differences_of_a_pair(client, pixels, encoded):
    a, b = data_url(encoded(pixels(4))), data_url(encoded(pixels(5)))
    pairs = [{"a": a, "b": b}, {"a": b, "b": a}, {"a": a, "b": a}]
    answer = client.post("/v1/augmentations", json={"model": "tiny", "pairs": pairs}).json()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    there, back, same = (item["differences"] for item in answer["data"])
    assert list(there) == ["crop", "color", "flip"]
    names = [(d["name"], d["unit"]) for d in there["color"]]
    assert names == [
        ("brightness", "log ratio"),
        ("contrast", "log ratio"),
        ("saturation", "log ratio"),
        ("hue", "turns"),
    ]
    assert set(there["color"][0]) == {"name", "value", "unit", "standard_error"}
    assert 0 <= there["flip"]["mirrored"] <= 1
    values = [np.array([d["value"] for d in x["color"]]) for x in (there, back, same)]
    np.testing.assert_allclose(values[0], -values[1], atol=1e-4)  # both orders are averaged
    np.testing.assert_allclose(values[2], 0, atol=1e-4)


@pytest.mark.parametrize("gray_side", ["image_a", "image_b"])
def test_a_gray_picture_hides_saturation_and_hue(client, pixels, encoded, gray_side):
    gray = np.repeat(pixels(6)[..., :1], 3, axis=2)
    gray[0, 0] += np.array([0, 2, 1], np.uint8) * (gray[0, 0] < 250)
    files = {"image_a": encoded(pixels(7)), "image_b": encoded(pixels(8))}
    files[gray_side] = encoded(gray)
    response = client.post("/v1/augmentations", files=files)
    color = {d["name"]: d for d in response.json()["data"][0]["differences"]["color"]}
    for name in ("saturation", "hue"):
        assert color[name]["value"] is None and "gray" in color[name]["reason"]
    for name in ("brightness", "contrast"):
        assert isinstance(color[name]["value"], float) and "reason" not in color[name]


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large and holds one small black image."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def bad_images() -> dict[str, tuple[bytes, int, str]]:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    return {
        "truncated at half": (jpeg[: len(jpeg) // 2], 400, "undecodable_image"),
        "truncated at 99%": (jpeg[: len(jpeg) * 99 // 100], 400, "undecodable_image"),
        "empty": (b"", 400, "empty_image"),
        "text": (b"hello", 400, "undecodable_image"),
        "tiff": (b"II*\0" + bytes(100), 415, "unsupported_image"),
        "too many pixels": (png_of(30000, 30000), 413, "too_many_pixels"),
        "no pixels": (png_of(0, 5), 400, "undecodable_image"),
    }


@pytest.mark.parametrize("name", bad_images())
def test_a_bad_image_fails_and_the_next_good_one_does_not(client, pixels, encoded, expected, name):
    data, status, code = bad_images()[name]
    raw = client.post("/v1/embeddings", content=data, headers={"Content-Type": "image/jpeg"})
    assert problem(raw) == (status, code, "image")
    good = encoded(pixels(9))
    eight = [data_url(good)] * 7
    eight.insert(3, JPEG_HEAD + base64.b64encode(data).decode())
    mixed = client.post("/v1/embeddings", json={"input": eight})
    assert problem(mixed) == (status, code, "input[3]")
    found = vectors(client.post("/v1/embeddings", files={"image": good}))
    np.testing.assert_allclose(found[0], expected(pixels(9)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "bad_json", None),
        (b"\xef\xbb\xbf{}", 400, "bad_json", None),
        (b'{"input": "\xff"}', 400, "bad_json", None),
        (b"[" * 100_000, 400, "bad_json", None),
        (b"[]", 422, "model_type", None),
        (b"{}", 422, "missing", "input"),
        (b'{"input": []}', 400, "no_images", "input"),
        (b'{"input": [1]}', 422, "string_type", "input[0]"),
        (b'{"input": ["http://x.org/a.png"]}', 400, "bad_data_url", "input[0]"),
        (b'{"input": ["data:image/png;base64,AAA"]}', 400, "bad_base64", "input[0]"),
        (b'{"input": ["data:image/png;base64,_-=="]}', 400, "bad_base64", "input[0]"),
        (b'{"input": ["data:,"], "model": "../x"}', 404, "model_not_found", "model"),
        (b'{"input": ["data:,"], "model": ""}', 404, "model_not_found", "model"),
        (b'{"input": ["x","x","x","x","x","x","x","x","x"]}', 413, "too_many_items", "input"),
        (b'{"input": "x", "encoding_format": "hex"}', 422, "literal_error", "encoding_format"),
    ],
)
def test_bad_json(client, body, status, code, param):
    headers = {"Content-Type": "application/json"}
    assert problem(client.post("/v1/embeddings", content=body, headers=headers)) == (
        status,
        code,
        param,
    )


def test_our_own_route_refuses_unknown_fields(client):
    found = problem(client.post("/v1/augmentations", json={"pairs": [], "x": 1}))
    assert found == (422, "extra_forbidden", "x")
    found = problem(client.post("/v1/augmentations", json={"pairs": [{"a": "", "b": "", "c": 1}]}))
    assert found == (422, "extra_forbidden", "pairs[0].c")


@pytest.mark.parametrize(
    "fields", [["image_a"], ["image_a", "image_a", "image_b"], ["image_a", "image_b", "image_c"]]
)
def test_a_pair_is_two_images(client, pixels, encoded, fields):
    files = [(field, encoded(pixels(1))) for field in fields]
    assert problem(client.post("/v1/augmentations", files=files))[0] == 422


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("multipart/form-data", b"x", 400, "bad_multipart"),
        ("multipart/form-data; boundary=b", b"no boundary", 400, "bad_multipart"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
            400,
            "bad_multipart",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 99 + b"--b--\r\n",
            413,
            "too_many_items",
        ),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400, "no_images"),
        ("text/plain", b"x", 415, "unsupported_content_type"),
    ],
)
def test_bad_forms_and_types(client, content_type, body, status, code):
    headers = {"Content-Type": content_type}
    response = client.post("/v1/embeddings", content=body, headers=headers)
    assert problem(response)[:2] == (status, code)


def test_compressed_bodies_are_refused(client):
    headers = {"Content-Encoding": "gzip", "Content-Type": "image/png"}
    response = client.post("/v1/embeddings", content=b"x", headers=headers)
    assert problem(response)[:2] == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/elsewhere", 404),
        ("GET", "/v1/embeddings", 405),
        ("PUT", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("HEAD", "/v1/models", 405),
    ],
)
def test_other_routes(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert ("allow" in response.headers) == (status == 405)
    if method != "HEAD":
        assert problem(response)[0] == status


def test_a_body_over_the_limit_is_413_with_and_without_its_length(client):
    headers = {"Content-Type": "image/png"}
    for content in (bytes(2_000_000), (bytes(100_000) for _ in range(20))):
        response = client.post("/v1/embeddings", content=content, headers=headers)
        assert problem(response)[:2] == (413, "body_too_large")


def test_a_slow_upload_is_408_at_the_deadline(server):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: 1000\r\n\r\nabc")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 6


def test_models_health_and_documentation(client, tiny_model):
    manifest = json.loads((tiny_model / "augself/manifest.json").read_text())
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert (listed["object"], model["id"], model["object"]) == ("list", "tiny", "model")
    assert model["sha256"] == manifest["files"]["onnx/model.onnx"]
    assert model["units"]["color"]["hue"] == "turns" and model["limits"]["items"] == 8
    assert model["provider"].endswith("ExecutionProvider")
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").status_code == 200
    assert client.get("/docs").status_code == 200
    assert '"$ref": "#/$defs' not in json.dumps(client.get("/openapi.json").json())


def test_metrics_count_requests_and_images(client, pixels, encoded):
    def value(line_start: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(line_start))

    images, requests = 'augself_images_total{model="tiny"}', "augself_requests_total{"
    before = value(images), value(requests)
    client.post("/v1/embeddings", files=[("image", encoded(pixels(n))) for n in range(3)])
    assert value(images) == before[0] + 3
    assert value(requests) > before[1]
    assert value('augself_ready{model="tiny"}') == 1


def test_sigterm_answers_what_was_accepted_and_exits_with_0(start_server, pixels, encoded):
    """Rule 7: an upload is under way; ready is off, new work is refused, the upload is answered."""
    server, data = start_server(), encoded(pixels(1))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(data) + data[:100])
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.5)
        ready = httpx.get(f"{server.url}/health/ready")
        new = httpx.post(f"{server.url}/v1/embeddings", files={"image": data})
        assert (ready.status_code, new.status_code) == (503, 503)
        assert problem(new)[1] == "draining" and "retry-after" in new.headers
        connection.sendall(data[100:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.process.wait(20) == 0


def test_a_token_is_asked_for_on_v1_alone(start_server):
    server = start_server("--token", "secret")
    models = f"{server.url}/v1/models"
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer " + "x" * 9999}):
        response = httpx.get(models, headers=given)
        assert problem(response)[:2] == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(models, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert httpx.get(f"{server.url}/health/live").status_code == 200


def test_the_demo_stands_behind_the_routes_and_the_limits(start_server, pixels, encoded):
    server = start_server("--demo", "--limit", "body_bytes=100000")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        page = client.get("/")
        assert page.status_code == 200 and "html" in page.headers["content-type"]
        assert vectors(client.post("/v1/embeddings", files={"image": encoded(pixels(1))})).size
        assert problem(client.get("/v1/nothing"))[0] == 404
        assert client.head("/v1/models").status_code == 405
        upload = client.post("/gradio_api/upload", files={"files": bytes(200_000)})
        assert problem(upload)[:2] == (413, "body_too_large")
    assert server.stop() == 0
