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

from augself_hub.errors import UsageError
from serving.api import create_app
from serving.models import Source
from serving.tensors import HEADER, JSON_BYTES

triton = pytest.importorskip("tritonclient.http", reason="pip install 'augself-hub[dev]'")
SECRETS = ("0x", "Error", "Exception", "Traceback", "object at", ".py")
INFER, HEADS = "/v2/models/tiny/infer", "/v2/models/tiny_heads/infer"


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


def images_json(images, **changes):
    """The input of a request that carries its numbers in the JSON."""
    given = {"name": "pixel_values", "datatype": "UINT8", "shape": list(images.shape)}
    return given | {"data": images.ravel().tolist()} | changes


def packed(head, *parts):
    """A body with binary data behind its JSON, and its headers."""
    text = json.dumps(head).encode()
    return {"content": b"".join([text, *parts]), "headers": {HEADER: str(len(text))}}


def sentence(response):
    """(status, message) of an error, which must tell nothing of our inside."""
    assert set(response.json()) == {"error"}
    message = response.json()["error"]
    assert isinstance(message, str) and not any(secret in message for secret in SECRETS), message
    return response.status_code, message


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
    request = json.dumps({"id": "\ud800\u2028é", "inputs": [images_json(pixels(1)[None])]})
    assert client.post(INFER, content=request).json()["id"] == "\ud800\u2028é"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/models/tiny%5Fheads", 200),
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
    if status >= 400:
        sentence(answer)
    assert status != 405 or answer.headers["allow"]


ONE = np.zeros((1, 32, 32, 3), np.uint8)
SIZE = {"binary_data_size": ONE.nbytes}


def without(record, *names):
    return {key: value for key, value in record.items() if key not in names}


BINARY = without(images_json(ONE, parameters=SIZE), "data")
BAD_JSON = {
    "nothing": (b"", "begin with JSON"),
    "half of it": (b'{"inputs": [', "begin with JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "begin with JSON"),
    "another encoding": ('{"inputs": []}'.encode("utf-16"), "begin with JSON"),
    "bad UTF-8": (b'{"inputs": "\xff"}', "begin with JSON"),
    "NaN": (b'{"inputs": NaN}', "begin with JSON"),
    "too deep": (b"[" * 100_000, "begin with JSON"),
    "an endless number": (b'{"inputs": ' + b"9" * 10_000 + b"}", "begin with JSON"),
    "a list": (b"[]", "must be an object"),
    "no inputs": (b"{}", "inputs: Field required"),
    "no list": (b'{"inputs": {}}', "inputs: "),
    "numbers for inputs": (b'{"inputs": [' + b"1," * 500_000 + b"1]}", r"inputs\[0\]: "),
    "a number for an id": (b'{"id": 1, "inputs": []}', "id: "),
    "an empty list": (b'{"inputs": []}', "the inputs must be pixel_values, each once"),
}
BAD_INPUTS = {
    "another name": (images_json(ONE, name="images"), "the inputs must be pixel_values"),
    "another datatype": (images_json(ONE, datatype="FP32"), "of pixel_values is UINT8"),
    "no datatype known": (images_json(ONE, datatype="BF16"), "of pixel_values is UINT8"),
    "another shape": (images_json(ONE, shape=[1, 3, 32, 32]), r"is \[N, 32, 32, 3\]"),
    "another rank": (images_json(ONE, shape=[3072]), r"is \[N, 32, 32, 3\]"),
    "no rank": (images_json(ONE, shape=[]), r"is \[N, 32, 32, 3\]"),
    "no rows": (images_json(ONE, shape=[0, 32, 32, 3], data=[]), "N at least 1"),
    "rows below zero": (images_json(ONE, shape=[-1, 32, 32, 3]), "N at least 1"),
    "a fraction of a row": (images_json(ONE, shape=[1.0, 32, 32, 3]), r"inputs\[0\].shape\[0\]"),
    "a shape of 2^62": (images_json(ONE, shape=[2**62]), r"is \[N, 32, 32, 3\]"),
    "too few numbers": (images_json(ONE, data=[0] * 3071), "3072 numbers"),
    "too many numbers": (images_json(ONE, data=[0] * 3073), "3072 numbers"),
    "nested otherwise": (images_json(ONE, data=[[0] * 1024] * 3), "3072 numbers"),
    "nested in part": (images_json(ONE, data=[[0] * 3072]), "3072 numbers"),
    "ragged": (images_json(ONE, data=[[0] * 3071, [0]]), "3072 numbers"),
    "above 255": (images_json(ONE, data=[256] * 3072), "3072 numbers"),
    "below 0": (images_json(ONE, data=[-1] * 3072), "3072 numbers"),
    "fractions": (images_json(ONE, data=[0.5] * 3072), "3072 numbers"),
    "truths": (images_json(ONE, data=[True] * 3072), "3072 numbers"),
    "texts": (images_json(ONE, data=["0"] * 3072), "3072 numbers"),
    "nulls": (images_json(ONE, data=[None] * 3072), "3072 numbers"),
    "objects": (images_json(ONE, data=[{}] * 3072), "3072 numbers"),
    "no data": (without(images_json(ONE), "data"), "either data or binary_data_size"),
    "shared memory": (
        without(images_json(ONE, parameters={"shared_memory_region": "r"}), "data"),
        "only parameter known",
    ),
    "a size of text": (images_json(ONE, parameters={"binary_data_size": "1"}), "of type int"),
}  # fmt: skip
BAD_BINARY = {
    "a body too short": ((BINARY, bytes(3071)), "binary_data_size is 3072, but 3071 bytes follow"),
    "no body": ((BINARY,), "but 0 bytes follow"),
    "a body too long": ((BINARY, bytes(3073)), "1 bytes follow that no"),
    "bytes nobody names": ((images_json(ONE), bytes(5)), "5 bytes follow that no"),
    "another size than the shape's": (
        (BINARY | {"parameters": {"binary_data_size": 3071}}, bytes(3071)), "shape has 3072",
    ),
    "a size below zero": (
        (BINARY | {"parameters": {"binary_data_size": -1}}, bytes(3072)), "is -1, but 3072",
    ),
    "a size of 2^62": (
        (BINARY | {"parameters": {"binary_data_size": 2**62}}, bytes(3072)), "but 3072 bytes",
    ),
    "both": ((images_json(ONE, parameters=SIZE), bytes(3072)), "either data or"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def unharmed(server, client, pixels, expected):
    """After each request, good or bad, a good one has its answer."""
    yield
    good = client.post(INFER, json={"inputs": [images_json(pixels(9)[None])]})
    features = np.array(good.json()["outputs"][0]["data"], np.float32)
    np.testing.assert_allclose(features, expected(pixels(9)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_request(server, client, name):
    body, message = BAD_JSON[name]
    server.forget_peak()
    before = server.megabytes()
    status, said = sentence(client.post(INFER, content=body))
    assert status == 400 and re.search(message, said)
    assert server.megabytes("VmHWM") < before + 100


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs_that_are_not_the_graphs(client, name):
    given, message = BAD_INPUTS[name]
    status, said = sentence(client.post(INFER, json={"inputs": [given]}))
    assert status == 400 and re.search(message, said), said


@pytest.mark.parametrize("name", BAD_BINARY)
def test_binary_data_that_is_not_what_the_json_says(client, name):
    (given, *parts), message = BAD_BINARY[name]
    status, said = sentence(client.post(INFER, **packed({"inputs": [given]}, *parts)))
    assert status == 400 and re.search(message, said), said


@pytest.mark.parametrize("length", ["-1", "1e3", "", "x", "9" * 30, "100000"])
def test_a_header_length_that_cannot_be(client, length):
    body = packed({"inputs": [BINARY]}, ONE.tobytes())["content"]
    answer = client.post(INFER, content=body, headers={HEADER: length})
    assert sentence(answer) == (
        400,
        f"{HEADER} must be the bytes of JSON at the beginning of the body",
    )


def test_a_header_length_that_cuts_the_json(client):
    body = packed({"inputs": [BINARY]}, ONE.tobytes())["content"]
    assert sentence(client.post(INFER, content=body, headers={HEADER: "20"}))[0] == 400
    assert sentence(client.post(INFER, content=body))[0] == 400  # and none at all


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"name": "crop"}], "the outputs are features, each at most once"),
        ([{"name": "features"}] * 2, "each at most once"),
        ([{"name": "features", "parameters": {"binary_data": 1}}], "of type bool"),
        ([{"name": "features", "parameters": {"classification": 3}}], "only parameter known"),
        ([{}], "Field required"),
    ],
)
def test_outputs_that_cannot_be_had(client, outputs, message):
    request = {"inputs": [images_json(ONE)], "outputs": outputs}
    status, said = sentence(client.post(INFER, json=request))
    assert status == 400 and message in said and "outputs[" in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(client, raw, value):
    width = client.get("/v2/models/tiny_heads").json()["inputs"][0]["shape"][1]
    bad = np.full((1, width), value, np.float32)
    sides = {"features_a": np.zeros_like(bad), "features_b": bad}
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1, width],
         "parameters": {"binary_data_size": rows.nbytes}} for name, rows in sides.items()
    ]  # fmt: skip
    parts = [rows.tobytes() for rows in sides.values()]
    answer = client.post(HEADS, **packed({"inputs": inputs}, *parts))
    assert sentence(answer) == (400, "inputs[1]: there are values that are not finite")


@pytest.mark.parametrize("number", ["1e999", "1e39", "9" * 400])
def test_numbers_beyond_float32(client, number):
    width = client.get("/v2/models/tiny_heads").json()["inputs"][0]["shape"][1]
    good = {"name": "features_a", "datatype": "FP32", "shape": [1, width], "data": [0.5] * width}
    request = json.dumps({"inputs": [good, good | {"name": "features_b", "data": ["x"] * width}]})
    answer = client.post(HEADS, content=request.replace('"x"', number))
    assert sentence(answer)[0] == 400


def test_a_pair_has_as_many_rows_on_both_sides(client):
    width = client.get("/v2/models/tiny_heads").json()["inputs"][0]["shape"][1]
    sides = [
        {"name": name, "datatype": "FP32", "shape": [n, width], "data": [0] * (n * width)}
        for name, n in (("features_a", 1), ("features_b", 2))
    ]
    assert "same number of rows" in sentence(client.post(HEADS, json={"inputs": sides}))[1]
    assert "each once" in sentence(client.post(HEADS, json={"inputs": sides[:1]}))[1]


def test_too_much(client, server):
    """More rows than items, more JSON than is read, more body than the gate lets in."""
    nine = np.zeros((9, 32, 32, 3), np.uint8)
    answer = client.post(INFER, json={"inputs": [images_json(nine)]})
    assert sentence(answer) == (413, "inputs[0]: 9 rows, more than the 8 allowed")
    body = client.post(INFER, content=bytes(5_000_000))
    assert sentence(body) == (413, "the body has more than the 4000000 bytes allowed")


def test_json_is_bounded_because_lists_are_large(start_server):
    """Its own limit stands below the body's, and the most it lets in takes little memory."""
    server = start_server()
    server.forget_peak()
    before = server.megabytes()
    with httpx.Client(base_url=server.url, timeout=20) as client:
        answer = client.post(INFER, content=bytes(JSON_BYTES + 1))
        assert sentence(answer)[0] == 413 and "as binary data" in sentence(answer)[1]
        listed = b'{"inputs": [' + b"[]," * 1_300_000 + b"[]]}"
        assert len(listed) < JSON_BYTES and sentence(client.post(INFER, content=listed))[0] == 400
    assert server.megabytes("VmHWM") < before + 150


def test_compressed_bodies_are_refused(client):
    answer = client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert sentence(answer)[0] == 415


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
    options = ("--limit", "waiting_images=4", "--limit", "items=2", "--max-batch", "2")
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
        upload.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" % INFER.encode())
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
        (copy / "onnx/model.onnx").write_bytes(b"no graph")
        request = {"inputs": [images_json(pixels(1)[None])]}
        lost = client.post("/v2/models/copy/infer", json=request)
        assert sentence(lost) == (503, "the model cannot be loaded: try again later")
        assert sentence(client.get("/v2/models/copy/ready"))[0] == 503
        assert client.post(INFER, json=request).status_code == 200


def test_a_name_with_a_slash_and_one_that_heads_have(tiny_model):
    """A Hub id is a name as any other; a model may not be called as another's heads."""
    one = Source("org/tiny@main", tiny_model, "cpu")
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
        create_app([Source(name, tiny_model, "cpu") for name in ("tiny", "tiny_heads")])
