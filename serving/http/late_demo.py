"""The demo as part of the server: Gradio takes seconds to import, and nobody waits for it.

It is built on a thread once the server listens. Until then / answers 503 with a page that asks
again by itself; where it cannot be built the log says why, / stays 503, and /v1 goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from augself_hub.errors import AugSelfError, MissingExtra
from serving.http.keys import Keys
from serving.http.problems import Problem
from serving.inference.service import Service

if TYPE_CHECKING:
    from serving.demo.routes import Routes

_RETRY_SECONDS = 2
_STARTING = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="{_RETRY_SECONDS}"><title>AugSelf Hub</title>
<body><h1>The demo is starting</h1><p>This page comes back by itself; the API under /v1 answers
already.</body></html>"""
_FAILED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>AugSelf Hub</title>
<body><h1>The demo could not be started</h1><p>The server's log says why. The API under /v1 answers
all the same.</body></html>"""
_GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Of each call it would keep a record, and reckon with all of them after each.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
}
logger = logging.getLogger(__name__)


class LateDemo:
    """An ASGI application that becomes the demo.

    Args:
        table, root_path: see `ServerSettings`.
        keys: one of them opens it; a browser asks its user, and sends it of itself from then on.

    Raises:
        MissingExtra: Gradio is not installed.
    """

    def __init__(
        self, service: Service, table: str | None, keys: Keys, root_path: str = ""
    ) -> None:
        if importlib.util.find_spec("gradio") is None:
            raise MissingExtra("gradio", "demo")
        self._service, self._table, self._keys = service, table, keys
        self._root_path = root_path
        self._demo: Routes | None = None
        self._page = _STARTING

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys.admit(Headers(scope=scope).get("authorization", "")):
            headers = {"WWW-Authenticate": 'Basic realm="AugSelf Hub: a token as password"'}
            raise Problem(401, "unauthorized", "the token is missing or wrong", headers=headers)
        if self._demo is not None:
            await self._demo(scope, receive, send)
        else:
            headers = {"Retry-After": str(_RETRY_SECONDS)}
            await HTMLResponse(self._page, 503, headers)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the `with` lasts, the demo is being built or there."""
        over = asyncio.Event()
        task = asyncio.create_task(self._run(over))
        yield
        over.set()
        await task

    async def _run(self, over: asyncio.Event) -> None:
        try:
            with private_folder() as folder:
                routes = await asyncio.to_thread(self._build, folder)
                async with routes.running():
                    self._demo = routes
                    logger.info("the demo is there")
                    await over.wait()
        except AugSelfError as error:
            logger.error("the demo could not be started, /v1 is served without it: %s", error)
            self._page = _FAILED
        except Exception:
            logger.exception("the demo could not be started; /v1 is served without it")
            self._page = _FAILED

    def _build(self, folder: Path) -> Routes:
        from serving.demo import mounted

        service = self._service
        return mounted(service.clients(), self._table, service.limits, folder, self._root_path)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for Gradio's files that nobody else can read, below GRADIO_TEMP_DIR if that is set.

    Gradio reads the environment when it is imported, and some of it whenever it wants to know.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="augself-demo-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        os.environ |= _GRADIO | {"GRADIO_TEMP_DIR": str(Path(folder).resolve())}
        try:
            yield Path(folder).resolve()
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            if parent is not None:
                os.environ["GRADIO_TEMP_DIR"] = parent
