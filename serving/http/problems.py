"""Errors as HTTP answers: {"error": {"message", "type", "param", "code"}}, OpenAI's shape.

Under /v2 they are {"error": "message"}, as the open inference protocol has it. No message carries a
path, an address or a class name: they are all written here and in the routes, or, for images and
models, where the error of errors.py and inference/errors.py was raised.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from augself_hub.errors import (
    EmptyImage,
    ImageError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
)
from serving.inference.errors import (
    DecodersStuck,
    Draining,
    ModelNotLoaded,
    QueueFull,
    Refused,
    UnknownModel,
    WorkerLost,
)

RETRY_SECONDS = 1
_CLIENT_LEFT = 499  # nobody reads it; it is what the metrics count
_RETRY = {429, 503}
_STATUS: dict[type[ImageError | Refused], int] = {
    EmptyImage: 400,
    UndecodableImage: 400,
    UnsupportedImage: 415,
    TooManyPixels: 413,
    UnknownModel: 404,
    QueueFull: 429,
    Draining: 503,
    WorkerLost: 503,
    DecodersStuck: 503,
    ModelNotLoaded: 503,
}


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status code.
        code: stable, for programs. message: one line, for people.
        param: the item it is about, e.g. `input[3]`.
        headers: added to the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        if status in _RETRY:
            self.headers["Retry-After"] = str(RETRY_SECONDS)

    def response(self, path: str) -> JSONResponse:
        """The answer to a request for this path."""
        error = self.sentence() if path.startswith("/v2") else self.body()
        return JSONResponse({"error": error}, self.status, self.headers)

    def sentence(self) -> str:
        return self.message if self.param is None else f"{self.param}: {self.message}"

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def body_too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body has more than the {limit} bytes allowed")


def no_room_for_bodies() -> Problem:
    return Problem(
        429, "busy", "bodies and images of other requests fill the memory allowed: try again"
    )


def problem_of(error: Exception) -> Problem:
    """What an error from below the routes answers."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImageError | Refused):
        param = error.param if isinstance(error, ImageError) else None
        param = "model" if isinstance(error, UnknownModel) else param
        return Problem(_STATUS[type(error)], error.code, str(error), param)
    if isinstance(error, ClientDisconnect):
        return Problem(_CLIENT_LEFT, "client_left", "the client left")
    if isinstance(error, HTTPException):  # what the framework refuses by itself
        codes = {404: ("not_found", "no such path"), 405: ("method_not_allowed", "not this method")}
        code, message = codes.get(error.status_code, ("refused", "the request cannot be answered"))
        return Problem(error.status_code, code, message, headers=dict(error.headers or {}))
    return Problem(500, "internal_error", "the server failed on this request")


ANSWERED = (Problem, ImageError, Refused, ClientDisconnect, HTTPException, Exception)
