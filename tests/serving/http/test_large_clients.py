"""Clients too large for the development extra: pip install langchain-openai litellm."""

from __future__ import annotations

import base64
import os

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def images(pixels, encoded, expected):
    """Two images as data: URLs, and their features."""
    urls = [
        "data:image/png;base64," + base64.b64encode(encoded(pixels(n))).decode() for n in range(2)
    ]
    return urls, np.stack([expected(pixels(n)) for n in range(2)])


def test_langchain(server, images):
    openai = pytest.importorskip("langchain_openai")
    urls, wanted = images
    embeddings = openai.OpenAIEmbeddings(
        model="tiny", base_url=f"{server.url}/v1", api_key="any", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(embeddings.embed_documents(urls), wanted, rtol=1e-4, atol=1e-5)
    width = wanted.shape[1]
    same = openai.OpenAIEmbeddings(
        model="tiny", base_url=f"{server.url}/v1", api_key="any", check_embedding_ctx_length=False,
        dimensions=width,
    )  # fmt: skip
    np.testing.assert_allclose(same.embed_query(urls[0]), wanted[0], rtol=1e-4, atol=1e-5)


def test_litellm(server, images, monkeypatch):
    monkeypatch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")  # asks nobody else
    litellm = pytest.importorskip("litellm")
    urls, wanted = images
    given = {"model": "openai/tiny", "api_base": f"{server.url}/v1", "api_key": "any"}
    answer = litellm.embedding(input=urls, **given)
    found = np.array([item["embedding"] for item in answer.data])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    answer = litellm.embedding(input=urls, encoding_format="base64", **given)
    rows = [np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in answer.data]
    np.testing.assert_allclose(np.stack(rows), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(litellm.BadRequestError, match="not cut"):
        litellm.embedding(input=urls, dimensions=64, allowed_openai_params=["dimensions"], **given)
