"""What a client asks of a server and what the answers mean, without I/O.

Each question is a generator: it yields a `Call` or a `Wait`, is sent the answer, and returns what
was asked for. `serving.client` has the two that do what is yielded.
"""

from __future__ import annotations

import base64
import email.utils
import math
import random
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import httpx
import numpy as np

from augself_hub.answer import Difference
from augself_hub.errors import (
    AugSelfError,
    EmptyImage,
    ImageError,
    NoHeads,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
    UsageError,
)
from augself_hub.images.given import (
    ON_ERROR,
    URLS,
    GivenImage,
    Pair,
    Skipped,
    both,
    encoded,
    name_of,
    named,
    refuse_other_than_list,
    refuse_other_than_pairs,
)
from augself_hub.neighbours import unit
from augself_hub.paths import path_text
from augself_hub.progress import bar

BUSY = (429, 503)  # answers that come with Retry-After
FIRST_WAIT = 0.5  # seconds, where a busy server does not say how long; it doubles
BESIDE = 4096  # bytes of a request beside its images
_IMAGE_ERRORS: dict[str, type[ImageError]] = {
    kind.code: kind for kind in (EmptyImage, TooManyPixels, UndecodableImage, UnsupportedImage)
}


class ServerError(AugSelfError):
    """An answer that is none.

    Attributes:
        status: HTTP status code. code: the server's name for it. param: what it is about, e.g.
            `input[3]`; None: the whole request.
    """

    def __init__(self, message: str, status: int, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Call:
    """What is sent; answered with a response, or with None where the connection broke."""

    path: str
    body: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True)
class Wait:
    """A pause, in seconds."""

    seconds: float


Result = TypeVar("Result")
Steps = Generator[Call | Wait, httpx.Response | None, Result]


class ClientSteps:
    """What is asked of a server, without how it is sent. Pickled, it connects again where it is
    unpickled, as in a worker process.

    Args:
        url: of the server; a path behind a proxy belongs to it.
        model: one of `models`; None: the server's first.
        api_key: one of the server's tokens, where it wants one.
        timeout: seconds for an answer; None: any number.
        retries: how often a busy server (429, 503) or a broken connection is asked again, after the
            time the server names.
        longest_wait: seconds; a server that asks for more is taken for one that does not answer.

    Raises:
        UsageError: no http:// or https:// URL of a server, or an option that cannot be.
    """

    _transport: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        retries: int = 5,
        longest_wait: float = 60.0,
    ) -> None:
        self.url = _address(path_text("url", url))
        self.model, self.retries, self.longest_wait = model, retries, longest_wait
        self._given: dict[str, Any] = {
            "model": model,
            "api_key": api_key,
            "timeout": timeout,
            "retries": retries,
            "longest_wait": longest_wait,
        }
        for name in ("model", "api_key"):
            if not isinstance(value := self._given[name], str | None):
                raise UsageError(f"{name} is of type {type(value).__name__}: give text, or none")
        if api_key is not None and re.fullmatch("[!-~]+", api_key) is None:  # not shown: secret
            raise UsageError("api_key is no token: give one without blanks, line ends and accents")
        if type(retries) is not int or retries < 0:
            raise UsageError(f"retries {retries!r}: give a whole number, 0 for none")
        for name, least in (("timeout", 1e-3), ("longest_wait", 0)):
            value = self._given[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            known = number and least <= value < math.inf
            if not known and not (name == "timeout" and value is None):
                raise UsageError(f"{name} {value!r}: give seconds, {least:g} or more")
        self._models: list[dict[str, Any]] = []
        self._pool, self._owner = self._connections(), self._place()

    def __reduce__(self) -> Any:
        return partial(type(self), self.url, **self._given), ()

    def _place(self) -> Any:
        """What the connections belong to."""
        raise NotImplementedError

    @property
    def _http(self) -> Any:
        """The pool of connections; another one where another place asks."""
        here = self._place()
        if here != self._owner:
            self._pool, self._owner = self._connections(), here
        return self._pool

    def _connections(self) -> Any:
        key = self._given["api_key"]
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return self._transport(base_url=self.url, timeout=self._given["timeout"], headers=headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url})"

    def _asked(self, path: str, body: dict[str, Any] | None = None) -> Steps[Any]:
        """The answer's JSON.

        Raises:
            ServerError: the server refused, or was busy to the last.
        """
        response: httpx.Response | None = None
        for attempt in range(self.retries + 1):
            response = yield Call(path, body)
            if response is not None and response.status_code not in BUSY:
                break
            if attempt < self.retries:
                yield Wait(self._wait(response, attempt))
        if response is None:
            raise ServerError(f"{self.url} closes its connections: try again later", 0, "broken")
        if not response.is_success:
            raise _error(response, self.url, path)
        with _understood(self.url, path):
            return response.json()

    def _wait(self, response: httpx.Response | None, attempt: int) -> float:
        asked = None if response is None else _seconds(response.headers.get("retry-after"))
        if asked is None:
            doubled: float = FIRST_WAIT * 2**attempt
            return min(self.longest_wait, doubled * random.uniform(0.5, 1))
        if response is not None and asked > self.longest_wait:
            raise ServerError(
                f"{self.url} is busy and asks to be left alone for {asked:.0f} seconds",
                response.status_code,
                "busy",
            )
        return asked

    def _listed(self) -> Steps[list[dict[str, Any]]]:
        answer = yield from self._asked("/v1/models")
        with _understood(self.url, "/v1/models"):
            for one in answer["data"]:
                numbers = (one["dimension"], one["limits"]["items"], one["limits"]["body_bytes"])
                whole = all(type(number) is int and number > 0 for number in numbers)
                if not (whole and isinstance(one["id"], str) and len(one["augmentations"]) >= 0):
                    raise ValueError("a field that is not ours")
            self._models = list(answer["data"])
        return self._models

    def _record(self, model: str | None) -> Steps[dict[str, Any]]:
        """What the server says of a model; asked once.

        Raises:
            UsageError: it serves none of this name.
        """
        records = self._models or (yield from self._listed())
        name = model or self.model
        found = [one for one in records if name in (None, one["id"])]
        if not found:
            known = ", ".join(one["id"] for one in records) or "none"
            raise UsageError(f"{self.url} serves no model {name!r}: it has {known}")
        return found[0]

    def _features(
        self,
        images: Iterable[GivenImage],
        model: str | None,
        normalize: bool,
        on_error: str,
        progress: bool | None,
    ) -> Steps[np.ndarray]:
        refuse_other_than_list(images)
        record = yield from self._record(model)
        dim, limits = record["dimension"], record["limits"]

        def pack(number: int, image: GivenImage) -> Packed:
            url = _url(number, image, limits)
            return Packed(number, {"": name_of(number, image)}, url, len(url))

        def row(said: dict[str, Any]) -> np.ndarray:
            found = np.frombuffer(base64.b64decode(said["embedding"]), "<f4")
            return found.reshape(dim)  # one number would fill it

        body = {"model": record["id"], "encoding_format": "base64"}
        asked = Asked("/v1/embeddings", "input", body, "image", pack, row)
        found = yield from self._each(asked, images, limits, on_error, progress)
        features = np.full((len(found), dim), np.nan, np.float32)
        for number, one in enumerate(found):
            if one is not None:
                features[number] = one
        return unit(features) if normalize else features

    def _difference(self, a: GivenImage, b: GivenImage, model: str | None) -> Steps[Difference]:
        record = yield from self._record(model)
        asked = _asked_of_pairs(record, numbered=False)
        (found,) = yield from self._each(asked, [(a, b)], record["limits"], "raise", False)
        return cast("Difference", found)

    def _differences(
        self, pairs: Iterable[Pair], model: str | None, on_error: str, progress: bool | None
    ) -> Steps[list[Difference | None]]:
        refuse_other_than_pairs(pairs)
        record = yield from self._record(model)
        asked = _asked_of_pairs(record, numbered=True)
        return (yield from self._each(asked, pairs, record["limits"], on_error, progress))

    def _each(
        self,
        asked: Asked,
        items: Iterable[Any],
        limits: dict[str, Any],
        on_error: str,
        progress: bool | None,
    ) -> Steps[list[Any]]:
        """What the server says of each; None of what is skipped, which a warning names."""
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error={on_error!r}: give raise or skip")
        skipped: dict[int, str] | None = {} if on_error == "skip" else None
        total = len(items) if isinstance(items, Sequence | np.ndarray) else None
        found: list[Any] = []
        with bar(total, asked.what, progress) as shown:
            for packed in _packed(asked, items, limits, skipped):
                found += yield from self._batch(asked, packed, skipped)
                shown.update(len(packed))
        if skipped:
            reasons = dict(sorted(skipped.items()))
            warnings.warn(Skipped(reasons, len(found), asked.what), stacklevel=2)
        return found

    def _batch(
        self, asked: Asked, packed: list[Packed], skipped: dict[int, str] | None
    ) -> Steps[list[Any]]:
        """What the server says of those that fit into a request; None of what is skipped."""
        found: list[Any] = [None] * len(packed)
        left = [at for at, one in enumerate(packed) if one.sent is not None]
        most, readable = len(left), 0  # those in the next request; those the server has decoded
        while left:
            some = left[: readable or most]
            body = {**asked.body, asked.field: [packed[at].sent for at in some]}
            try:
                answer = yield from self._asked(asked.path, body)
            except ServerError as error:
                place = re.fullmatch(rf"{asked.field}\[(\d+)\](|\.[ab])", error.param or "")
                if place is None or int(place[1]) >= len(some):
                    raise
                readable = int(place[1])
                one = packed[left.pop(readable)]
                if place[2] not in one.names:
                    raise
                name = one.names[place[2]]
                if skipped is None:
                    raise _of_image(error, name) from error
                skipped[one.number] = f"{name}: {error}"
                most = max(1, most // 2)  # what is behind it may be as bad, and is sent again
                continue
            with _understood(self.url, asked.path):
                for at, said in zip(some, answer["data"], strict=True):
                    found[at] = asked.read(said)
            if not readable:
                most *= 2
            left, readable = left[len(some) :], 0
        return found


@dataclass(frozen=True)
class Packed:
    """An image, or a pair of them, on its way.

    Args:
        number: its place in the list. names: of its images, by what stands behind its place where
            the server speaks of them.
        sent: what stands for it in a request, None: it is skipped. size: bytes of that.
    """

    number: int
    names: dict[str, str]
    sent: Any
    size: int


@dataclass(frozen=True)
class Asked:
    """How a list is asked for.

    Args:
        path: of the route. field: of the body, its list. body: its other fields.
        what: image or pair. pack: its number and itself -> what is sent of one.
        read: the server's record of one -> what it says.
    """

    path: str
    field: str
    body: dict[str, Any]
    what: str
    pack: Callable[[int, Any], Packed]
    read: Callable[[dict[str, Any]], Any]


def _asked_of_pairs(record: dict[str, Any], numbered: bool) -> Asked:
    """
    Args:
        record: of the model. numbered: errors name a pair's place in the list.

    Raises:
        NoHeads: the model has none.
    """
    if not record["augmentations"]:
        raise NoHeads(record["id"])
    limits = record["limits"]

    def pack(number: int, pair: Any) -> Packed:
        place = f"pair {number}: " if numbered else ""
        urls = both(partial(_url, limits=limits), number if numbered else None, pair)
        size = sum(map(len, urls)) + 24  # the names of both, quotes
        if BESIDE + size > limits["body_bytes"]:
            raise AugSelfError(
                f"{place}{size} bytes as both images are sent, and the server takes "
                f"{limits['body_bytes']} in a request: send smaller files"
            )
        sides = dict(zip("ab", pair, strict=True))
        names = {f".{side}": f"{place}{name_of(side, image)}" for side, image in sides.items()}
        return Packed(number, names, dict(zip("ab", urls, strict=True)), size)

    def read(said: dict[str, Any]) -> Difference:
        convention = record.get("convention", "relative")
        found = Difference(record["id"], convention, said["differences"], said["match"])
        list(found.rows())  # each is read once, here
        return found

    return Asked("/v1/augmentations", "pairs", {"model": record["id"]}, "pair", pack, read)


def _packed(
    asked: Asked, items: Iterable[Any], limits: dict[str, Any], skipped: dict[int, str] | None
) -> Iterator[list[Packed]]:
    """As many at a time as the server takes in one request."""
    packed: list[Packed] = []
    size = BESIDE
    for number, item in enumerate(items):
        try:
            one = asked.pack(number, item)
        except AugSelfError as error:
            if skipped is None or isinstance(error, UsageError):
                raise
            skipped[number] = str(error)
            one = Packed(number, {}, None, 0)
        length = one.size + 4  # quotes, a comma, a blank
        if packed and (len(packed) == limits["items"] or size + length > limits["body_bytes"]):
            yield packed
            packed, size = [], BESIDE
        packed.append(one)
        size += length
    if packed:
        yield packed


def _url(number: int | str, image: GivenImage, limits: dict[str, Any]) -> str:
    """A URL as it is, for the server to fetch; anything else as data:.

    Raises:
        AugSelfError: no request could hold it. Whatever `named` raises.
    """
    if isinstance(image, str) and image.startswith(URLS):
        return image
    url = f"data:image/*;base64,{base64.b64encode(named(number, image, encoded)).decode()}"
    if BESIDE + len(url) > limits["body_bytes"]:
        raise AugSelfError(
            f"{name_of(number, image)}: {len(url)} bytes as it is sent, and the server takes "
            f"{limits['body_bytes']} in a request: send a smaller file"
        )
    return url


def _of_image(error: ServerError, name: str) -> AugSelfError:
    """What a server says of one image, as the encoder says it of a file."""
    kind = _IMAGE_ERRORS.get(error.code)
    if kind is not None:
        return kind(f"{name}: {error}")
    return ServerError(f"{name}: {error}", error.status, error.code, error.param)


def _address(url: str) -> str:
    """A server's address, without the slash at its end.

    Raises:
        UsageError: it is none.
    """
    advice = "give one like http://host:7860"
    try:
        parts = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UsageError(f"{url} is no address of a server ({error}): {advice}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UsageError(f"{url} is no address of a server: {advice}")
    if parts.port is not None and not 0 < parts.port < 2**16:
        raise UsageError(f"{url}: no port has the number {parts.port}")
    if parts.query or parts.fragment:
        raise UsageError(f"{url}: an address ends before its ? and #, {advice}")
    return str(parts).rstrip("/")


@contextmanager
def _understood(url: str, path: str) -> Iterator[None]:
    """Around what reads an answer: whatever web server may be at the address."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ServerError(
            f"{url} does not answer {path} as augself serve does: is it another server, or another "
            "version?",
            200,
            "foreign",
        ) from error


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds: a number, or a date; None where it is neither."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", retry_after):
        return float(retry_after)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def _error(response: httpx.Response, url: str, path: str) -> ServerError:
    """A refusal in one line; what is no server of ours need not answer in JSON."""
    status = response.status_code
    message, code, param = f"HTTP status {status} from {url}", "unknown", None
    if response.is_redirect:
        place = response.headers.get("location", "").removesuffix(path)
        message, code = f"{url} sends on to {place}: give Client that address", "redirected"
    try:
        error = response.json()["error"]
        texts = (error["message"], error["code"], error["param"] or "")
        if all(isinstance(text, str) for text in texts):
            message, code, param = texts[0], texts[1], texts[2] or None
    except (ValueError, KeyError, TypeError):
        pass
    if status == 401:
        message = f"{message}: give one of the server's tokens, Client({url!r}, api_key=...)"
    return ServerError(message, status, code, param)
