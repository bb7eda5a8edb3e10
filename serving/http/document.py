"""The OpenAPI document: what FastAPI cannot know of routes that read their bodies themselves.

Bodies and their schemas, an example of each, who may ask, and what every error looks like.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.http.problems import Problem
from serving.http.schemas import (
    AugmentationOptions,
    AugmentationRequest,
    EmbeddingFields,
    EmbeddingRequest,
    ErrorAnswer,
    InferRequest,
    SentenceAnswer,
)

_BYTES = {"type": "string", "format": "binary"}
IMAGES, MODELS, TENSORS, OPERATION = "Images", "Models", "Open inference protocol", "Operation"
_PIXEL = (  # a PNG of 2 x 2 pixels
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP4z8DA"
    "8J+BkYHh////DAAe9gT9CzF8CQAAAABJRU5ErkJggg=="
)
_TEXT = """Features of images, and how two views of one picture differ.

`/v1/embeddings` has OpenAI's shape, so that its clients work with this server as their `base_url`;
`/v2` is the open inference protocol. Answers come in the order of the request. An error is
`{"error": {"message", "type", "param", "code"}}`: `code` is for programs and does not change, and
`param` names the item, as `input[3]`; under `/v2` it is `{"error": "message"}`. 429 and 503 say
when to try again, in `Retry-After`."""
_TAGS = {
    IMAGES: "Photographs in, numbers out.",
    MODELS: "What is served.",
    TENSORS: "KServe's v2: tensors in, tensors out, by the same models.",
    OPERATION: "For probes, monitoring and proxies. None of it needs a key.",
}
# Status -> when, and the code, the param and the message of an example.
_ERRORS: dict[int, tuple[str, str, str | None, str]] = {
    400: ("Malformed, or an image that cannot be decoded.", "undecodable_image", "input[1]",
          "the image cannot be decoded"),
    401: ("An API key is required.", "unauthorized", None, "the bearer token is missing or wrong"),
    403: ("A Host or an Origin that is not allowed.", "origin_not_allowed", None,
          "pages of this Origin may not ask: the server's operator names it, --allow-origin"),
    404: ("No such model, or no such path.", "model_not_found", "model",
          "no such model: see GET /v1/models"),
    406: ("Accept names no media type of this route.", "not_acceptable", None,
          "this answer comes as application/json"),
    408: ("A slow body.", "slow_upload", None, "the body took too long to arrive"),
    413: ("Too many bytes, pixels or items.", "too_many_items", "input",
          "65 items, more than the 64 allowed"),
    415: ("A media type, encoding or image format that is not supported.", "unsupported_image",
          "input[0]",
          "images of this kind are not read: send JPEG, PNG, WebP, GIF or BMP"),
    422: ("A field that is missing, wrong or unknown.", "missing", "input", "Field required"),
    429: ("Too many requests or images at once.", "busy", None,
          "64 requests are being answered: try again"),
    500: ("A bug of the server.", "internal_error", None, "the server failed on this request"),
    503: ("A model is being loaded or restarted, or the server shuts down.", "loading", None,
          "the model is being loaded: try again later"),
    504: ("It took longer than `deadline_seconds`.", "deadline", None,
          "the answer took too long: send fewer images"),
}  # fmt: skip
_PLAIN = (401, 403, 404, 422, 503)  # of routes without a body
_OPEN = (403, 503)  # of those without a key
Responses = dict[int | str, dict[str, Any]]


def errors(*only: int, sentence: bool = False) -> Responses:
    """The `responses` of a route: the errors it may answer.

    Args:
        only: these; none: all of them. sentence: in the shape of /v2.
    """
    model = SentenceAnswer if sentence else ErrorAnswer
    shown: Responses = {}
    for status, (when, *_) in _ERRORS.items():
        if not only or status in only:
            shown[status] = {"model": model, "description": when}
    others = {"model": model, "description": "Other errors."}
    return shown | {"4XX": others, "5XX": others}


def plain(sentence: bool = False) -> Responses:
    """Of a route without a body."""
    return errors(*_PLAIN, sentence=sentence)


def open_to_all(sentence: bool = False) -> Responses:
    """Of a route without a body that needs no key."""
    return errors(*_OPEN, sentence=sentence)


def body(record: type[BaseModel], example: Any, **content: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself.

    Args:
        record: its JSON. example: of that.
        content: other media types -> the name of their schema, or `binary`.
    """
    shown: dict[str, Any] = {"application/json": {"schema": _named(record.__name__)}}
    shown["application/json"]["example"] = example
    for kind, name in content.items():
        shown[kind] = {"schema": _BYTES if name == "binary" else _named(name)}
    return {"requestBody": {"required": True, "content": shown}}


def query(record: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose options may stand in the query."""
    fields = _without_null(record)
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in fields.items()
        ]
    }


EMBEDDING = {"input": [_PIXEL], "encoding_format": "float"}
EMBEDDINGS = {
    "object": "list",
    "model": "embedded",
    "data": [{"object": "embedding", "index": 0, "embedding": [1.0916, 0.9723, 0.2725]}],
    "usage": {"prompt_tokens": 0, "total_tokens": 0},
}
PAIR = {"pairs": [{"a": _PIXEL, "b": _PIXEL}]}
TENSOR = {
    "inputs": [
        {
            "name": "pixel_values",
            "datatype": "UINT8",
            "shape": [1, 64, 64, 3],
            "parameters": {"binary_data_size": 12288},
        }
    ]
}


def describe(app: FastAPI, keyed: bool) -> None:
    """Let an application give the whole document.

    Args:
        keyed: whether a key is wanted.
    """
    app.description, app.openapi_tags = (
        _TEXT,
        [{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    given = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(given(), keyed)
        return given()

    app.openapi = whole  # type: ignore[method-assign]


def _complete(document: dict[str, Any], keyed: bool) -> None:
    requests: Any = [
        (m, "validation") for m in (EmbeddingRequest, AugmentationRequest, InferRequest)
    ]
    _, defined = models_json_schema(requests, ref_template="#/components/schemas/{model}")
    files = {"type": "array", "items": _BYTES, "minItems": 1, "description": "Repeatable."}
    forms = {
        "EmbeddingForm": _form(EmbeddingFields, image=files),
        "AugmentationForm": _form(AugmentationOptions, image_a=_BYTES, image_b=_BYTES),
    }
    parts = document.setdefault("components", {})
    parts["schemas"] = dict(sorted({**parts["schemas"], **defined["$defs"], **forms}.items()))
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the server's."},
        "password": {
            "type": "http",
            "scheme": "basic",
            "description": "Any name, a token as password.",
        },
    }
    security: list[dict[str, list[str]]] = [{"bearer": []}, {"password": []}]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            answers = operation["responses"]
            if "401" in answers:
                operation["security"] = security if keyed else [*security, {}]
            # Not given to FastAPI, which leaves out what is null.
            for status, (_, code, param, message) in _ERRORS.items():
                if str(status) in answers:
                    problem = Problem(status, code, message, param)
                    error: Any = problem.sentence() if path.startswith("/v2") else problem.body()
                    shown = answers[str(status)]["content"]["application/json"]
                    shown["example"] = {"error": error}


def _form(record: type[BaseModel], **files: dict[str, Any]) -> dict[str, Any]:
    fields = {"type": "object", "properties": {**files, **_without_null(record)}}
    return {**fields, "required": list(files), "additionalProperties": False}


def _without_null(record: type[BaseModel]) -> dict[str, Any]:
    """Fields of a query or a form, where there is no null: they are left out."""
    fields = record.model_json_schema()["properties"]
    return {
        name: {**field["anyOf"][0], "description": field["description"]}
        for name, field in fields.items()
    }


def _named(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}
