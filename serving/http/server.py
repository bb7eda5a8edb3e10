"""The server's process: a socket, uvicorn, and an orderly end.

SIGTERM or SIGINT: /health/ready and new work get 503, what was accepted is answered, exit status 0.
A second signal ends it at once.
"""

from __future__ import annotations

import functools
import gc
import logging
import socket
import sys
import time
from types import FrameType

import uvicorn

from augself_hub.errors import AugSelfError
from serving.http.connections import Connection, Room, Seldom
from serving.http.gate import Gate

_BACKLOG = 2048  # connections that wait for the loop
_AT_ONE_GO = 32  # taken before any of them is counted: no more than descriptors are kept free
_TURN_SECONDS = 0.001
_OPEN_STREAMS_SECONDS = 5  # a demo's open tab keeps a connection for ever
logger = logging.getLogger(__name__)


def run(app: Gate, host: str, port: int) -> None:
    """Serve until a signal comes. Port 0 takes a free one.

    Raises:
        AugSelfError: the address cannot be had.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        backlog=_AT_ONE_GO,
        loop="asyncio",
        ws="none",  # nothing here speaks WebSocket, and the gate does not watch it
        timeout_graceful_shutdown=_OPEN_STREAMS_SECONDS,
        access_log=False,
        server_header=False,
    )
    name = f"[{host}]" if ":" in host else host
    logger.info("listening on http://%s:%d", name, listener.getsockname()[1])
    server = _Server(config, app)
    # On h11, not whatever else is installed: httptools would wait for endless headers, and answer
    # nothing to a good request that bytes of no request follow.
    config.http = functools.partial(Connection, server.room)  # type: ignore[assignment]
    for name in ("asyncio", "uvicorn.error", "serving.http.connections"):
        logging.getLogger(name).addFilter(Seldom())
    # The loop shares the interpreter with threads that read and decode: it waits less for its turn,
    # and what is there already is not looked through again whenever a request brings many objects.
    sys.setswitchinterval(_TURN_SECONDS)
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])
    if app.log is not None:
        app.log.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AugSelfError(f"cannot listen on {host} port {port}: {reason}") from error
    # Connections inherit it. asyncio sets it only for sockets it opened itself; without it an
    # answer's body waits 40 ms until the client has acknowledged its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    """uvicorn, which by itself closes its socket at once and dies of the signal."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate
        self.room = Room(gate.limits, gate.metrics, self.server_state.connections)
        self._drain_until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)  # asyncio has set it to what is taken at one go

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.draining:
            self.should_exit = self.force_exit = True
        self._drain_until = time.monotonic() + self.gate.limits.deadline_seconds
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: a draining server ends when nothing is worked on any more."""
        if counter % 10 == 0:
            self.room.sweep()
        if self.gate.draining:
            late = time.monotonic() > self._drain_until
            self.should_exit = self.should_exit or late or self.gate.active == 0
        return await super().on_tick(counter)
