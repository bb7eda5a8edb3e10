"""The server's process: a socket, TLS where it is asked for, uvicorn, and an orderly end.

SIGTERM or SIGINT: /health/ready and new work get 503, what was accepted is answered, exit status 0.
A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import socket
import ssl
import stat
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from PIL import Image

from augself_hub import __version__
from augself_hub.errors import AugSelfError, UsageError
from serving.http.callers import leads_to_loopback
from serving.http.connections import Connection, ConnectionLimits, Handshake, RateLimited
from serving.http.gate import Gate
from serving.inference.service import Service
from serving.tracing import traced

_BACKLOG = 2048  # connections that wait for the loop
_AT_ONE_GO = 32  # taken before any of them is counted: no more than descriptors are kept free
_TURN_SECONDS = 0.001
_OPEN_STREAMS_SECONDS = 5  # a demo's open tab keeps a connection for ever
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Args:
        host, port: `::` is every address of both kinds; port 0 takes a free one.
        uds: a Unix socket instead of them, for its owner and group.
        certificate, key: PEM files; both: it speaks TLS.

    Raises:
        UsageError: one of the two files without the other, or they cannot be used.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    uds: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--tls-certificate and --tls-key go together: give both")
        _ = self.tls  # before anything is loaded

    @functools.cached_property
    def tls(self) -> ssl.SSLContext | None:
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:  # the password: OpenSSL would ask for it on the terminal
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error.__class__.__name__
            raise UsageError(
                f"{self.certificate} and {self.key} cannot be used ({reason}): give a certificate "
                "chain and its key, PEM, without a password"
            ) from None
        return context

    def listen(self) -> socket.socket:
        """A socket that listens. Raises AugSelfError where it cannot be had."""
        try:
            listener = self._of_host() if self.uds is None else self._of_path(self.uds)
        except OSError as error:
            place = f"{self.host} port {self.port}" if self.uds is None else str(self.uds)
            reason = error.strerror or str(error)
            raise AugSelfError(f"cannot listen on {place}: {reason}") from error
        return listener

    def url(self, listener: socket.socket) -> str:
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{listener.getsockname()[1]}"

    def _of_host(self) -> socket.socket:
        family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
        both = self.host == "::" and socket.has_dualstack_ipv6()
        address = (self.host, self.port)
        listener = socket.create_server(
            address, family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
        # Connections inherit it. asyncio sets it only for sockets it opened itself; without it an
        # answer's body waits 40 ms until the client has acknowledged its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener

    def _of_path(self, path: Path) -> socket.socket:
        """What a server that was killed has left there is taken away, nothing else."""
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise AugSelfError(f"cannot listen on {path}: it is there and no socket, remove it")
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
                raise AugSelfError(f"cannot listen on {path}: another server does")
            except FileNotFoundError:
                pass
            except ConnectionRefusedError:
                path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o660)  # nobody can connect yet
        listener.listen(_BACKLOG)
        return listener


def run(app: Gate, address: Address) -> None:
    """Serve until a signal comes.

    Raises:
        AugSelfError: the address cannot be had.
    """
    served, end_tracing = traced(app, app.name_of)
    listener = address.listen()
    # Whoever reaches a Unix socket is on this machine, and allowed to.
    proxies = "127.0.0.1,::1,::ffff:127.0.0.1" if address.uds is None else "*"
    config = uvicorn.Config(
        served,
        backlog=_AT_ONE_GO,
        loop="asyncio",
        ws="none",  # nothing here speaks WebSocket, and the gate does not watch it
        timeout_graceful_shutdown=_OPEN_STREAMS_SECONDS,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", proxies),
    )
    server = _Server(config, app, address)
    # On h11, not whatever else is installed: httptools would wait for endless headers, and answer
    # nothing to a good request that bytes of no request follow.
    config.http = server.protocol  # type: ignore[assignment]
    # `Limits.pixels` says what is too large.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for name in ("asyncio", "uvicorn.error", "serving.http.connections"):
        logging.getLogger(name).addFilter(RateLimited())
    # The loop shares the interpreter with threads that read and decode: it waits less for its turn,
    # and what is there already is not looked through again whenever a request brings many objects.
    sys.setswitchinterval(_TURN_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        server.run(sockets=[listener])
    finally:
        end_tracing()
        if address.uds is not None:
            address.uds.unlink(missing_ok=True)
    if app.log is not None:
        app.log.close()


class _Server(uvicorn.Server):
    """uvicorn, which by itself closes its socket at once and dies of the signal."""

    def __init__(self, config: uvicorn.Config, gate: Gate, address: Address) -> None:
        super().__init__(config)
        self.gate, self.address = gate, address
        self._service: Service = gate.app.state.service  # type: ignore[attr-defined]
        self.room = ConnectionLimits(gate.limits, gate.metrics, self.server_state.connections)
        self._drain_until = 0.0
        self._said = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)  # asyncio has set it to what is taken at one go
            self._say(self.address.url(listener))

    def protocol(self, **given: Any) -> asyncio.BaseProtocol:
        """Of a new connection."""
        connection = Connection(self.room, **given)
        return Handshake(connection, self.address.tls) if self.address.tls else connection

    def _say(self, url: str) -> None:
        """Where, what and how, once it listens."""
        fields = {"version": __version__, "address": url, **self.gate.described}
        text = "; ".join(
            [
                f"listening on {url} (version {__version__})",
                *(
                    f"{m['id']}: {m['provider'] or 'loaded when it is asked for'}, "
                    f"{m['precision']}, {m['threads']} threads"
                    for m in fields["models"]
                ),
                "{decoders} decoders, {keys} keys".format(**fields),
                "at most {items} images a request, {max_concurrent_requests} concurrent requests "
                "and {max_queue_size} queued images".format(**fields["limits"]),
            ]
        )
        logger.info("%s", text, extra={"fields": fields})
        if not (fields["keys"] or self.address.uds or leads_to_loopback(self.address.host)):
            logger.warning(
                "anyone who reaches %s may use this server: give it --tokens-file, or let only a "
                "proxy that asks for keys reach it",
                url,
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.draining:
            self.should_exit = self.force_exit = True
        self._drain_until = self._service.drain()
        self.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: a draining server ends when nothing is worked on any more."""
        if counter % 10 == 0:
            self.room.sweep()
        if self.gate.draining:
            if not self._said:
                logger.info("shutting down: %d requests are being answered", self.gate.active)
                self._said = True
            late = time.monotonic() > self._drain_until
            self.should_exit = self.should_exit or late or self.gate.active == 0
        return await super().on_tick(counter)
