"""Answers in time, for clients that are still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from serving.http.problems import Problem
from serving.inference.models import Model

Result = TypeVar("Result")


async def before_deadline(
    request: Request, model: Model | None, seconds: float, work: Awaitable[Result]
) -> Result:
    """The result of the work for a request whose body was read, given up (cancelled) otherwise.

    Args:
        model: which one the work waits for, if any.

    Raises:
        ClientDisconnect: the client left before it was there.
        Problem: 504, it is not there after so many seconds; 503 where the model is still loaded.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        if model is not None and model.loading is not None:
            raise Problem(503, "loading", "the model is being loaded: try again later")
        raise Problem(504, "deadline", "the answer took too long: send fewer images")
    finally:
        task.cancel()
        gone.cancel()
