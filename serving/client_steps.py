"""What a client asks of a server and what the answers mean, without I/O.

Each question is a generator: it yields a `Call` or a `Wait`, is sent the answer, and returns what
was asked for. `serving.client` has the two that do what is yielded.
"""

from __future__ import annotations

import base64
import email.utils
import random
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

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
    Skipped,
    encoded,
    name_of,
    named,
    refuse_other_than_list,
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
    """What is asked of a server, without how it is sent.

    Args:
        url: of the server; a path behind a proxy belongs to it.
        model: one of `models`; None: the server's first.
        api_key: one of the server's tokens, where it wants one.
        timeout: seconds for an answer.
        retries: how often a busy server (429, 503) or a broken connection is asked again, after the
            time the server names.
        longest_wait: seconds; a server that asks for more is taken for one that does not answer.

    Raises:
        UsageError: no http:// or https:// URL.
    """

    _transport: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        longest_wait: float = 60.0,
    ) -> None:
        if not path_text("url", url).startswith(URLS):
            raise UsageError(f"{url} is no address of a server: give one like http://host:7860")
        self.url, self.model = url.rstrip("/"), model
        self.retries, self.longest_wait = retries, longest_wait
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = self._transport(base_url=self.url, timeout=timeout, headers=headers)
        self._models: list[dict[str, Any]] = []

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
        if response.is_success:
            return response.json()
        raise _error(response, self.url)

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
        self._models = (yield from self._asked("/v1/models"))["data"]
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
            known = ", ".join(one["id"] for one in records)
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
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error={on_error!r}: give raise or skip")
        record = yield from self._record(model)
        rows: list[np.ndarray] = [np.empty((0, record["dimension"]), np.float32)]
        skipped: dict[int, str] | None = {} if on_error == "skip" else None
        total = len(images) if isinstance(images, Sequence | np.ndarray) else None
        count = 0
        with bar(total, "image", progress) as shown:
            for packed in _packed(images, record["limits"], skipped):
                some = yield from self._batch(record, packed, skipped)
                rows.append(some)
                count += len(some)
                shown.update(len(some))
        features = np.concatenate(rows)
        if skipped:
            warnings.warn(Skipped(dict(sorted(skipped.items())), count), stacklevel=2)
        return unit(features) if normalize else features

    def _batch(
        self, record: dict[str, Any], packed: list[Packed], skipped: dict[int, str] | None
    ) -> Steps[np.ndarray]:
        """The features of a batch, (n, D); the rows of skipped images are NaN."""
        rows = np.full((len(packed), record["dimension"]), np.nan, np.float32)
        left = [at for at, one in enumerate(packed) if one.url is not None]
        while left:
            body = {
                "model": record["id"],
                "input": [packed[at].url for at in left],
                "encoding_format": "base64",
            }
            try:
                answer = yield from self._asked("/v1/embeddings", body)
            except ServerError as error:
                found = re.fullmatch(r"input\[(\d+)\]", error.param or "")
                if found is None:
                    raise
                one = packed[left.pop(int(found[1]))]
                if skipped is None:
                    raise _of_image(error, one.name) from error
                skipped[one.number] = f"{one.name}: {error}"
                continue
            for at, row in zip(left, answer["data"], strict=True):
                rows[at] = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
            break
        return rows

    def _difference(self, a: GivenImage, b: GivenImage, model: str | None) -> Steps[Difference]:
        record = yield from self._record(model)
        if not record["augmentations"]:
            raise NoHeads(record["id"])
        given = {"a": a, "b": b}
        pair = {side: named(side, image, _url) for side, image in given.items()}
        body = {"model": record["id"], "pairs": [pair]}
        try:
            answer = yield from self._asked("/v1/augmentations", body)
        except ServerError as error:
            side = (error.param or "").removeprefix("pairs[0].")
            if side not in given:
                raise
            raise _of_image(error, name_of(side, given[side])) from error
        (said,) = answer["data"]
        return Difference(
            answer["model"],
            record.get("convention", "relative"),
            said["differences"],
            said["match"],
        )


@dataclass(frozen=True)
class Packed:
    """An image on its way: its place in the list, its name, and its URL; None: skipped."""

    number: int
    name: str
    url: str | None


def _packed(
    images: Iterable[GivenImage], limits: dict[str, Any], skipped: dict[int, str] | None
) -> Iterator[list[Packed]]:
    """As many images at a time as the server takes in one request."""
    packed: list[Packed] = []
    size = BESIDE
    for number, image in enumerate(images):
        url = None
        try:
            url = named(number, image, _url)
        except AugSelfError as error:
            if skipped is None or isinstance(error, UsageError):
                raise
            skipped[number] = str(error)
        length = len(url or "") + 4  # quotes, a comma, a blank
        if packed and (len(packed) == limits["items"] or size + length > limits["body_bytes"]):
            yield packed
            packed, size = [], BESIDE
        packed.append(Packed(number, name_of(number, image), url))
        size += length
    if packed:
        yield packed


def _url(image: GivenImage) -> str:
    """A URL as it is, for the server to fetch; anything else as data:."""
    if isinstance(image, str) and image.startswith(URLS):
        return image
    return f"data:image/*;base64,{base64.b64encode(encoded(image)).decode()}"


def _of_image(error: ServerError, name: str) -> AugSelfError:
    """What a server says of one image, as the encoder says it of a file."""
    kind = _IMAGE_ERRORS.get(error.code)
    if kind is not None:
        return kind(f"{name}: {error}")
    return ServerError(f"{name}: {error}", error.status, error.code, error.param)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds: a number, or a date; None where it is neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def _error(response: httpx.Response, url: str) -> ServerError:
    """A refusal in one line; what is no server of ours need not answer in JSON."""
    status = response.status_code
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error["code"], error["param"]
    except (ValueError, KeyError, TypeError):
        message, code, param = f"HTTP status {status}", "unknown", None
    if status == 401:
        message = f"{message}: give one of the server's tokens, Client({url!r}, api_key=...)"
    return ServerError(message, status, code, param)
