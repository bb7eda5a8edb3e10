"""Which requests of the mounted page there are, and what of them Gradio is given.

Of Gradio's seventy routes the page needs those below; the others, and those of later versions, are
not there. Files are ours alone: Gradio neither takes nor gives one. The arguments of a call are
checked against the function's fields and written anew, so that Gradio sees no path but of a file of
`Files`, no URL at all, and nothing of a kind that the field does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

import gradio as gr
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.demo.files import Files
from serving.demo.sessions import Sessions
from serving.demo.your_pictures import too_many
from serving.http.access_log import note
from serving.http.paths import inner_path
from serving.http.problems import Problem
from serving.limits import Limits

API = "/gradio_api"
# What Gradio answers by itself, whatever is asked: the page, its code and its description.
PLAIN = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{API}/info")
)
CODE = re.compile(r"/(assets|static)(/[\w@+-][\w.@+-]*)+", re.ASCII)
JSON_BYTES = 256 * 2**10  # of a call: the names of 64 files are a fifth of it
FILES = 1000  # of an upload; a call has fewer
_SWEEP_SECONDS = 10.0
logger = logging.getLogger(__name__)
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SHOWN = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_FILE_HEADERS = {
    "Cache-Control": "private, max-age=900",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
# Of a request's headers Gradio has no use for these: it would answer Origin with leave to read.
_KEPT_BACK = (b"origin", b"authorization", b"cookie", b"content-length", b"content-type")
_GONE = "a file of this call was not uploaded here, or is deleted by now: upload it again"


class _Upload(BaseModel):
    """A file by its name. What else a client says of it is not believed."""

    path: Annotated[str, Field(strict=True, max_length=1000)]


_Number = (
    Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
)
_Text = Annotated[str, Field(strict=True, max_length=1000)]
# Validation is one step, during which nobody is answered: a list ends at its first error.
_Uploads = Annotated[list[_Upload], Field(fail_fast=True, max_length=FILES)]
_Value = None | StrictBool | _Number | _Text | _Upload | _Uploads


class _Call(BaseModel):
    """The body of a call, as the page's script and Gradio's Python client send it."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[list[_Value], Field(fail_fast=True, max_length=200)]
    fn_index: StrictInt
    session_hash: Annotated[str, Field(strict=True, pattern=rf"^{_SESSION.pattern}$")]
    trigger_id: StrictInt | None = None
    event_data: Any = None  # of it our functions read `index`


class Routes:
    """An ASGI application around the page's.

    Args:
        app: where Gradio's page is mounted.
        page: the page. limits: `items` are files that a call may name, as Gradio resolves each
            several times, and nobody is answered meanwhile.
    """

    def __init__(self, app: FastAPI, page: gr.Blocks, files: Files, limits: Limits) -> None:
        self._app, self._page, self._files, self._items = app, page, files, limits.items
        self._sessions = Sessions(page, files, limits.connections)
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the `with` lasts, calls are answered, and what is over is deleted."""
        async with self._app.router.lifespan_context(self._app):
            task = asyncio.create_task(self._sweep())
            try:
                yield
            finally:
                task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except Problem as problem:
            note(scope, error=problem.code)
            # `detail` is what the page's script shows.
            content = {"error": problem.body(), "detail": problem.message}
            answer = JSONResponse(content, problem.status, problem.headers)
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        """What answers a request. Raises Problem: nothing does."""
        method, path = scope["method"], inner_path(scope)
        if method in ("GET", "HEAD"):
            if path == "/" and scope["query_string"].startswith(b"view="):
                return RedirectResponse("docs")  # in place of Gradio's own description and settings
            if path in PLAIN:
                return self._in_turn(self._gradio())
            if CODE.fullmatch(path):
                return self._gradio()
            if path.startswith(f"{API}/file="):
                return self._file(path.removeprefix(f"{API}/file="))
        if method == "GET" and path == f"{API}/queue/data":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])
            session = given[0]
            if session not in self._sessions:
                raise Problem(404, "not_found", "no such session, or it is over")
            return self._stream(session, page=False, query=urlencode({"session_hash": session}))
        if method == "GET" and path.startswith(f"{API}/heartbeat/"):
            session = path.removeprefix(f"{API}/heartbeat/")
            if _SESSION.fullmatch(session):
                return self._stream(session, page=True)
        if method == "GET" and path == f"{API}/upload_progress":
            # How far one is, is not told: the page shows that it is running until it is there.
            return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")
        if method == "POST" and path == f"{API}/upload":
            return JSONResponse(await self._uploaded(Request(scope, receive)))
        if method == "POST" and path == f"{API}/queue/join":
            return self._gradio(body=await self._call(await _body(receive)))
        raise Problem(404, "not_found", "no such path")

    def _gradio(
        self,
        query: str = "",
        body: bytes | None = None,
        during: contextlib.AbstractContextManager[None] | None = None,
    ) -> ASGIApp:
        """Gradio, which sees this query and this body instead of the request's."""
        length = [] if body is None else [(b"content-length", str(len(body)).encode())]

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [pair for pair in scope["headers"] if pair[0] not in _KEPT_BACK]
            headers += [(b"content-type", b"application/json"), *length]
            scope = {**scope, "query_string": query.encode(), "headers": headers}
            with during or contextlib.nullcontext():
                await self._app(scope, receive if body is None else _given(body, receive), send)

        return answer

    def _stream(self, session: str, page: bool, query: str = "") -> ASGIApp:
        """An answer that goes on, as `Sessions.connected` has it."""
        if not self._sessions.may_stream(session):
            raise Problem(503, "busy", "there are as many open pages as there may be: try again")
        return self._gradio(query, during=self._sessions.connected(session, page))

    def _in_turn(self, page: ASGIApp) -> ASGIApp:
        """A page is made in one step of 20 ms, and many at once in as many steps, one after the
        other: with one at a time everybody else has a turn between two."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            messages: list[Message] = []

            async def keep(message: Message) -> None:
                messages.append(message)

            async with self._turn:
                await page(scope, receive, keep)
            for message in messages:  # whoever reads slowly holds nobody up
                await send(message)

        return answer

    def _file(self, name: str) -> ASGIApp:
        if name not in self._files:
            raise Problem(404, "not_found", "no such file, or it is deleted by now")
        path = Path(name)
        shown = _SHOWN.get(path.suffix.lower())
        return FileResponse(
            path,
            media_type=shown or "application/octet-stream",
            filename=path.name,
            content_disposition_type="inline" if shown else "attachment",
            headers=_FILE_HEADERS,
        )

    async def _uploaded(self, request: Request) -> list[str]:
        """A form's files -> their names."""
        kind, options = parse_options_header(request.headers.get("content-type"))
        # Python keeps the name of every charset that it was ever asked for.
        if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() != b"utf-8":
            raise Problem(400, "bad_upload", "an upload is multipart/form-data, its names UTF-8")
        try:
            async with request.form(max_files=FILES, max_fields=0) as form:
                parts = form.multi_items()
                if not parts or any(name != "files" for name, _ in parts):
                    raise Problem(400, "bad_upload", "the form has no file, or other fields")
                return [
                    await asyncio.to_thread(self._files.upload, part.file, part.filename or "")
                    for _, part in parts
                    if isinstance(part, UploadFile)
                ]
        except HTTPException as error:
            message = f"the form cannot be read: {error.detail}"
            raise Problem(400, "bad_multipart", message) from None

    async def _call(self, body: bytes) -> bytes:
        """A call's body -> what Gradio is given of it."""
        try:
            call = _Call.model_validate_json(body)
        except ValidationError:
            raise _not_ours("it is not of the page's form") from None
        function = self._page.fns.get(call.fn_index)
        if function is None:
            raise _not_ours("there is no such function")
        state: Any = self._page.state_holder.session_data.get(call.session_hash, {})
        # A model that was picked has changed its sliders' ranges, in this session alone.
        fields = [state.get(f._id, f) for f in function.inputs]
        if len(fields) != len(call.data) or not all(map(_fits, fields, call.data)):
            raise _not_ours("its arguments are not those of the function")
        count = max((len(value) for value in call.data if isinstance(value, list)), default=0)
        if count > self._items:
            raise Problem(413, "too_many_items", too_many(count, self._items))
        index = call.event_data.get("index") if isinstance(call.event_data, dict) else None
        if function.collects_event_data and type(index) is not int:
            raise _not_ours("it says not which one was picked")
        if not await self._sessions.enter(call.session_hash):
            raise Problem(503, "busy", "there are as many visitors as there may be: try again")
        given = call.model_dump(exclude={"data", "event_data"}) | {
            "data": [self._written(value, call.session_hash) for value in call.data],
            "event_data": {"index": index} if type(index) is int else None,
        }
        return json.dumps(given).encode()

    def _written(self, value: Any, session: str) -> Any:
        """An argument as Gradio is given it: of a file, its name alone."""
        if isinstance(value, list):
            return [self._written(one, session) for one in value]
        if not isinstance(value, _Upload):
            return value
        if not self._files.claim(value.path, session):
            raise Problem(400, "no_such_upload", _GONE)
        name = Path(value.path).name
        return {"path": value.path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self._sessions.sweep()
            except Exception:
                logger.exception("what is over could not be deleted")


def _fits(field: Any, value: Any) -> bool:
    """Whether an argument is one that the field can have."""
    if isinstance(field, gr.File):
        many = field.file_count == "multiple"
        return value is None or isinstance(value, _Upload) or (many and isinstance(value, list))
    if isinstance(field, gr.Slider):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and field.minimum <= value <= field.maximum
    if isinstance(field, gr.Dropdown):
        return any(value == choice for _, choice in field.choices)  # Gradio names them, at length
    # What else there is is a tick or a state, which is the server's affair.
    return isinstance(value, bool) if isinstance(field, gr.Checkbox) else value is None


def _not_ours(why: str) -> Problem:
    return Problem(400, "bad_call", f"this is no call of the page: {why}")


async def _body(receive: Receive) -> bytes:
    """The whole body. 413 where it is longer than any call."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > JSON_BYTES:
            raise Problem(413, "body_too_large", f"a call has at most {JSON_BYTES} bytes")
    return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """What a request's body is read by: this one, then whatever comes after the request's own."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return messages.pop() if messages else await receive()

    return given
