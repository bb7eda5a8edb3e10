"""The open inference protocol, by Triton's own client and by the protocol's own words."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnxruntime
import pytest
from inference import INFER, images_json, packed, sentence

from augself_hub.errors import UsageError
from serving.http.api import create_app
from serving.http.tensors import HEADER
from serving.inference.source import ModelSource

triton = pytest.importorskip("tritonclient.http", reason="pip install 'augself-hub[dev]'")
pytestmark = pytest.mark.usefixtures("infers_after")


@pytest.fixture
def asked(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def raw(tiny_model):
    """Two rows of features -> the heads' outputs, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(tiny_model / "onnx/heads.onnx"))
    names = [output.name for output in session.get_outputs()]
    return lambda a, b: dict(
        zip(names, session.run(None, {"features_a": a, "features_b": b}), strict=True)
    )


def tensor(name, values, binary=True):
    kind = {"uint8": "UINT8", "float32": "FP32"}[values.dtype.name]
    given = triton.InferInput(name, list(values.shape), kind)
    return given.set_data_from_numpy(values, binary_data=binary)


# -- What Triton's client finds --------------------------------------------------------------------


def test_the_server_and_its_models_describe_themselves(asked, tiny_model):
    assert asked.is_server_live() and asked.is_server_ready()
    assert asked.is_model_ready("tiny") and asked.is_model_ready("tiny_heads")
    assert not asked.is_model_ready("nobody")
    about = asked.get_server_metadata()
    assert about["name"] == "augself-hub" and about["extensions"] == ["binary_tensor_data"]
    encoder, heads = asked.get_model_metadata("tiny"), asked.get_model_metadata("tiny_heads")
    assert encoder["inputs"] == [
        {"name": "pixel_values", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}
    ]
    (features,) = encoder["outputs"]
    width = features["shape"][1]
    assert features == {"name": "features", "datatype": "FP32", "shape": [-1, width]}
    assert [(t["name"], t["shape"]) for t in heads["inputs"]] == [
        ("features_a", [-1, width]),
        ("features_b", [-1, width]),
    ]
    assert [(t["name"], t["shape"]) for t in heads["outputs"]] == [
        ("crop", [-1, 4]),
        ("color", [-1, 4]),
        ("flip", [-1, 1]),
    ]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_features_of_images(asked, pixels, expected, binary_in, binary_out):
    images = np.stack([pixels(number) for number in range(3)])
    wanted = triton.InferRequestedOutput("features", binary_data=binary_out)
    answer = asked.infer(
        "tiny", [tensor("pixel_values", images, binary_in)], outputs=[wanted], request_id="7"
    )
    features = answer.as_numpy("features")
    np.testing.assert_allclose(features, [expected(i) for i in images], rtol=1e-4, atol=1e-5)
    told = answer.get_response()
    assert (told["model_name"], told["id"]) == ("tiny", "7") and "model_version" not in told
    assert ("data" in answer.get_output("features")) is not binary_out


def test_differences_of_features_are_the_graphs_own(asked, pixels, expected, raw):
    """Unnamed outputs: all of them, and as the request says for all."""
    a, b = (np.stack([expected(pixels(n + k)) for k in range(2)]) for n in (1, 5))
    inputs = [tensor("features_b", b), tensor("features_a", a)]  # their order is free
    answer = asked.infer("tiny_heads", inputs)
    for kind, values in raw(a, b).items():
        np.testing.assert_allclose(answer.as_numpy(kind), values, rtol=1e-4, atol=1e-5)
    outputs = [
        triton.InferRequestedOutput("flip"),
        triton.InferRequestedOutput("crop", binary_data=False),
    ]
    some = asked.infer("tiny_heads", inputs, outputs=outputs)
    assert [output["name"] for output in some.get_response()["outputs"]] == ["flip", "crop"]
    for kind in ("flip", "crop"):
        np.testing.assert_array_equal(some.as_numpy(kind), answer.as_numpy(kind))


def test_every_answer_belongs_to_its_image(server, pixels, expected):
    """Rule 8, here too: they meet those of the other routes in one queue."""

    def ask(start: int) -> None:
        images = np.stack([pixels(n) for n in range(start, start + 1 + start % 4)])
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            found = client.infer("tiny", [tensor("pixel_values", images)]).as_numpy("features")
        np.testing.assert_allclose(found, [expected(i) for i in images], rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(0, 120, 3)))


def test_the_client_reads_our_errors(asked, pixels):
    with pytest.raises(triton.InferenceServerException, match="no such model") as unknown:
        asked.infer("nobody", [tensor("pixel_values", pixels(1)[None])])
    assert unknown.value.status() == "404"
    with pytest.raises(triton.InferenceServerException, match="features_a and features_b"):
        asked.infer("tiny_heads", [tensor("pixel_values", pixels(1)[None])])
    best = triton.InferRequestedOutput("features", class_count=1)
    with pytest.raises(triton.InferenceServerException, match="only parameter known"):
        asked.infer("tiny", [tensor("pixel_values", pixels(1)[None])], outputs=[best])


# -- The protocol's own words ----------------------------------------------------------------------


def test_binary_and_json_lie_where_the_headers_say(client, pixels, expected):
    image = pixels(3)[None]
    given = images_json(image, parameters={"binary_data_size": image.nbytes})
    del given["data"]
    head = {"inputs": [given], "parameters": {"binary_data_output": True}}
    answer = client.post(INFER, **packed(head, image.tobytes()))
    size = int(answer.headers[HEADER])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert int(answer.headers["content-length"]) == len(answer.content)
    told = json.loads(answer.content[:size])
    (output,) = told["outputs"]
    assert "id" not in told and "data" not in output
    assert output["parameters"] == {"binary_data_size": len(answer.content) - size}
    features = np.frombuffer(answer.content[size:], "<f4")
    np.testing.assert_allclose(features, expected(image[0]), rtol=1e-4, atol=1e-5)
    plain = client.post(INFER, json={"inputs": [images_json(image)]})
    assert HEADER not in plain.headers and plain.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(
        np.array(plain.json()["outputs"][0]["data"], np.float32), features
    )


def test_numbers_may_be_nested_like_the_shape(client, pixels):
    images = np.stack([pixels(1), pixels(2)])
    flat = client.post(INFER, json={"inputs": [images_json(images)]})
    answer = client.post(INFER, json={"inputs": [images_json(images, data=images.tolist())]})
    assert answer.status_code == 200 and answer.json() == flat.json()


def test_what_an_id_is_made_of_does_not_matter(client, pixels):
    """Half a surrogate pair is no text, there as under /v1."""
    inputs = [images_json(pixels(1)[None])]
    for id_ in ("\u2028é", "\U0001f600", '"\\\0'):
        request = json.dumps({"id": id_, "inputs": inputs})
        assert client.post(INFER, content=request).json()["id"] == id_
    request = json.dumps({"id": "\ud800", "inputs": inputs})
    assert client.post(INFER, content=request).status_code == 400


def test_null_is_as_if_it_were_left_out(client, pixels):
    image = images_json(pixels(1)[None], parameters=None)
    null = {"id": None, "parameters": None, "outputs": None}
    plain = client.post(INFER, json={"inputs": [image]}).json()
    assert client.post(INFER, json={"inputs": [image]} | null).json() == plain
    one = [{"name": "features", "parameters": None}]
    given = {"parameters": {"binary_data_output": None}, "outputs": one}
    assert client.post(INFER, json={"inputs": [image]} | given).json() == plain


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/models/tiny%5Fheads", 200),
        ("GET", "/v2/models/tiny/", 200),
        ("HEAD", INFER, 405),
        ("POST", "/v2", 405),
        ("PUT", INFER, 405),
        ("GET", INFER, 405),
        ("POST", "/v2/models/tiny", 405),
        ("POST", "/v2/models/tiny/ready", 405),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/tiny/versions/1/infer", 404),
        ("GET", "/v2/models/tiny/versions/1", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/_heads", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models", 404),
    ],
)
def test_paths_and_methods(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    if status >= 400 and method != "HEAD":
        sentence(answer)
    assert status != 405 or answer.headers["allow"]


# -- The same gate ---------------------------------------------------------------------------------


def test_keys_open_it_and_probes_need_none(start_server, pixels):
    server = start_server("--token", "secret")
    image = tensor("pixel_values", pixels(1)[None])
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_ready() and client.is_server_live()
        with pytest.raises(triton.InferenceServerException, match="bearer token") as refused:
            client.infer("tiny", [image])
        assert refused.value.status() == "401"
        with pytest.raises(triton.InferenceServerException):
            client.get_server_metadata()
        key = {"Authorization": "Bearer secret"}
        assert client.infer("tiny", [image], headers=key).as_numpy("features").shape[0] == 1


def test_it_shares_queue_deadline_metrics_and_log(start_server, pixels, tmp_path):
    log = tmp_path / "log.jsonl"
    options = ("--limit", "max_queue_size=4", "--limit", "items=2", "--max-batch-size", "2")
    server = start_server(*options, "--access-log", str(log))
    request = {"inputs": [images_json(np.stack([pixels(1), pixels(2)]))]}

    def ask(_: int) -> int:
        answer = client.post(INFER, json=request)
        if answer.status_code != 200:
            assert sentence(answer)[0] == 429 and answer.headers["retry-after"]
        return answer.status_code

    with httpx.Client(base_url=server.url, timeout=20) as client, ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(ask, range(80)))
    assert set(codes) <= {200, 429} and 200 in codes
    metrics = httpx.get(f"{server.url}/metrics").text
    counted = re.findall(r'requests_total\{code="(\d+)",path="/v2/infer"\} (\S+)', metrics)
    assert {int(code): int(float(n)) for code, n in counted} == {
        code: codes.count(code) for code in set(codes)
    }
    images = re.findall(r'augself_images_total\{model="tiny"\} (\S+)', metrics)
    assert float(images[0]) == 2 * codes.count(200)
    assert server.stop() == 0
    line = next(line for line in map(json.loads, log.read_text().splitlines())
                if line["status"] == 200 and line["path"] == INFER)  # fmt: skip
    assert (line["model"], line["images"]) == ("tiny", 2)


def test_a_deadline_nobody_can_keep_is_504(start_server, pixels):
    server = start_server("--limit", "deadline_seconds=0.000001")
    answer = httpx.post(server.url + INFER, json={"inputs": [images_json(pixels(1)[None])]})
    assert sentence(answer)[0] == 504


def test_a_draining_server_is_not_ready_here_either(start_server):
    server = start_server()
    with server.connect() as upload:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        upload.sendall(head.encode())
        while b"active_requests 1.0" not in httpx.get(f"{server.url}/metrics").content:
            pass
        server.process.terminate()
        until_draining = httpx.get(f"{server.url}/v2/health/ready")
        while until_draining.status_code == 200:
            until_draining = httpx.get(f"{server.url}/v2/health/ready")
        assert sentence(until_draining)[0] == 503
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert sentence(httpx.get(f"{server.url}/v2/models/tiny/ready"))[0] == 503
        upload.sendall(b"123456789")
        assert b" 400 " in upload.recv(4096).split(b"\r\n")[0]
    assert server.process.wait(20) == 0


def test_a_lazy_model_is_ready_and_one_that_cannot_be_loaded_is_not(
    start_server, pixels, tiny_model, tmp_path
):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    server = start_server("--lazy", "--model", str(copy))
    with httpx.Client(base_url=server.url, timeout=20) as client:
        ready = client.get("/v2/models/copy/ready")
        assert ready.json() == {"name": "copy", "ready": True}
        (copy / "onnx/features.onnx").write_bytes(b"no graph")
        request = {"inputs": [images_json(pixels(1)[None])]}
        lost = client.post("/v2/models/copy/infer", json=request)
        assert sentence(lost) == (503, "the model cannot be loaded: try again later")
        assert sentence(client.get("/v2/models/copy/ready"))[0] == 503
        assert client.post(INFER, json=request).status_code == 200


def test_a_name_with_a_slash_and_one_that_heads_have(tiny_model):
    """A Hub id is a name as any other; a model may not be called as another's heads."""
    one = ModelSource("org/tiny@main", tiny_model, "cpu")
    gate = create_app([one])
    transport = httpx.ASGITransport(gate)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            names = ("org/tiny@main", "org%2Ftiny%40main", "org/tiny@main_heads")
            return [await client.get(f"/v2/models/{name}") for name in names]

    found = asyncio.run(ask())
    assert [answer.json()["name"] for answer in found] == [
        "org/tiny@main",
        "org/tiny@main",
        "org/tiny@main_heads",
    ]
    with pytest.raises(UsageError, match="tiny_heads under /v2"):
        create_app([ModelSource(name, tiny_model, "cpu") for name in ("tiny", "tiny_heads")])
