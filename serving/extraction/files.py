"""A source's files, which may be URLs of any protocol fsspec knows, and what their damage means."""

from __future__ import annotations

import errno
import hashlib
import tarfile
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from augself_hub.errors import AugSelfError
from serving.extraction.sources import ShardError, stamp

DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, LZMAError, pa.ArrowException)


def open_file(url: str) -> BinaryIO:
    """A local file, or what fsspec opens."""
    if "://" not in url:
        return Path(url).open("rb")
    return file_system(url).open(url)


def file_system(url: str) -> Any:
    """fsspec's, for a URL's protocol.

    Raises:
        AugSelfError: there is no such protocol, or its package is missing.
    """
    try:
        import fsspec

        return fsspec.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise AugSelfError(f"{url} cannot be opened: {one_line(error)}") from error


def file_digest(url: str, *told: Any) -> str:
    """Of the file's size and time of change (or what its protocol tells), and what was told."""
    try:
        state = file_system(url).ukey(url) if "://" in url else stamp(Path(url))
    except OSError:  # reading it will say why
        state = None
    return hashlib.sha256(repr((last_name(url), state, told)).encode()).hexdigest()


def damaged(url: str, error: Exception) -> Exception:
    """What a shard that cannot be read means: a network that fails is not a damaged shard."""
    if "://" in url and getattr(error, "errno", None) not in (None, errno.ENOENT):
        return AugSelfError(f"{url} cannot be reached: {one_line(error)}; try again to go on")
    return ShardError(f"the rest of the shard is damaged: {one_line(error)}")


def last_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def one_line(error: Exception) -> str:
    """An exception in one line, without the address it may name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
