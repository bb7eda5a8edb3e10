"""The gate outside everything: who may ask, how much at once, CORS, and a record of each request.

It is plain ASGI around the whole application, so that whatever is mounted in it, the demo's upload
route too, stands behind the same limits. What it refuses it answers itself; what it lets in is an
`exchange`, whose body it counts.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.access_log import AccessLog, RequestRecord
from serving.http.callers import Callers
from serving.http.exchange import Exchange
from serving.http.keys import Keys
from serving.http.paths import HEALTH, inner_path, is_api, label_of, placed
from serving.http.problems import Problem, body_too_large, no_room_for_bodies
from serving.limits import Limits
from serving.metrics import Metrics

_UNCOUNTED = ("GET", "HEAD", "OPTIONS")  # methods: monitoring gets through a busy server
_QUERY_BYTES = 4096  # a thousand options take longer to read than any image's head
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
        request_ids: whether it puts X-Request-Id on answers.
        root_path: what stands before our paths, as /images; a proxy may hand it on or take it off.
        described: what a server says of itself at its start.

    Attributes:
        active: requests with a body that are worked on now. held_bytes: of their bodies, and of
            the images fetched for them.
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
        request_ids: bool,
        root_path: str = "",
        described: dict[str, Any] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics, self.keys, self.log = app, limits, metrics, keys, log
        self.callers, self.request_ids = callers, request_ids
        self.root_path, self.described = root_path, described or {}
        # For origins that are allowed. What a page sends is its own affair, so all headers; it
        # never sends the browser's cookies for us.
        self._shared = CORSMiddleware(
            self._answer,
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

    def name_of(self, scope: Scope) -> str:
        """What a request's path is counted as: a name of ours."""
        return label_of(inner_path(placed(scope, self.root_path)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = placed(scope, self.root_path)
        if is_api(inner_path(scope)) and self.callers.named(Headers(scope=scope).get("origin")):
            await self._shared(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or let the application answer it; count it and log it either way."""
        record = RequestRecord(scope, self.request_ids)
        exchange = Exchange(self, record, receive, send)
        headers, counted = Headers(scope=scope), scope["method"] not in _UNCOUNTED
        try:
            if (problem := self._refusal(scope, headers)) is not None:
                await exchange.refuse(scope, problem)
            elif self.root_path and scope["path"] == self.root_path:  # its links want a slash
                leading = RedirectResponse(f"{self.root_path}/")
                await leading(scope, exchange.receive, exchange.send)
            else:
                self.active += counted
                try:
                    length = int(headers.get("content-length", 0)) if counted else 0
                    await exchange.run(self.app, scope, length)
                finally:
                    self.active -= counted
        except Exception:
            logger.exception("request %s failed", record.id)
            if not exchange.status:
                raise
        finally:
            label, seconds = label_of(inner_path(scope)), time.monotonic() - record.started
            self.metrics.requests.labels(label, exchange.status).inc()
            self.metrics.seconds.labels(label).observe(seconds)
            if self.log is not None:
                self.log.write(record.line(exchange.status, exchange.bytes))

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        """What is known before the body is read."""
        path = inner_path(scope)
        problem = self.callers.refusal(headers, path in HEALTH)
        if problem is not None:
            return problem
        if len(scope.get("query_string", b"")) > _QUERY_BYTES:
            return Problem(414, "query_too_long", f"the query has more than {_QUERY_BYTES} bytes")
        asks_key = is_api(path) and path not in HEALTH  # probes have none
        if asks_key and not self.keys.admit(headers.get("authorization", "")):
            message = "the bearer token is missing or wrong"
            return Problem(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not (length.isdecimal() and len(length) <= 18):
            return Problem(400, "bad_length", "Content-Length is not a number")
        if "content-length" in headers and "transfer-encoding" in headers:
            # Whoever stands before us may have believed the other one.
            message = "Content-Length and Transfer-Encoding exclude each other"
            return Problem(400, "bad_length", message)
        if int(length) > self.limits.body_bytes:
            return body_too_large(self.limits.body_bytes)
        counted = scope["method"] not in _UNCOUNTED
        asks_ready = path == "/health" or path.endswith("/ready")
        if self.draining and (asks_ready or counted):
            return Problem(503, "draining", "the server is shutting down: try again later")
        if counted and self.active >= self.limits.max_concurrent_requests:
            return Problem(429, "busy", f"{self.active} requests are being answered: try again")
        if counted and self.held_bytes + int(length) > self.limits.total_bytes:
            return no_room_for_bodies()
        return None
