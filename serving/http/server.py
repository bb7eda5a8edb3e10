"""The server's process: a socket, uvicorn, and an orderly end.

SIGTERM or SIGINT: /health/ready and new work get 503, what was accepted is answered, exit status 0.
A second signal ends it at once.
"""

from __future__ import annotations

import logging
import socket
import time
from types import FrameType

import uvicorn

from augself_hub.errors import AugSelfError
from serving.http.gate import Gate

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
        # Not whatever else is installed: httptools would wait for endless headers, and answer
        # nothing to a good request that bytes of no request follow.
        http="h11",
        loop="asyncio",
        ws="none",  # nothing here speaks WebSocket, and the gate does not watch it
        timeout_graceful_shutdown=_OPEN_STREAMS_SECONDS,
        access_log=False,
        server_header=False,
    )
    name = f"[{host}]" if ":" in host else host
    logger.info("listening on http://%s:%d", name, listener.getsockname()[1])
    _Server(config, app).run(sockets=[listener])
    if app.log is not None:
        app.log.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
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
        self._drain_until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.draining:
            self.should_exit = self.force_exit = True
        self._drain_until = time.monotonic() + self.gate.limits.deadline_seconds
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: a draining server ends when nothing is worked on any more."""
        if self.gate.draining:
            late = time.monotonic() > self._drain_until
            self.should_exit = self.should_exit or late or self.gate.active == 0
        return await super().on_tick(counter)
