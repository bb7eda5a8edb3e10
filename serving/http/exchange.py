"""One request that is answered: the bytes and the time of its body, and the headers of its answer.

The application reads the body and answers through this. What is wrong with a body shows while it
is read: then that is the answer, whatever the application makes of its interrupted read.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.access_log import RequestRecord, note
from serving.http.paths import inner_path
from serving.http.problems import Problem, body_too_large, no_room_for_bodies

if TYPE_CHECKING:
    from serving.http.gate import Gate

HOLD = "augself.hold"  # where the scope has `Exchange.hold`
_LINGER_SECONDS, _PAUSE_SECONDS = 5.0, 1.0


class Exchange:
    """A request and its answer.

    Args:
        gate: counts the bytes of all requests in `held_bytes`.
        record: of the request; its headers go on the answer.

    Attributes:
        status: of the answer; 0: none was sent, the client left.
        bytes: of the body, as far as it was read.
    """

    def __init__(self, gate: Gate, record: RequestRecord, receive: Receive, send: Send) -> None:
        self.gate, self.limits, self.headers = gate, gate.limits, record.headers
        self._receive, self._send = receive, send
        self.status = self.bytes = 0
        self._held = 0  # of the gate's held_bytes
        self._complete = False
        self._problem: Problem | None = None
        self._until = time.monotonic() + self.limits.upload_seconds

    async def run(self, app: ASGIApp, scope: Scope, length: int) -> None:
        """Let the application answer; a body of this length is coming: its room is taken at once.

        Raises what the application raises, unless the body was the reason.
        """
        self._held = length
        self.gate.held_bytes += length
        scope[HOLD] = self.hold
        try:
            try:
                await app(scope, self.receive, self.send)
            except Exception:
                if self._problem is None:
                    raise
            if self._problem is not None and not self.status:
                await self.refuse(scope, self._problem)
        finally:
            self.gate.held_bytes -= self._held
            self._held = 0

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
        self._count(message)
        try:
            if self.bytes > self.limits.body_bytes:
                raise body_too_large(self.limits.body_bytes)
            self.hold(max(0, self.bytes - self._held))  # more than was announced
        except Problem as problem:
            self._problem = problem
            raise
        return message

    def hold(self, count: int) -> None:
        """Count bytes that are in memory for this request until it is answered. Raises the 429."""
        if count and self.gate.held_bytes + count > self.limits.total_bytes:
            raise no_room_for_bodies()
        self._held += count
        self.gate.held_bytes += count

    async def send(self, message: Message) -> None:
        """A part of the application's answer."""
        if self._problem is not None and not self.status:
            return  # its own answer to its interrupted read
        self.status = message.get("status", self.status)
        if message["type"] == "http.response.start":
            # Which pages may read answers is for the gate to say, not for what is mounted in it.
            headers = [
                (name, value)
                for name, value in message.get("headers", ())
                if not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": headers + self.headers}
        await self._send(message)

    async def refuse(self, scope: Scope, problem: Problem) -> None:
        """Answer, then read on a little: a client that still sends would miss the answer."""
        note(scope, error=problem.code)
        answer = problem.response(inner_path(scope))
        answer.headers["Connection"] = "close"
        start = {"type": "http.response.start", "status": problem.status}
        await self._send({**start, "headers": answer.raw_headers + self.headers})
        body = {"type": "http.response.body", "body": answer.body}
        await self._send({**body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete:
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        self._count(await self._receive())
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self.status = problem.status

    def _count(self, message: Message) -> None:
        self.bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
