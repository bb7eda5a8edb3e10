"""Images from URLs: off unless the operator allows hosts by name.

    URL ──host allowed?──> resolve ──address allowed?──> connect to that address ──> at most so many
     ^                                                                               bytes, so long
     └───────────────────────── redirect, at most 3, checked from the start ──────────────┘

The name is resolved once, and the connection goes to the address that was checked (Host and SNI
keep the name), so a name that resolves differently the second time gains nothing. Addresses that
are not public are refused unless the operator named the very address. Proxies of the environment
are not asked, and compressed answers are not read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from augself_hub.errors import UsageError
from serving.http.bodies import Item
from serving.http.problems import Problem
from serving.limits import Limits
from serving.metrics import Metrics

REDIRECTS = 3
_AT_ONCE = 16  # connections
_LONGEST = 4096  # characters of a URL
_PORTS = {"http": 80, "https": 443}
_HEADERS = [
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "augself-hub"),
]
# IANA's registries of special-purpose addresses, without those that are global and unicast; besides
# what older standards set apart and networks may still route. Transition addresses (6to4, Teredo,
# IPv4-mapped and -compatible, local NAT64) carry an IPv4 address, which may be any.
# https://www.iana.org/assignments/iana-ipv4-special-registry, iana-ipv6-special-registry
_SPECIAL = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24
    198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/8 100::/64 100:0:0:1::/64 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3ffe::/16
    3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
_NETWORKS = [ipaddress.ip_network(text) for text in _SPECIAL.split()]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True)
class AllowedHosts:
    """Which hosts and addresses may be asked.

    Args:
        names: (host, port); a port of None: the scheme's own.
        addresses: those that may be connected to though they are not public.
    """

    names: frozenset[tuple[str, int | None]]
    addresses: frozenset[Address]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> AllowedHosts:
        """`example.org`, `example.org:8443`, `10.0.0.5` or `[::1]:8000`, each as it is in URLs.

        Raises:
            UsageError: no host.
        """
        names = frozenset(_host_and_port(text) for text in texts)
        found = (_address(host) for host, _ in names)
        return cls(names, frozenset(address for address in found if address is not None))

    def allow(self, scheme: str, host: str, port: int | None) -> bool:
        port = _PORTS[scheme] if port is None else port
        return (host, port) in self.names or ((host, None) in self.names and port == _PORTS[scheme])

    def allow_address(self, text: str) -> bool:
        address = ipaddress.ip_address(text.split("%")[0])
        return address in self.addresses or _public(address)


class Fetcher:
    """Fetches the images of one server's requests.

    Args:
        hosts: see `AllowedHosts`.
        resolve: host and port -> addresses; None: the system's resolver.
    """

    def __init__(
        self, hosts: AllowedHosts, limits: Limits, metrics: Metrics, resolve: Resolve | None = None
    ) -> None:
        self._hosts, self._limits, self._metrics = hosts, limits, metrics
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=_AT_ONCE,
            max_keepalive_connections=0,  # every image: a check of its own
            network_backend=_CheckedBackend(hosts, resolve or _resolve),
        )

    async def fetched(self, items: Sequence[Item], hold: Callable[[int], None]) -> list[Item]:
        """The same items, URLs replaced by what they point to. Raises the first one's problem.

        Args:
            hold: counts bytes as the server's; raises the problem where it has no room for them.
        """
        room = _Room(self._limits.body_bytes, hold)
        results = await asyncio.gather(
            *(self._item(item, room) for item in items), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value]

    async def close(self) -> None:
        await self._pool.aclose()

    async def _item(self, item: Item, room: _Room) -> Item:
        url = item.content
        if isinstance(url, bytes) or not url.startswith(("http://", "https://")):
            return item
        try:
            async with self._at_once:  # its time begins with its turn
                with self._metrics.stage("fetch"):
                    async with asyncio.timeout(self._limits.fetch_seconds):
                        return replace(item, content=await self._followed(url, room))
        except _Refused as refused:
            raise refused.problem(item.param) from None
        except TimeoutError:
            raise Problem(400, "url_too_slow", "the host took too long", item.param) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            message = "the image cannot be fetched from its host"
            raise Problem(400, "url_failed", message, item.param) from None

    async def _followed(self, url: str, room: _Room) -> bytes:
        """What a URL leads to, redirects included."""
        for _ in range(REDIRECTS + 1):
            found = await self._get(url, room)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError:
                raise _Refused("bad_url", "a redirect leads to no URL") from None
        raise _Refused("too_many_redirects", f"more than {REDIRECTS} redirects")

    async def _get(self, url: str, room: _Room) -> bytes | str:
        """The body, or where a redirect leads."""
        async with self._pool.stream("GET", self._checked(url), headers=_HEADERS) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return headers[b"location"].decode("latin-1")
            if response.status != 200:
                raise _Refused("url_failed", f"the host answered with status {response.status}")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _Refused("url_compressed", "the host compresses its answer though not asked")
            length = headers.get(b"content-length", b"0")
            taken = int(length) if length.isdigit() and len(length) <= 18 else 0
            room.take(taken)
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                room.take(max(0, len(body) - taken))  # more than was announced
                taken = max(taken, len(body))
            return bytes(body)

    def _checked(self, url: str) -> httpcore.URL:
        """The URL without its fragment. Raises _Refused unless its host is allowed."""
        if len(url) > _LONGEST:
            raise _Refused("bad_url", f"a URL of more than {_LONGEST} characters")
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname or "", parts.port
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            f"{host}{target}".encode("ascii")
        except ValueError:
            raise _Refused("bad_url", "not a URL of ASCII characters") from None
        if scheme not in _PORTS or "@" in parts.netloc:
            raise _Refused("bad_url", "not an http or https URL without a password")
        if not self._hosts.allow(scheme, host, port):
            raise _Refused("url_not_allowed", "this host is not among those allowed")
        host = f"[{host}]" if ":" in host else host
        return httpcore.URL(scheme=scheme, host=host, port=port, target=target)


class _Room:
    """How many bytes one request may still fetch, which `hold` counts as the server's."""

    def __init__(self, limit: int, hold: Callable[[int], None]) -> None:
        self._limit = self._left = limit
        self._hold = hold

    def take(self, count: int) -> None:
        if count > self._left:
            message = f"the images have more than the {self._limit} bytes allowed"
            raise _Refused("url_too_large", message, 413)
        self._hold(count)
        self._left -= count


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses only that were checked; TLS and Host keep the name."""

    def __init__(self, hosts: AllowedHosts, resolve: Resolve) -> None:
        self._hosts, self._resolve = hosts, resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        try:
            found = await self._resolve(host, port)
        except OSError:
            raise _Refused("url_failed", "the host's name cannot be resolved") from None
        allowed = [address for address in found if self._hosts.allow_address(address)]
        if not allowed:
            raise _Refused("url_address_not_allowed", "the host's address is not a public one")
        return await self._inner.connect_tcp(allowed[0], port, *args, **options)


class _Refused(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self._code, self._message, self._status = code, message, status

    def problem(self, param: str) -> Problem:
        return Problem(self._status, self._code, self._message, param)


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _host_and_port(text: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or "@" in text or any(mark in text for mark in "/?#*, "):
        raise UsageError(f"--allow-url-host {text}: write a host, as in example.org or 10.0.0.5:80")
    return host, port


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _public(address: Address) -> bool:
    """What everybody may reach, whatever this version of Python knows of the registries."""
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        # How networks without IPv4 reach the public IPv4 addresses; and private ones, where let.
        return _public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    special = address.is_multicast or address.is_reserved
    return address.is_global and not special and not any(address in n for n in _NETWORKS)
