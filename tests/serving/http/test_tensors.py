"""Tensors that are not what a graph takes: 400 or 413 with a reason, and the server unharmed."""

from __future__ import annotations

import json
import re

import httpx
import numpy as np
import pytest
from inference import HEADS, INFER, images_json, packed, sentence
from pydantic import ValidationError

from serving.http.schemas import InferRequest
from serving.http.tensors import HEADER, JSON_BYTES

pytestmark = pytest.mark.usefixtures("infers_after")


ONE = np.zeros((1, 32, 32, 3), np.uint8)
SIZE = {"binary_data_size": ONE.nbytes}


def without(record, *names):
    return {key: value for key, value in record.items() if key not in names}


BINARY = without(images_json(ONE, parameters=SIZE), "data")
BAD_JSON = {
    "nothing": (b"", "is not JSON"),
    "half of it": (b'{"inputs": [', "is not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not JSON"),
    "another encoding": ('{"inputs": []}'.encode("utf-16"), "is not JSON"),
    "bad UTF-8": (b'{"inputs": "\xff"}', "is not JSON"),
    "NaN": (b'{"inputs": NaN}', "is not JSON"),
    "too deep": (b"[" * 50_000, "is not JSON"),
    "an endless number": (b'{"inputs": ' + b"9" * 10_000 + b"}", "is not JSON"),
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
def test_features_that_are_not_finite(client, value):
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


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_features_that_the_heads_can_make_nothing_of(client, value):
    """They are float32, and what is multiplied with them is not: no bug of ours."""
    width = client.get("/v2/models/tiny_heads").json()["inputs"][0]["shape"][1]
    data = [value if place % 2 else -value for place in range(width)]
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1, width], "data": data}
        for name in ("features_a", "features_b")
    ]
    status, said = sentence(client.post(HEADS, json={"inputs": inputs}))
    assert status == 400 and "so large" in said
    assert client.get("/v2/models/tiny_heads/ready").status_code == 200


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_more_tensors_than_any_graph_has(field):
    """Validation is one step, during which nobody is answered: it ends at the 65th."""
    request = {"inputs": [images_json(ONE)], "outputs": [{"name": "features"}]}
    for count, most in ((64, None), (65, 64), (25_000, 64)):
        request[field] = [request[field][0] | {"data": []}] * count
        if field == "outputs":
            request[field] = [{"name": "features"}] * count
        if most is None:
            InferRequest.model_validate(request)
            continue
        with pytest.raises(ValidationError, match=f"at most {most} items") as caught:
            InferRequest.model_validate(request)
        assert caught.value.error_count() == 1


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
        for count, status in ((50_000, 400), (340_000, 413)):
            listed = b'{"inputs": [' + b"[]," * count + b"[]]}"
            answer = client.post(INFER, content=listed)
            assert len(listed) < JSON_BYTES and sentence(answer)[0] == status
    assert server.megabytes("VmHWM") < before + 150


def test_compressed_bodies_are_refused(client):
    answer = client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert sentence(answer)[0] == 415
