"""The OpenAPI document, and a client that openapi-python-client makes of it."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import subprocess
import sys
from types import ModuleType

import httpx
import numpy as np
import pytest


@pytest.fixture(scope="module")
def document(server) -> dict:
    return httpx.get(f"{server.url}/openapi.json").json()


def operations(document: dict) -> list[tuple[str, dict]]:
    methods = ("get", "post", "put", "delete", "head", "options", "patch")
    return [
        (f"{method} {path}", route[method])
        for path, route in document["paths"].items()
        for method in methods
        if method in route
    ]


def test_every_operation_is_described(document):
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    found = operations(document)
    assert len(found) == 15
    for name, operation in found:
        (tag,) = operation["tags"]
        assert tags[tag] and operation["description"], name
        errors = {s: r for s, r in operation["responses"].items() if s.isdecimal() and s >= "400"}
        assert {"403", "503"} <= set(errors), name
        for status, answer in errors.items():
            content = answer["content"]["application/json"]
            shape = "SentenceAnswer" if " /v2" in name else "ErrorAnswer"
            assert content["schema"] == {"$ref": f"#/components/schemas/{shape}"}
            example = content["example"]["error"]
            if shape == "ErrorAnswer":
                assert set(example) == {"message", "type", "param", "code"}, (name, status)
            else:
                assert isinstance(example, str)
    names = [operation["operationId"] for _, operation in found]
    assert len(set(names)) == len(names) and {"embeddings", "augmentations", "v2_infer"} <= set(
        names
    )


def test_every_reference_leads_somewhere(document):
    text = json.dumps(document)
    for name in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    assert text.count('"$ref": "') == len(re.findall(r'"\$ref": "#/components/schemas/\w+"', text))


def test_who_may_ask(document, start_server):
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    kept = {n: o.get("security") for n, o in operations(document)}
    open_ones = {name for name, security in kept.items() if security is None}
    probes = ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
    assert open_ones == {f"get {path}" for path in (*probes, "/version", "/metrics")}
    keys = [{"bearer": []}, {"password": []}]
    assert kept["post /v1/embeddings"] == [*keys, {}]  # it has no keys: none is wanted
    server = start_server("--token", "secret")
    keyed = httpx.get(f"{server.url}/openapi.json").json()
    assert dict(operations(keyed))["post /v1/embeddings"]["security"] == keys
    for name, operation in operations(keyed):
        method, path = name.split()
        answer = httpx.request(method, server.url + path.format(id="tiny", name="tiny"))
        assert (answer.status_code == 401) == ("security" in operation), name


def test_the_examples_are_answered(document, client):
    for path in ("/v1/embeddings", "/v1/augmentations"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert client.post(path, json=body["example"]).status_code == 200
    answer = client.post("/v1/embeddings", json={"input": body["example"]["pairs"][0]["a"]}).json()
    shown = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]
    example = shown["application/json"]["example"]
    assert set(example) == set(answer) and set(example["data"][0]) == set(answer["data"][0])


@pytest.fixture(scope="module")
def generated(server, tmp_path_factory) -> ModuleType:
    pytest.importorskip("openapi_python_client", reason="pip install 'augself-hub[dev]'")
    folder = tmp_path_factory.mktemp("client")
    (folder / "config.yml").write_text("post_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--url", f"{server.url}/openapi.json", "--config", str(folder / "config.yml")]
    command += ["--output-path", str(folder / "generated_augself")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    warned = set(re.findall(r"(?:WARNING|ERROR) parsing (\S+ \S+)", done.stdout))
    assert warned <= {"POST /v1/embeddings"}  # a body of image/* is beyond it
    sys.path.insert(0, str(folder))
    yield importlib.import_module("generated_augself")
    sys.path.remove(str(folder))


def api(generated: ModuleType, name: str) -> ModuleType:
    return importlib.import_module(f"{generated.__name__}.api.{name}")


@pytest.fixture
def caller(generated, server):
    with generated.Client(base_url=server.url) as caller:
        yield caller


def test_a_generated_client_gets_embeddings(generated, caller, pixels, encoded, expected):
    models = importlib.import_module(f"{generated.__name__}.models")
    types = importlib.import_module(f"{generated.__name__}.types")
    data = [encoded(pixels(n)) for n in range(2)]
    urls = ["data:image/png;base64," + base64.b64encode(one).decode() for one in data]
    files = [types.File(io.BytesIO(one), f"{n}.png", "image/png") for n, one in enumerate(data)]
    wanted = np.stack([expected(pixels(n)) for n in range(2)])
    for body in (models.EmbeddingRequest(input_=urls), models.EmbeddingForm(image=files)):
        answer = api(generated, "images.embeddings").sync(client=caller, body=body)
        found = np.array([item.embedding for item in answer.data], np.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    body = models.EmbeddingRequest(input_=urls[:1])
    unit = api(generated, "images.embeddings").sync(client=caller, body=body, normalize=True)
    assert np.linalg.norm(unit.data[0].embedding) == pytest.approx(1, abs=1e-6)
    pair = models.AugmentationRequest(pairs=[models.Pair(*urls)])
    differences = api(generated, "images.augmentations").sync(client=caller, body=pair).data[0]
    color = differences.differences.additional_properties["color"]
    assert [value.name for value in color] == ["brightness", "contrast", "saturation", "hue"]


def test_a_generated_client_understands_models_and_errors(generated, caller):
    models = importlib.import_module(f"{generated.__name__}.models")
    (tiny,) = api(generated, "models.models").sync(client=caller).data
    assert api(generated, "models.model").sync("tiny", client=caller) == tiny
    assert api(generated, "operation.ready").sync(client=caller).additional_properties
    graph = api(generated, "open_inference_protocol.v2_metadata").sync("tiny", client=caller)
    assert graph.outputs[0].shape == [-1, tiny.dimension]
    missing = api(generated, "models.model").sync_detailed("org/nobody", client=caller)
    assert (missing.status_code, missing.parsed.error.code) == (404, "model_not_found")
    bad = models.EmbeddingRequest(input_=["nothing"])
    refused = api(generated, "images.embeddings").sync_detailed(client=caller, body=bad)
    assert (refused.status_code, refused.parsed.error.param) == (400, "input[0]")


def test_a_generated_client_with_a_key(generated, start_server):
    server = start_server("--token", "secret")
    models = api(generated, "models.models")
    with generated.AuthenticatedClient(base_url=server.url, token="wrong") as wrong:
        assert models.sync(client=wrong).error.code == "unauthorized"
    with generated.AuthenticatedClient(base_url=server.url, token="secret") as right:
        assert models.sync(client=right).data[0].id == "tiny"
