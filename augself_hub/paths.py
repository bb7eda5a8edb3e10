"""Paths and names as a caller hands them over."""

from __future__ import annotations

import os
from typing import Any

from augself_hub.errors import UsageError


def path_text(what: str, value: Any, any_name: bool = False) -> str:
    """A path, a Hub id or a source as text.

    Args:
        what: the argument's name, for the message.
        any_name: also one that is no UTF-8; pyarrow, safetensors and ONNX Runtime open none.

    Raises:
        UsageError: of another type, no text, or empty: it would be the working folder.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise UsageError(f"{what} is of type {type(value).__name__}: give text or a pathlib.Path")
    if not text:
        raise UsageError(f"{what} is empty: give a path, '.' for the working folder")
    if not any_name and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{what} {text} is no UTF-8 text: give another name") from None
    return text
