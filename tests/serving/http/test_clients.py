"""Real clients, as their users call them: the openai package, curl. gradio_client: see demo/."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import openai
import pytest

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_openai_with_its_default_base64(client, pixels, encoded, expected):
    """Nothing said of the encoding: the package asks for base64 and gives floats."""
    images = [data_url(encoded(pixels(number))) for number in range(3)]
    answer = client.embeddings.create(model="tiny", input=images)
    assert [item.index for item in answer.data] == [0, 1, 2]
    found = np.array([item.embedding for item in answer.data], np.float32)
    wanted = np.stack([expected(pixels(number)) for number in range(3)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert answer.model == "tiny" and answer.usage.total_tokens == 0
    floats = client.embeddings.create(model="tiny", input=images, encoding_format="float")
    np.testing.assert_array_equal(np.array(floats.data[0].embedding, np.float32), found[0])


def test_openai_lists_the_models(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.model_extra["dimension"] > 0


def test_openai_retrieves_a_model(client):
    model = client.models.retrieve("tiny")
    assert model == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/nobody")


def test_openai_asks_for_dimensions(client, pixels, encoded):
    image = data_url(encoded(pixels(1)))
    width = client.models.retrieve("tiny").model_extra["dimension"]
    answer = client.embeddings.create(model="tiny", input=image, dimensions=width, user="u")
    assert len(answer.data[0].embedding) == width
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="tiny", input=image, dimensions=64)
    assert refused.value.param == "dimensions"


def test_openai_sends_null(client, pixels, encoded):
    null = {"encoding_format": None, "dimensions": None, "user": None}
    answer = client.embeddings.create(
        model="tiny", input=data_url(encoded(pixels(1))), extra_body=null
    )
    assert isinstance(answer.data[0].embedding[0], float)


def test_openai_understands_the_errors(client, pixels, encoded):
    good = data_url(encoded(pixels(1)))
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model="tiny", input=[good, "data:image/png;base64,AAAA"])
    assert (bad.value.param, bad.value.code) == ("input[1]", "undecodable_image")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.embeddings.create(model="nobody", input=good)
    with pytest.raises(openai.APIStatusError) as large:
        client.embeddings.create(model="tiny", input=[good] * 9)
    assert (large.value.status_code, large.value.code) == (413, "too_many_items")


def test_openai_with_a_key(start_server, pixels, encoded):
    server = start_server("--token", "secret")
    address = {"base_url": f"{server.url}/v1", "max_retries": 0}
    wrong = openai.OpenAI(api_key="wrong", **address)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with openai.OpenAI(api_key="secret", **address) as client:
        image = data_url(encoded(pixels(1)))
        assert client.embeddings.create(model="tiny", input=image).data[0].embedding


def curl(*arguments: str) -> dict:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, timeout=30).stdout)


@pytest.fixture
def files(tmp_path, pixels, encoded) -> list[Path]:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(pixels(number)))
    return paths


@needs_curl
def test_curl_as_the_documentation_shows_it(server, files, pixels, expected):
    a, b = files
    wanted = [expected(pixels(number)) for number in range(2)]
    url = f"{server.url}/v1/embeddings"
    raw = curl(url, "-H", "Content-Type: image/jpeg", "--data-binary", f"@{a}")
    form = curl(url, "-F", f"image=@{a}", "-F", f"image=@{b}", "-F", "model=tiny")
    for answer, rows in ((raw, wanted[:1]), (form, wanted)):
        found = [item["embedding"] for item in answer["data"]]
        np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)
    pair = curl(f"{server.url}/v1/augmentations", "-F", f"image_a=@{a}", "-F", f"image_b=@{b}")
    assert set(pair["data"][0]["differences"]) == {"crop", "color", "flip"}


@needs_curl
def test_curl_is_told_the_field_and_reads_the_query(server, files):
    url = f"{server.url}/v1/embeddings"
    assert "image" in curl(url, "-F", f"file=@{files[0]}")["error"]["message"]
    unit = curl(f"{url}?normalize=true", "-F", f"image=@{files[0]}")["data"][0]["embedding"]
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)


@needs_curl
def test_curl_gets_the_answer_to_a_body_that_is_too_large(server, tmp_path):
    """It asks first (Expect: 100-continue), and is told no before it sends."""
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(8_000_000))
    answer = curl(f"{server.url}/v1/embeddings", "-F", f"image=@{large}")
    assert answer["error"]["code"] == "body_too_large"
