"""Features and differences from a server, `augself serve`, in the calls that `Encoder` has.

client = Client("http://127.0.0.1:7860")
client.features(["a.jpg", "b.jpg"])      # (2, D)
client.difference("a.jpg", "b.jpg")      # prints as a table; differences takes many pairs
client.models()                          # what is served

`AsyncClient` is the same with `await`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import httpx
import numpy as np

from augself_hub.answer import Difference
from augself_hub.images.files import one_line
from augself_hub.images.given import GivenImage, Pair
from serving.client_steps import Call, ClientSteps, Result, ServerError, Steps, Wait


class Client(ClientSteps):
    """A server, asked by blocking calls. Close it, or use it in a `with`."""

    _transport = httpx.Client

    def _place(self) -> Any:
        """After a fork, two processes would read the answers of one connection."""
        return os.getpid()

    def features(
        self,
        images: Iterable[GivenImage],
        *,
        model: str | None = None,
        normalize: bool = False,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> np.ndarray:
        """N images -> (N, D) float32, in their order: as `Encoder.features`, in as many requests as
        the server's limits ask for.

        Args:
            images: what the encoder takes, and URLs of hosts that the server allows.
            model: another than the client's. normalize, on_error, progress: as the encoder's.

        Raises:
            UsageError: a single image, something that is no image, no such model.
            ImageError, AugSelfError: one cannot be read; says which.
            ServerError: the server refused, or does not answer.
        """
        return self._run(self._features(images, model, normalize, on_error, progress))

    def difference(self, a: GivenImage, b: GivenImage, *, model: str | None = None) -> Difference:
        """What takes image a to image b. Raises as `features` does, and without heads."""
        return self._run(self._difference(a, b, model))

    @overload
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: Literal["raise"] = "raise",
        progress: bool | None = None,
    ) -> list[Difference]: ...
    @overload
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: str,
        progress: bool | None = None,
    ) -> list[Difference | None]: ...
    def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> list[Any]:
        """What takes a to b of many pairs, in their order: as `Encoder.differences`, in as many
        requests as the server's limits ask for. Raises as `features` does, and without heads.

        Args:
            pairs: (a, b) each, of images as `features` takes them.
            model, on_error, progress: as `features` takes them; None stands for a skipped pair.
        """
        return self._run(self._differences(pairs, model, on_error, progress))

    def models(self) -> list[dict[str, Any]]:
        """What is served: id, dimension, augmentations, limits ... as /v1/models says."""
        return self._run(self._listed())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[Result]) -> Result:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: Result = end.value
                return result
            answer = None
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                continue
            with _reached(self.url):
                answer = self._http.request(step.method, step.path, json=step.body)


class AsyncClient(ClientSteps):
    """The same for asyncio. Images are read and packed on a thread, not on the event loop."""

    _transport = httpx.AsyncClient

    def _place(self) -> Any:
        """A connection belongs to the event loop it was opened in, and ends with it."""
        try:
            return os.getpid(), asyncio.get_running_loop()
        except RuntimeError:  # none runs yet
            return os.getpid(), None

    async def features(
        self,
        images: Iterable[GivenImage],
        *,
        model: str | None = None,
        normalize: bool = False,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> np.ndarray:
        """As `Client.features`."""
        return await self._run(self._features(images, model, normalize, on_error, progress))

    async def difference(
        self, a: GivenImage, b: GivenImage, *, model: str | None = None
    ) -> Difference:
        """As `Client.difference`."""
        return await self._run(self._difference(a, b, model))

    @overload
    async def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: Literal["raise"] = "raise",
        progress: bool | None = None,
    ) -> list[Difference]: ...
    @overload
    async def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: str,
        progress: bool | None = None,
    ) -> list[Difference | None]: ...
    async def differences(
        self,
        pairs: Iterable[Pair],
        *,
        model: str | None = None,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> list[Any]:
        """As `Client.differences`."""
        return await self._run(self._differences(pairs, model, on_error, progress))

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        return await self._run(self._listed())

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[Result]) -> Result:
        answer = None
        while True:
            step = await asyncio.to_thread(_next, steps, answer)
            if isinstance(step, _End):
                result: Result = step.value
                return result
            answer = None
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
                continue
            with _reached(self.url):
                answer = await self._http.request(step.method, step.path, json=step.body)


@dataclass(frozen=True)
class _End:
    value: Any


def _next(steps: Steps[Any], answer: httpx.Response | None) -> Call | Wait | _End:
    """A step, on any thread: StopIteration cannot leave a coroutine."""
    try:
        return steps.send(answer)
    except StopIteration as end:
        return _End(end.value)


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """What can go wrong on the way, in one line; a line that breaks is tried again."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "SSL" in str(error) or "CERTIFICATE" in str(error):
            raise ServerError(
                f"{url} cannot be trusted, or speaks no TLS ({one_line(error)}): SSL_CERT_FILE "
                "names the certificates that count",
                0,
                "tls",
            ) from error
        raise ServerError(
            f"no server answers at {url}: start one with augself serve", 0, "unreachable"
        ) from error
    except httpx.TimeoutException as error:
        raise ServerError(
            f"{url} did not answer in time: give Client a longer timeout=", 0, "timeout"
        ) from error
    except httpx.ProxyError as error:
        raise ServerError(
            f"the proxy before {url} refuses ({one_line(error)}): NO_PROXY leaves it out",
            0,
            "proxy",
        ) from error
    except httpx.TransportError:
        return
    except httpx.RequestError as error:  # it answered, and what it answered cannot be decoded
        raise ServerError(
            f"the answer of {url} cannot be read: {one_line(error)}", 0, "foreign"
        ) from error
