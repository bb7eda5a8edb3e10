"""The demo as part of the server: Gradio takes seconds to import, and nobody waits for it.

It is built on a thread once the server listens. Until then / answers 503 with a page that asks
again by itself; where it cannot be built the log says why, / stays 503, and /v1 goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from augself_hub.errors import AugSelfError, MissingExtra
from serving.inference.service import Service

_RETRY_SECONDS = 2
_STARTING = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="{_RETRY_SECONDS}"><title>AugSelf Hub</title>
<body><h1>The demo is starting</h1><p>This page comes back by itself; the API under /v1 answers
already.</body></html>"""
_FAILED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>AugSelf Hub</title>
<body><h1>The demo could not be started</h1><p>The server's log says why. The API under /v1 answers
all the same.</body></html>"""
logger = logging.getLogger(__name__)


class LateDemo:
    """An ASGI application that becomes the demo.

    Args:
        table: see `Settings`.

    Raises:
        MissingExtra: Gradio is not installed.
    """

    def __init__(self, service: Service, table: str | None) -> None:
        if importlib.util.find_spec("gradio") is None:
            raise MissingExtra("gradio", "demo")
        self._service, self._table = service, table
        self._demo: ASGIApp | None = None
        self._page = _STARTING

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._demo is not None:
            await self._demo(scope, receive, send)
        elif scope["type"] == "http":
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
            inner = await asyncio.to_thread(self._build)
            async with inner.router.lifespan_context(inner):
                self._demo = inner
                logger.info("the demo is there")
                await over.wait()
        except AugSelfError as error:
            logger.error("the demo could not be started, /v1 is served without it: %s", error)
            self._page = _FAILED
        except Exception:
            logger.exception("the demo could not be started; /v1 is served without it")
            self._page = _FAILED

    def _build(self) -> FastAPI:
        import gradio

        from serving.demo import build, looks

        page = build(self._service.locals(), self._table)
        # One queue, the server's own: Gradio passes every visitor on at once.
        page.queue(default_concurrency_limit=None)
        outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        return gradio.mount_gradio_app(outer, page, path="/", **looks(self._service.limits))
