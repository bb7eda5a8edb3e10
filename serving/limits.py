"""Limits, and the gate outside everything that enforces those on bodies and slots.

The gate is plain ASGI around the whole application, so that whatever is mounted in it, the demo's
upload route too, stands behind the same limits. What it refuses it answers itself, whatever the
application makes of its interrupted read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from augself_hub.errors import UsageError
from augself_hub.preprocess import MAX_PIXELS
from serving.metrics import Metrics
from serving.problems import Problem

_WITHOUT_SLOT = ("GET", "HEAD", "OPTIONS")
_COUNTED = ("/v1/embeddings", "/v1/augmentations", "/v1/models")
_READY = "/health/ready"
_LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Args:
        body_bytes: of one request's body.
        items: images (or pairs) in one request.
        pixels: width times height of one image, read off its header.
        waiting_images: in the queue of one model; beyond it requests get 429.
        slots: requests with a body worked on at once; beyond it requests get 429.
        upload_seconds: for the whole body of a request (408).
        deadline_seconds: from the whole body to the answer (504); also the time to drain.
    """

    body_bytes: int = 32 * 2**20
    items: int = 64
    pixels: int = MAX_PIXELS
    waiting_images: int = 256
    slots: int = 64
    upload_seconds: float = 30.0
    deadline_seconds: float = 30.0

    def __post_init__(self) -> None:
        """A request within one limit must not be impossible under another."""
        for name, value in vars(self).items():
            if not value > 0:  # nan too
                raise UsageError(f"the limit {name} is {value}: it must be more than 0")
        if self.waiting_images < 2 * self.items:
            raise UsageError(
                f"waiting_images is {self.waiting_images}, but one request may bring "
                f"{self.items} pairs: allow at least {2 * self.items}"
            )

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Limits:
        """`NAME=VALUE` texts -> limits, the defaults where nothing is said.

        Raises:
            UsageError: an unknown name, no number, or limits that contradict each other.
        """
        types: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        values = {}
        for name, _, value in (setting.partition("=") for setting in settings):
            if name not in types:
                raise UsageError(f"unknown limit {name!r}: use one of {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError:
                raise UsageError(f"the limit {name} is {value!r}: give a number") from None
        return cls(**values)


class Gate:
    """ASGI middleware: slots, bytes and time of uploads, draining, request counts.

    Attributes:
        active: requests that hold a slot now. draining: new ones, and /health/ready, get 503.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str | None = None
    ) -> None:
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token
        self.active = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.limits, receive, send)
        started = time.monotonic()
        try:
            await self._admit(scope, exchange)
        finally:
            path = scope["path"] if scope["path"] in _COUNTED else "other"
            self.metrics.requests.labels(path, exchange.status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - started)

    async def _admit(self, scope: Scope, exchange: _Exchange) -> None:
        problem = self._refusal(scope)
        if problem is not None:
            await exchange.refuse(scope, problem)
            return
        slots = int(scope["method"] not in _WITHOUT_SLOT)
        self.active += slots
        try:
            await exchange.run(self.app, scope)
        finally:
            self.active -= slots

    def _refusal(self, scope: Scope) -> Problem | None:
        """What is known before the body is read."""
        headers = Headers(scope=scope)
        if scope["path"].startswith("/v1") and not self._authorized(headers):
            return _unauthorized()
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return Problem(400, "bad_length", "Content-Length is not a number")
        if int(length[:20]) > self.limits.body_bytes:
            return _too_large(self.limits)
        if self.draining and (scope["path"] == _READY or scope["method"] not in _WITHOUT_SLOT):
            return Problem(503, "draining", "the server is shutting down: try again later")
        if scope["method"] in _WITHOUT_SLOT:
            return None
        if self.active >= self.limits.slots:
            return Problem(429, "busy", f"{self.active} requests are being answered: try again")
        return None

    def _authorized(self, headers: Headers) -> bool:
        """Digests are compared, so that the time tells neither the token nor its length."""
        if self.token is None:
            return True
        given = headers.get("authorization", "").encode()
        wanted = f"Bearer {self.token}".encode()
        return hmac.compare_digest(sha256(given).digest(), sha256(wanted).digest())


class _Exchange:
    """One request and its answer: counts and times the body, and may replace the answer."""

    def __init__(self, limits: Limits, receive: Receive, send: Send) -> None:
        self.limits, self._receive, self._send = limits, receive, send
        self.status = 0  # none sent: the client left
        self._bytes = 0
        self._complete = False
        self._problem: Problem | None = None
        self._until = time.monotonic() + limits.upload_seconds

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._guarded_receive, self._guarded_send)
        except Exception:
            if self._problem is None:
                raise
        if self._problem is not None and not self.status:
            await self.refuse(scope, self._problem)

    async def refuse(self, scope: Scope, problem: Problem) -> None:
        """Answer, then read on a little: a client that still sends would miss the answer."""
        response = problem.response()
        response.headers["Connection"] = "close"
        await response(scope, self._receive, self._linger)
        self.status = problem.status

    async def _linger(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete:
                    self._note(await self._receive())
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _guarded_receive(self) -> Message:
        """The next part of the body, in time and within the limit. Raises the problem if not."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self._problem = Problem(408, "slow_upload", "the body took too long to arrive")
            raise self._problem from None
        self._note(message)
        if self._bytes > self.limits.body_bytes:
            self._problem = _too_large(self.limits)
            raise self._problem
        return message

    def _note(self, message: Message) -> None:
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)

    async def _guarded_send(self, message: Message) -> None:
        if self._problem is not None and not self.status:
            return  # the application's own answer to its interrupted read
        self.status = message.get("status", self.status)
        await self._send(message)


def _unauthorized() -> Problem:
    message = "the bearer token is missing or wrong"
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def _too_large(limits: Limits) -> Problem:
    return Problem(
        413, "body_too_large", f"the body has more than the {limits.body_bytes} bytes allowed"
    )
