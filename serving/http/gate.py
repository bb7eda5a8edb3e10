"""The gate outside everything: who may ask, how many at once, how large and slow, and the log.

It is plain ASGI around the whole application, so that whatever is mounted in it, the demo's upload
route too, stands behind the same limits. What it refuses it answers itself, whatever the
application makes of its interrupted read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.access_log import AccessLog, RequestRecord, note
from serving.http.callers import Callers
from serving.http.keys import Keys
from serving.http.problems import Problem
from serving.limits import Limits
from serving.metrics import Metrics

_UNCOUNTED = ("GET", "HEAD", "OPTIONS")
_COUNTED = ("/v1/embeddings", "/v1/augmentations", "/v1/models")
_QUERY_BYTES = 4096  # a thousand options take longer to read than any image's head
_LINGER_SECONDS, _PAUSE_SECONDS = 5.0, 1.0
OURS = ("v1", "v2", "health", "version", "metrics", "docs", "openapi.json")  # first parts of paths
_HEALTH = ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
_READABLE = [
    "Inference-Header-Content-Length",
    "Retry-After",
    "X-Ignored-Fields",
    "X-Request-Id",
    "traceresponse",
]
logger = logging.getLogger(__name__)


class Gate:
    """ASGI middleware around the application.

    Args:
        callers: whose requests are answered, and which pages may read the answers.
        log: where lines about requests go; None: nowhere.
        names: whether it puts X-Request-Id on answers.
        root_path: what stands before our paths, as /images; a proxy may hand it on or take it off.
        described: what a server says of itself at its start.

    Attributes:
        active: requests with a body that are worked on now. held_bytes: of their bodies.
        draining: new ones, and whoever asks for readiness, get 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        keys: Keys,
        callers: Callers,
        log: AccessLog | None,
        names: bool,
        root_path: str = "",
        described: dict[str, Any] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics, self.keys, self.log = app, limits, metrics, keys, log
        self.callers, self.names = callers, names
        self.root_path, self.described = root_path, described or {}
        # For origins that are allowed. What a page sends is its own affair, so all headers; it
        # never sends the browser's cookies for us.
        self._shared = CORSMiddleware(
            self._answered,
            allow_origins=callers.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_READABLE,
        )
        self.active = self.held_bytes = 0
        self.draining = False
        metrics.active.set_function(lambda: self.active)
        metrics.body_bytes.set_function(lambda: self.held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _without_last_slash(self._placed(scope))
        if _is_api(inner_path(scope)) and self.callers.named(Headers(scope=scope).get("origin")):
            await self._shared(scope, receive, send)
        else:
            await self._answered(scope, receive, send)

    def name_of(self, scope: Scope) -> str:
        """What a request's path is counted as: a name of ours."""
        return _label(inner_path(self._placed(scope)))

    def _placed(self, scope: Scope) -> Scope:
        """The path with what stands before ours, unless the application was mounted there."""
        root, path = self.root_path, scope["path"]
        if not root or scope.get("root_path"):
            return scope
        inside = path == root or path.startswith(f"{root}/")
        return {**scope, "root_path": root, "path": path if inside else root + path}

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope)
        exchange = _Exchange(self, receive, record.with_headers(send, self.names))
        try:
            await self._admit(scope, exchange)
        except Exception:
            logger.exception("request %s failed", record.id)
            if not exchange.status:
                raise
        finally:
            self._count(record, inner_path(scope), exchange)

    def _count(self, record: RequestRecord, path: str, exchange: _Exchange) -> None:
        label = _label(path)
        self.metrics.requests.labels(label, exchange.status).inc()
        self.metrics.seconds.labels(label).observe(record.seconds)
        if self.log is not None:
            self.log.write(record.line(exchange.status, exchange.bytes))

    async def _admit(self, scope: Scope, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        problem = self._refusal(scope, headers)
        if problem is not None:
            await exchange.refuse(scope, problem)
            return
        if self.root_path and scope["path"] == self.root_path:  # its links are relative to a slash
            await RedirectResponse(f"{self.root_path}/")(scope, exchange.receive, exchange.send)
            return
        counted = scope["method"] not in _UNCOUNTED
        self.active += counted
        try:
            if counted:
                exchange.expect(_length(headers) or 0)
            await exchange.run(self.app, scope)
        finally:
            self.active -= counted
            exchange.release()

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        """What is known before the body is read."""
        path = inner_path(scope)
        problem = self.callers.refusal(headers, path in _HEALTH)
        if problem is not None:
            return problem
        if len(scope.get("query_string", b"")) > _QUERY_BYTES:
            return Problem(414, "query_too_long", f"the query has more than {_QUERY_BYTES} bytes")
        if _kept(path) and not self.keys.admit(headers.get("authorization", "")):
            return _unauthorized()
        length = _length(headers)
        if length is None:
            return Problem(400, "bad_length", "Content-Length is not a number")
        if "content-length" in headers and "transfer-encoding" in headers:
            # Whoever stands before us may have believed the other one.
            message = "Content-Length and Transfer-Encoding exclude each other"
            return Problem(400, "bad_length", message)
        if length > self.limits.body_bytes:
            return _too_large(self.limits)
        asks_ready = path == "/health" or path.endswith("/ready")
        if self.draining and (asks_ready or scope["method"] not in _UNCOUNTED):
            return Problem(503, "draining", "the server is shutting down: try again later")
        if scope["method"] in _UNCOUNTED:
            return None
        if self.active >= self.limits.max_concurrent_requests:
            return Problem(429, "busy", f"{self.active} requests are being answered: try again")
        if self.held_bytes + length > self.limits.total_bytes:
            return _no_room()
        return None


class _Exchange:
    """One request and its answer: counts and times the body, and may replace the answer."""

    def __init__(self, gate: Gate, receive: Receive, send: Send) -> None:
        self.gate, self.limits, self._receive, self._send = gate, gate.limits, receive, send
        self.status = 0  # none sent: the client left
        self.bytes = 0
        self._held = 0
        self._complete = False
        self._problem: Problem | None = None
        self._until = time.monotonic() + self.limits.upload_seconds

    def expect(self, length: int) -> None:
        """A body of this length is coming: its room is taken at once."""
        self._hold(length)

    def release(self) -> None:
        self._hold(0)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if self._problem is None:
                raise
        if self._problem is not None and not self.status:
            await self.refuse(scope, self._problem)

    async def refuse(self, scope: Scope, problem: Problem) -> None:
        """Answer, then read on a little: a client that still sends would miss the answer."""
        note(scope, error=problem.code)
        response = problem.response(inner_path(scope))
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
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        self._note(await self._receive())
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive(self) -> Message:
        """The next part of the body, in time and within the limits. Raises the problem if not."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self._problem = Problem(408, "slow_upload", "the body took too long to arrive")
            raise self._problem from None
        self._note(message)
        self._hold(max(self._held, self.bytes))
        if self.bytes > self.limits.body_bytes:
            self._problem = _too_large(self.limits)
        elif self.gate.held_bytes > self.limits.total_bytes:
            self._problem = _no_room()
        if self._problem is not None:
            raise self._problem
        return message

    def _note(self, message: Message) -> None:
        self.bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)

    def _hold(self, total: int) -> None:
        self.gate.held_bytes += total - self._held
        self._held = total

    async def send(self, message: Message) -> None:
        if self._problem is not None and not self.status:
            return  # the application's own answer to its interrupted read
        self.status = message.get("status", self.status)
        if message["type"] == "http.response.start":
            # Which pages may read answers is for the gate to say, not for what is mounted in it.
            headers = [
                (name, value)
                for name, value in message.get("headers", ())
                if not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": headers}
        await self._send(message)


def inner_path(scope: Scope) -> str:
    """The path as our routes have it, wherever the whole application was mounted."""
    root: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _without_last_slash(scope: Scope) -> Scope:
    """Clients write our paths with one as well as without."""
    path = scope["path"]
    ours = inner_path(scope)[1:].partition("/")[0] in OURS
    return {**scope, "path": path[:-1]} if ours and path.endswith("/") else scope


def _is_api(path: str) -> bool:
    return path.startswith(("/v1", "/v2"))


def _kept(path: str) -> bool:
    """Whether a key opens it. Probes have none."""
    return _is_api(path) and path not in _HEALTH


def _label(path: str) -> str:
    """What it is counted as: a name of ours."""
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return "/v2/infer"
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in _COUNTED else "other"


def _length(headers: Headers) -> int | None:
    """What Content-Length says, 0 where there is none, None where it is no sensible number."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) <= 18 else None


def _unauthorized() -> Problem:
    message = "the bearer token is missing or wrong"
    return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def _no_room() -> Problem:
    return Problem(429, "busy", "the bodies of other requests fill the memory allowed: try again")


def _too_large(limits: Limits) -> Problem:
    return Problem(
        413, "body_too_large", f"the body has more than the {limits.body_bytes} bytes allowed"
    )
