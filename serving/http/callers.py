"""Who may ask: the Host a request names, and the Origin of the page that makes it.

A stranger's page can make a visitor's browser ask a server that only the visitor reaches. By a name
that it lets resolve to 127.0.0.1 it is then of the server's own origin (DNS rebinding): Host gives
it away. From its own origin it may still post what it cannot read: Origin gives it away.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers

from augself_hub.errors import UsageError
from serving.http.problems import Problem

ANY = "*"
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::(\d{1,5}))?")
_ORIGIN = re.compile(r"(https?)://([^\s/?#@]+)")


class Callers:
    """Whose requests are answered.

    Args:
        bound: what the server listens on. A loopback address: Host must be a name of this machine
            or one of `hosts`. Anything else, or None where somebody else listens: any Host is
            answered unless `hosts` are given, since services and containers call by many names.
        hosts: more names that Host may have, without a port; `*`: any.
        origins: pages of other origins that may ask, as `https://example.org`; `*`: any.

    Raises:
        UsageError: no host, no origin.
    """

    def __init__(
        self, bound: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._hosts = {_named_host(text) for text in hosts}
        self.origins = {_named_origin(text) for text in origins}
        self._bound_to_loopback = bound is not None and leads_to_loopback(bound)
        if self._bound_to_loopback and bound is not None:
            self._hosts.add(bound.lower())
        self._any_host = ANY in self._hosts or not (self._bound_to_loopback or self._hosts)

    def refusal(self, headers: Headers, health: bool) -> Problem | None:
        """What is wrong with a request's Host or Origin.

        Args:
            health: whether it asks for the server's health. Probes call a server by its address,
                and learn nothing that an open port does not tell.
        """
        if not (self._any_host or (health and not self._bound_to_loopback)):
            host = _split(headers.get("host", ""), "http")
            if host is None or not (host[0] in self._hosts or _is_local(host[0])):
                message = "this Host is not served: the server's operator names it, --allow-host"
                return Problem(403, "host_not_allowed", message)
        if any(not self._own(origin, headers) for origin in headers.getlist("origin")):
            message = "pages of this Origin may not ask: the server's operator names it, "
            return Problem(403, "origin_not_allowed", message + "--allow-origin")
        return None

    def named(self, origin: str | None) -> bool:
        """Whether an origin is among those allowed, and its pages may read answers."""
        return origin is not None and (origin in self.origins or ANY in self.origins)

    def _own(self, origin: str, headers: Headers) -> bool:
        """Allowed, or the origin of the server itself, whatever the visitor calls it.

        The scheme does not count: TLS ends at a proxy. X-Forwarded-Host may be believed here
        though anybody can send it: a browser lets a foreign page add it to a request only after a
        preflight, which is refused.
        """
        if self.named(origin):
            return True
        found = _ORIGIN.fullmatch(origin)
        if found is None:
            return False
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        asked = (_split(name, found[1]) for name in (headers.get("host", ""), forwarded))
        page = _split(found[2], found[1])
        return page is not None and page in asked


def _split(name: str, scheme: str) -> tuple[str, int] | None:
    """`host:port` -> both, the port the scheme's where none is given; None: no such name."""
    found = _HOST.fullmatch(name.lower())
    if found is None:
        return None
    return found[1].strip("[]").rstrip("."), int(found[2] or _PORTS[scheme])


def _is_local(host: str) -> bool:
    """A name that leads nowhere but to this machine, whoever answers for names."""
    try:
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def leads_to_loopback(bound: str) -> bool:
    """Whether a server that listens on it can be reached from this machine alone."""
    if _is_local(bound.lower()):
        return True
    try:
        found = socket.getaddrinfo(bound, None, type=socket.SOCK_STREAM)
    except OSError:
        return False  # nobody will listen on it
    return all(_is_local(str(address[0])) for *_, address in found)


def _named_host(text: str) -> str:
    found = None if text == ANY else _split(text, "http")
    if text != ANY and (found is None or ":" in text.rpartition("]")[2]):
        raise UsageError(f"--allow-host {text}: write a name without a port, as in example.org")
    return ANY if found is None else found[0]


def _named_origin(text: str) -> str:
    """As browsers write it: in small letters, without the scheme's own port."""
    found = _ORIGIN.fullmatch(text.lower())
    split = found and _split(found[2], found[1])
    if text == ANY:
        return ANY
    if not found or not split:
        raise UsageError(f"--allow-origin {text}: write an origin, as in https://example.org")
    host = f"[{split[0]}]" if ":" in split[0] else split[0]
    port = "" if split[1] == _PORTS[found[1]] else f":{split[1]}"
    return f"{found[1]}://{host}{port}"
