"""The HTTP contract, over sockets, against a real process."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from augself_hub import __version__


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_every_answer_belongs_to_its_image(client, pixels, encoded, expected, vectors):
    """Rule 8: unique images, many clients at once, requests of one to four images."""

    def ask(start: int) -> None:
        numbers = range(start, start + 1 + start % 4)
        files = [("image", encoded(pixels(n))) for n in numbers]
        found = vectors(client.post("/v1/embeddings", files=files))
        wanted = np.stack([expected(pixels(n)) for n in numbers])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(0, 400, 4)))


def test_three_ways_to_send_an_image_agree(client, pixels, encoded, vectors):
    data = encoded(pixels(1))
    raw = client.post("/v1/embeddings", content=data, headers={"Content-Type": "image/png"})
    unnamed = client.post("/v1/embeddings", content=data)
    form = client.post("/v1/embeddings", files={"image": ("../../etc/x.exe", data, "text/html")})
    text = client.post("/v1/embeddings", json={"input": data_url(data), "unknown": 1})
    for response in (unnamed, form, text):
        np.testing.assert_array_equal(vectors(response), vectors(raw))


def test_base64_is_little_endian_float32(client, pixels, encoded, vectors):
    request = {"model": "tiny", "input": [data_url(encoded(pixels(n))) for n in range(3)]}
    floats = vectors(client.post("/v1/embeddings", json=request))
    answer = client.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()
    assert answer["object"] == "list" and answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    rows = [np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in answer["data"]]
    np.testing.assert_array_equal(np.stack(rows), floats)


def test_normalised_only_when_asked(client, pixels, encoded, vectors):
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
def test_accept_chooses_the_form_of_the_answer(
    client, pixels, encoded, accept, content_type, vectors
):
    files = {"image": encoded(pixels(3))}
    response = client.post("/v1/embeddings", files=files, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == content_type
    if content_type == "application/x-npy":
        found = np.load(io.BytesIO(response.content), allow_pickle=False)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors(client.post("/v1/embeddings", files=files)))


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "image/*;q=x", "*/*;q=nan", "*/*;q=-1"]
)
def test_nothing_acceptable_is_406(client, accept, problem):
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
    assert list(there["color"][0]) == [
        "name", "value", "unit", "standard_error", "standard_error_of", "head",
    ]  # fmt: skip
    assert there["color"][0]["standard_error_of"] == "average"
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


def test_our_own_route_refuses_unknown_fields(client, problem):
    found = problem(client.post("/v1/augmentations", json={"pairs": [], "x": 1}))
    assert found == (422, "extra_forbidden", "x")
    found = problem(client.post("/v1/augmentations", json={"pairs": [{"a": "", "b": "", "c": 1}]}))
    assert found == (422, "extra_forbidden", "pairs[0].c")


def test_models_health_and_documentation(client, tiny_model):
    manifest = json.loads((tiny_model / "augself/manifest.json").read_text())
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert (listed["object"], model["id"], model["object"]) == ("list", "tiny", "model")
    assert model["sha256"] == manifest["files"]["onnx/features.onnx"]
    assert model["units"]["color"]["hue"] == "turns" and model["limits"]["items"] == 8
    for old, new in (("slots", "max_concurrent_requests"), ("waiting_images", "max_queue_size")):
        assert model["limits"][old] == model["limits"][new] > 0
    assert model["provider"].endswith("ExecutionProvider")
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").status_code == 200
    assert '"$ref": "#/$defs' not in json.dumps(client.get("/openapi.json").json())


def test_the_api_page_asks_nothing_of_other_hosts(client):
    page = client.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) >= 3 and "//" not in "".join(links)
    assert all(client.get(link).status_code == 200 for link in links)


def test_one_model_is_told_by_its_name_whatever_slashes_it_has(client, problem):
    (listed,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/tiny").json() == listed
    assert problem(client.get("/v1/models/org/tiny")) == (404, "model_not_found", "model")


GOT = ["/v1/models", "/v1/models/tiny", "/health", "/health/live", "/health/ready", "/version"]
GOT += ["/metrics", "/docs", "/openapi.json", "/v2", "/v2/models/tiny", "/v2/models/tiny/ready"]


@pytest.mark.parametrize("path", GOT)
def test_head_and_a_last_slash_wherever_get_is(client, path):
    got, asked, slash = client.get(path), client.head(path), client.get(f"{path}/")
    assert got.status_code == asked.status_code == slash.status_code == 200
    assert asked.content == b"" and asked.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # it counts these very requests
        assert asked.headers["content-length"] == str(len(got.content))
        assert slash.content == got.content


def test_a_last_slash_of_a_post(client, pixels, encoded, vectors):
    data = encoded(pixels(1))
    without = vectors(client.post("/v1/embeddings", content=data))
    np.testing.assert_array_equal(vectors(client.post("/v1/embeddings/", content=data)), without)


def test_options_says_what_is_allowed(client):
    answer = client.options("/v1/models")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.options("/v1/embeddings").headers["allow"] == "OPTIONS, POST"
    home = client.options("/")
    assert (home.status_code, home.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


def test_the_version_and_the_way_to_the_documentation(client):
    assert client.get("/version").json() == {"version": __version__}
    home = client.get("/")
    assert (home.status_code, home.headers["location"]) == (307, "/docs")
    assert client.get("/health").json() == client.get("/health/ready").json()


OPTIONS = ("model", "encoding_format", "dimensions", "normalize", "modality", "user")


def test_null_is_as_if_it_were_left_out(client, pixels, encoded, vectors):
    data = data_url(encoded(pixels(1)))
    plain = client.post("/v1/embeddings", json={"input": data})
    null = client.post("/v1/embeddings", json={"input": data} | dict.fromkeys(OPTIONS))
    np.testing.assert_array_equal(vectors(null), vectors(plain))
    pairs = {"pairs": [{"a": data, "b": data}], "model": None}
    assert client.post("/v1/augmentations", json=pairs).status_code == 200


def test_dimensions_are_the_models_or_refused(client, pixels, encoded, vectors, problem):
    data = encoded(pixels(1))
    width = vectors(client.post("/v1/embeddings", content=data)).shape[1]
    asked = {"input": data_url(data), "dimensions": width}
    assert vectors(client.post("/v1/embeddings", json=asked)).shape == (1, width)
    wanted = (400, "unsupported_dimensions", "dimensions")
    for n in (64, 0, -1, width + 1):
        answer = client.post("/v1/embeddings", json=asked | {"dimensions": n})
        assert problem(answer) == wanted and str(width) in answer.json()["error"]["message"]
    assert problem(client.post("/v1/embeddings?dimensions=64", content=data)) == wanted
    form = client.post("/v1/embeddings", files={"image": data}, data={"dimensions": "64"})
    assert problem(form) == wanted


def test_the_query_counts_whatever_the_body_is(client, pixels, encoded, vectors, problem):
    data = encoded(pixels(2))
    bodies = ({"content": data}, {"files": {"image": data}}, {"json": {"input": data_url(data)}})
    for body in bodies:
        unit = vectors(client.post("/v1/embeddings?normalize=true", **body))
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
        for query, found in (
            ("normalise=true", (422, "extra_forbidden", "normalise")),
            ("normalize=true&normalize=false", (422, "given_twice", "normalize")),
            ("encoding_format=hex", (422, "literal_error", "encoding_format")),
            ("model=nobody", (404, "model_not_found", "model")),
        ):
            assert problem(client.post(f"/v1/embeddings?{query}", **body)) == found
    twice = {"input": data_url(data), "normalize": True}
    answer = client.post("/v1/embeddings?normalize=true", json=twice)
    assert problem(answer) == (422, "given_twice", "normalize")
    pair = {"pairs": [{"a": data_url(data), "b": data_url(data)}]}
    assert client.post("/v1/augmentations?model=tiny", json=pair).json()["model"] == "tiny"
    answer = client.post("/v1/augmentations?x=1", json=pair)
    assert problem(answer) == (422, "extra_forbidden", "x")
    for route in ("/v1/models", "/v1/models/tiny"):
        assert problem(client.get(f"{route}?limit=1")) == (422, "extra_forbidden", "limit")
    assert client.get("/v2/models/tiny?x=1").status_code == 422


def test_a_form_says_what_its_fields_are_called(client, pixels, encoded, problem):
    data = encoded(pixels(2))
    answer = client.post("/v1/embeddings", files={"file": data})
    assert problem(answer) == (400, "no_images", "image")
    assert "fields called image" in answer.json()["error"]["message"]
    both = client.post("/v1/embeddings", files={"image": data, "file": data})
    assert problem(both) == (422, "extra_forbidden", "file")
    pair = client.post("/v1/augmentations", files={"a": data, "b": data})
    assert problem(pair) == (422, "bad_pair", "image_a")


def test_fields_that_are_ignored_are_named(client, pixels, encoded):
    asked = {"input": data_url(encoded(pixels(1)))}
    assert "x-ignored-fields" not in client.post("/v1/embeddings", json=asked).headers
    many = {"output_dtype": "int8", "no header\n": 1} | {f"f{n}": n for n in range(20)}
    answer = client.post("/v1/embeddings", json=asked | many)
    wanted = ["output_dtype", *(f"f{n}" for n in range(7))]
    assert answer.headers["x-ignored-fields"] == ", ".join(wanted)


def test_base64_with_line_breaks(client, pixels, encoded, vectors):
    data = encoded(np.tile(pixels(1), (3, 3, 1)))
    plain = vectors(client.post("/v1/embeddings", content=data))
    lines = base64.encodebytes(data).decode()  # a line break after 76 characters
    assert lines.count("\n") > 10
    for text in (lines, lines.replace("\n", "\r\n"), f"\n{lines}\n"):
        answer = client.post("/v1/embeddings", json={"input": f"data:image/png;base64,{text}"})
        np.testing.assert_array_equal(vectors(answer), plain)
    for text in (lines.replace("\n", " "), lines.replace("\n", "\t"), lines[:-2] + "\n=x"):
        answer = client.post("/v1/embeddings", json={"input": f"data:image/png;base64,{text}"})
        assert answer.json()["error"]["code"] == "bad_base64"


def test_metrics_count_requests_and_images(client, pixels, encoded):
    def value(line_start: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(line_start))

    images, requests = 'augself_images_total{model="tiny"}', "augself_requests_total{"
    before = value(images), value(requests)
    client.post("/v1/embeddings", files=[("image", encoded(pixels(n))) for n in range(3)])
    assert value(images) == before[0] + 3
    assert value(requests) > before[1]
    assert value('augself_model_ready{model="tiny"}') == 1
    for old, new in (("ready{", "model_ready{"), ("batch_images_c", "batch_size_c")):  # 0.1's names
        assert value(f"augself_{old}") == value(f"augself_{new}") > 0
    assert value("augself_waiting_images{") == value("augself_queue_size{") == 0
    assert value("augself_loads_total{") == value("augself_model_loads_total{") == 1


def test_the_demo_stands_behind_the_routes_and_the_limits(
    start_server, pixels, encoded, vectors, problem
):
    server = start_server("--demo", "--limit", "body_bytes=100000")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        while (page := client.get("/")).status_code == 503:
            assert page.headers["retry-after"] and "starting" in page.text
            time.sleep(0.2)
        assert page.status_code == 200 and "html" in page.headers["content-type"]
        assert vectors(client.post("/v1/embeddings", files={"image": encoded(pixels(1))})).size
        assert problem(client.get("/v1/nothing"))[0] == 404
        assert problem(client.get("/v1"))[0] == 404
        assert client.head("/v1/models").status_code == 200
        assert client.post("/health/live").status_code == 405  # not the demo's 404
        assert "text/html" in client.get("/docs").headers["content-type"]
        upload = client.post("/gradio_api/upload", files={"files": bytes(200_000)})
        assert problem(upload)[:2] == (413, "body_too_large")
    assert server.stop() == 0


def test_a_demo_that_cannot_start_says_so_and_costs_nothing_else(start_server, tmp_path):
    """A table that is none: the log has the reason, / stays 503, /v1 answers."""
    server = start_server("--demo-table", str(tmp_path))
    with httpx.Client(base_url=server.url, timeout=20) as client:
        while "starting" in (page := client.get("/")).text:
            time.sleep(0.2)
        assert page.status_code == 503 and "could not be started" in page.text
        assert client.get("/v1/models").status_code == 200
        assert client.get("/health/ready").status_code == 200
    assert server.stop() == 0
    assert "the demo could not be started" in "".join(server.log)
