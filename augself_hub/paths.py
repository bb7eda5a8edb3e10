"""Paths and names as a caller hands them over."""

from __future__ import annotations

import os
from typing import Any

from augself_hub.errors import UsageError


def path_text(what: str, value: Any) -> str:
    """A path, a Hub id or a source as text.

    Args:
        what: the argument's name, for the message.

    Raises:
        UsageError: of another type, or empty: it would be the working folder.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise UsageError(f"{what} is of type {type(value).__name__}: give text or a pathlib.Path")
    if not text:
        raise UsageError(f"{what} is empty: give a path, '.' for the working folder")
    return text
