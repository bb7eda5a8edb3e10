"""Who asked what: request ids, trace ids, and one JSON line a request.

    {"time": "2026-01-31T12:00:00.123Z", "request_id": "...", "method": "POST",
     "path": "/v1/embeddings", "status": 200, "seconds": 0.012, "body_bytes": 51234,
     "client": "127.0.0.1", "model": "embedded", "images": 1}

Lines are written by a thread of their own: a slow or full disk loses lines, which is counted and
said once, and never a request.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import secrets
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from augself_hub.errors import AugSelfError
from serving.metrics import Metrics
from serving.tracing import SPAN

_WAITING_LINES = 10_000
_LONGEST = 256  # characters of a path that are kept
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(  # version, trace, span, flags; later versions may add fields
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"
)
logger = logging.getLogger(__name__)


def note(scope: Scope, **fields: Any) -> None:
    """Add fields to the line of a request."""
    scope.setdefault("augself.request", {}).update(fields)


class RequestRecord:
    """One request's ids, for the headers of its answer and for its line.

    `X-Request-Id` is taken over where it is well-formed and made where not. Of a W3C `traceparent`
    the trace goes on with a span of ours, which the answer names in `traceresponse`.

    Args:
        named: X-Request-Id goes on the answer.

    Attributes:
        headers: for the answer. started: by the monotonic clock.
    """

    def __init__(self, scope: Scope, named: bool = True) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        # Of OpenTelemetry's span where there is one, else of ours.
        ours = trace and (trace[1], secrets.token_hex(8), trace[2])
        self.trace: tuple[str, str, str] | None = scope.get(SPAN, ours)
        self._scope, self.started = scope, time.monotonic()
        scope["augself.request"] = {}
        self.headers = [(b"x-request-id", self.id.encode())] if named else []
        if self.trace:
            self.headers.append((b"traceresponse", f"00-{'-'.join(self.trace)}".encode()))

    def line(self, status: int, body_bytes: int) -> dict[str, Any]:
        """The line. A status of 0: the client left before there was one."""
        scope = self._scope
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": self.id,
            "method": scope["method"],
            "path": scope["path"][:_LONGEST],
            "status": status,
            "seconds": round(time.monotonic() - self.started, 6),
            "body_bytes": body_bytes,
            "client": (scope.get("client") or [None])[0],
        }
        if self.trace:
            record |= {"trace_id": self.trace[0], "span_id": self.trace[1]}
        whole: dict[str, Any] = record | scope["augself.request"]
        return whole


class AccessLog:
    """Writes lines to a file, or to standard output where it is `-`.

    Raises:
        AugSelfError: the file cannot be opened.
    """

    def __init__(self, destination: str, metrics: Metrics) -> None:
        self._lines: queue.Queue[bytes | None] = queue.Queue(_WAITING_LINES)
        self._metrics, self._destination = metrics, destination
        self._whole = True  # the last line was written to its end
        self._said = False
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            at_stdout = destination == "-"
            self._file = sys.stdout.fileno() if at_stdout else os.open(destination, flags, 0o640)
        except OSError as error:
            raise AugSelfError(f"cannot write to {destination}: {error.strerror}") from error
        self._writer = threading.Thread(target=self._write_all, name="access log", daemon=True)
        self._writer.start()

    def write(self, record: dict[str, Any]) -> None:
        """Hand a line over; never waits, never raises."""
        try:
            self._lines.put_nowait(json.dumps(record).encode() + b"\n")
        except queue.Full:
            self._lose("more lines come than can be written")

    def close(self) -> None:
        """Write what waits, for a second at most."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._writer.join(1)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                # A disk that fills up half-way leaves a line that the next one must end.
                line = line if self._whole else b"\n" + line
                while line:
                    line = line[os.write(self._file, line) :]
                    self._whole = not line
            except OSError as error:
                self._lose(error.strerror or type(error).__name__)

    def _lose(self, reason: str) -> None:
        self._metrics.lost_lines.inc()
        if not self._said:
            self._said = True
            logger.error("lines of the access log %s are lost: %s", self._destination, reason)
