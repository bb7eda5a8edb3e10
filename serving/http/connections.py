"""Connections: how many there are, how long one may wait, and answers to what is no request.

    accepted ──> waits for a request's head ──> is answered ──> waits for the next, or closes
                   │ longer than header_seconds: 408, closed       │ takes nothing of its answer
                   │ too many connections: the one that waited      │ for answer_seconds: closed
                   │ longest makes room, and where none waits,      │
                   └ the oldest whose answer has begun              └

uvicorn's protocol on h11, and what it leaves open: it waits for a head for ever, drops its time
limit at the first byte, keeps a connection whose client reads nothing, and has no limit on
connections before their request is read. So a few hundred idle ones took every descriptor.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import ssl
import time
from asyncio.sslproto import SSLProtocol
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.http.problems import Problem
from serving.limits import Limits
from serving.metrics import Metrics

_HEAD_BYTES = 16 * 1024  # of an unfinished head; a finished one may have twice as much
_FIELDS = 100  # header fields of one request
_SMALL_PARTS, _PART_BYTES = 200, 512  # so many parts of a body may be smaller than this on average
_LINGER_SECONDS = 2.0  # a client that still sends would miss a refusal
_RESERVE = 256  # descriptors for all else: models, images, fetches, what is accepted at one go
_SELDOM_SECONDS = 60.0
_SELDOM = (
    "Invalid HTTP request received.",
    "socket.accept() out of system resource",
    "too many connections",
)
_CODES = {
    400: ("bad_http", "this is not HTTP as it is read here"),
    431: ("headers_too_large", "the headers are too many or too large"),
    501: ("bad_http", "this transfer coding is not read: send the body plain or chunked"),
}
logger = logging.getLogger(__name__)


class ConnectionLimits:
    """The connections of one server.

    Args:
        connections: all of them, kept by the server library.

    Attributes:
        limit: how many there may be: `Limits.connections`, or fewer where the process may not open
            as many files.
    """

    def __init__(self, limits: Limits, metrics: Metrics, connections: set[Any]) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.limit = min(limits.connections, files - min(_RESERVE, files // 2))
        if self.limit < limits.connections:
            logger.info("%d files may be open: at most %d connections", files, self.limit)
        self.limits, self._metrics, self._connections = limits, metrics, connections
        metrics.connections.set_function(lambda: len(connections))

    def enter(self, connection: Connection) -> None:
        """One more: where there are too many, the one that has waited longest goes.

        Where none waits, the oldest does that is sent its answer: a stream of the demo, which has
        no end, or a client that reads as slowly as it may. Otherwise a stranger would hold all of
        them for ever. The new one itself is refused where every other has a request that is being
        read or computed; `Limits.max_concurrent_requests` of them are.
        """
        if len(self._connections) <= self.limit:
            return
        self._metrics.dropped_connections.inc()
        logger.warning("too many connections: those that wait longest are closed")
        others = [each for each in self._connections if each is not connection]
        spare = [each for each in others if each.waits] or [each for each in others if each.sends]
        if spare:
            oldest = min(spare, key=lambda each: each.since)
            self._connections.discard(oldest)  # its end comes later than the next connection
            oldest.transport.abort()
        elif not connection.speaks:
            connection.transport.abort()  # it would not understand a refusal yet
        else:
            problem = Problem(503, "too_many_connections", "there are too many connections")
            connection.refuse(problem, linger=False)

    def leave(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def sweep(self) -> None:
        """Close those that are past their time. For once a second."""
        now = time.monotonic()
        for connection in list(self._connections):
            connection.close_if_overdue(now, self.limits)


class Connection(H11Protocol):
    """One connection.

    Attributes:
        since: when it began to wait: it was opened, or its last answer was complete.
        speaks: HTTP can be written to it: it is plain, or its TLS handshake is done.
    """

    def __init__(self, room: ConnectionLimits, **given: Any) -> None:
        super().__init__(**given)
        self.conn: _Bounded = _Bounded(h11.SERVER, _HEAD_BYTES)
        self.room, self.since = room, time.monotonic()
        self._blocked: float | None = None  # since when the client takes nothing
        self.speaks = False
        self._over = False  # refused: what still comes is not read

    @property
    def waits(self) -> bool:
        """No request of it is being answered."""
        return self._over or self.cycle is None or self.cycle.response_complete

    @property
    def sends(self) -> bool:
        """An answer of it has begun and does not end, or its client takes nothing."""
        begun = self.cycle is not None and self.cycle.response_started
        return begun or self._blocked is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.speaks = True
        self.room.enter(self)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # In slices: h11 measures an unfinished head only after it has taken all there is.
        for start in range(0, len(data), _HEAD_BYTES):
            if self._over or self.transport.is_closing():
                return
            self.conn.receive_data(data[start : start + _HEAD_BYTES])
            self.handle_events()

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._blocked = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._blocked = None
        super().resume_writing()

    def close_if_overdue(self, now: float, limits: Limits) -> None:
        if self.transport.is_closing() and self._blocked is None:
            self._blocked = now  # closed, but the client does not take the rest
        stuck = self._blocked is not None and now - self._blocked > limits.answer_seconds
        if stuck or (self._over and now - self.since > _LINGER_SECONDS):
            self.transport.abort()
        elif self.waits and not self._over and now - self.since > limits.header_seconds:
            if self.cycle is None and not self.conn.trailing_data[0]:
                self.transport.abort()  # it never said a word
            else:
                problem = Problem(408, "slow_headers", "the request's head took too long")
                self.refuse(problem, linger=True)

    def send_400_response(self, msg: str) -> None:
        """What is no request, in the words of the API."""
        status = self.conn.refused_with
        self.refuse(Problem(status, *_CODES.get(status, _CODES[400])), linger=True)

    def refuse(self, problem: Problem, linger: bool) -> None:
        """Answer for the application, if nothing is answered yet, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": problem.body()}).encode()
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
                **problem.headers,
            }
            head = h11.Response(status_code=problem.status, headers=list(headers.items()))
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        else:
            linger = False
        self._over, self.since = True, time.monotonic()
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """No line in the log: the request is answered as if it had not asked."""


class Handshake(SSLProtocol):
    """TLS under a connection, which has its place and its time from the first moment on.

    asyncio by itself tells the protocol when the handshake is done: until then nobody would count
    it, and it had a minute.
    """

    def __init__(self, connection: Connection, context: ssl.SSLContext) -> None:
        # typeshed wants whole seconds and somebody who waits; asyncio takes fractions and nobody.
        seconds: Any = connection.room.limits.header_seconds
        nobody: Any = None
        super().__init__(
            asyncio.get_running_loop(),
            connection,
            context,
            nobody,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=seconds,
        )
        self._connection = connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._connection.transport = transport
        self._connection.connections.add(self._connection)
        self._connection.room.enter(self._connection)
        super().connection_made(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        self._connection.room.leave(self._connection)


class _Lines(ReceiveBuffer):
    """Lines of a head or of trailers, all with one line end, none folded.

    A proxy that takes a line feed within a line, or a folded line, for something else sees another
    request.
    """

    def maybe_extract_lines(self) -> Any:
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines is not None:
            taken, letters = before - len(self), sum(map(len, lines))
            if taken - letters not in (len(lines) + 1, 2 * len(lines) + 2):
                raise h11.RemoteProtocolError("lines that end in two ways")
            if any(bytes(line[:1]) in (b" ", b"\t") for line in lines):
                raise h11.RemoteProtocolError("a folded line")
        return lines


class _Bounded(h11.Connection):
    """h11, with limits on what costs time: header fields, and parts of a body.

    A read of 256 KB may be 40,000 chunks of a byte, each an event.

    Attributes:
        refused_with: the status that fits the error raised last.
    """

    refused_with = 400
    _parts = _bytes = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._receive_buffer = _Lines()

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check_head(event)
            elif isinstance(event, h11.Data):
                self._count(len(event.data))
        except h11.RemoteProtocolError as error:
            self.refused_with = error.error_status_hint
            raise
        return event

    def _check_head(self, head: h11.Request) -> None:
        self._parts = self._bytes = 0
        if len(head.headers) > _FIELDS:
            raise h11.RemoteProtocolError("too many headers", error_status_hint=431)
        if head.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("another version")
        if not head.target.startswith(b"/") and head.target != b"*":
            raise h11.RemoteProtocolError("a proxy's request")  # its host is not the Host

    def _count(self, size: int) -> None:
        self._parts += 1
        self._bytes += size
        if self._parts > _SMALL_PARTS + self._bytes / _PART_BYTES:
            raise h11.RemoteProtocolError("chunks too small")


class RateLimited(logging.Filter):
    """Lets lines that every stranger can cause through once a minute, without their traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        found = next((text for text in _SELDOM if str(record.msg).startswith(text)), None)
        if found is None:
            return True
        now = time.monotonic()
        if now - self._last.get(found, -_SELDOM_SECONDS) < _SELDOM_SECONDS:
            return False
        self._last[found] = now
        record.msg, record.args = f"{found} (said once a minute)", ()
        record.exc_info = None
        return True
