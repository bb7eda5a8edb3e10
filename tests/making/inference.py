"""Requests of the open inference protocol, and its errors. pytest has this folder on its path."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np

from serving.http.tensors import HEADER

SECRETS = ("0x", "Error", "Exception", "Traceback", "object at", ".py")
INFER, HEADS = "/v2/models/tiny/infer", "/v2/models/tiny_heads/infer"


def images_json(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    """The input of a request that carries its numbers in the JSON."""
    given = {"name": "pixel_values", "datatype": "UINT8", "shape": list(images.shape)}
    return given | {"data": images.ravel().tolist()} | changes


def packed(head: dict[str, Any], *parts: bytes) -> dict[str, Any]:
    """A body with binary data behind its JSON, and its headers."""
    text = json.dumps(head).encode()
    return {"content": b"".join([text, *parts]), "headers": {HEADER: str(len(text))}}


def sentence(response: httpx.Response) -> tuple[int, str]:
    """(status, message) of an error, which must tell nothing of our inside."""
    assert set(response.json()) == {"error"}
    message = response.json()["error"]
    assert isinstance(message, str) and not any(secret in message for secret in SECRETS), message
    return response.status_code, message
