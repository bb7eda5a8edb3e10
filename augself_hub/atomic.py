"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def hidden_name(name: str) -> str:
    """What a file is called while it is being written."""
    return f".{name}.new"


@contextlib.contextmanager
def whole_file(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """A file to be written, that appears under its name when the `with` ends well.

    It is on the disk by then, so that a power cut leaves the one before or this one.

    Args:
        writer: names it until then, where several may write it at once.
    """
    hidden = path.with_name(hidden_name(path.name + writer))
    try:
        with hidden.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def write_json(path: Path, data: Any, nan: bool = False) -> None:
    """Indented, with a line's end.

    Args:
        nan: values may be no numbers, which JSON proper has no word for.

    Raises:
        ValueError: a value is no number.
    """
    text = json.dumps(data, indent=2, allow_nan=nan) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())
