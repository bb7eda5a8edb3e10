"""Reading files, here or at a URL that fsspec knows, within bounds; and what damage means."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO

from augself_hub.errors import AugSelfError, ImageError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    *(".png", ".webp", ".gif", ".bmp"),
)
DATASET_FILES = ("dataset_dict.json", "state.json")  # of a data set that was saved to disk
MAX_BYTES = 2**29  # of one image's file; 50 million pixels of 64 bits are 400 MB
MAX_PATH = 4096  # bytes of a name
# A FIFO must not be waited for, and no other program handed the file. Windows has neither flag, and
# there O_BINARY says that bytes are read as they are.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_NAMES = 1_000_000  # a {0..n} may stand for


# What reading a damaged tar or table raises; pyarrow's own errors are ValueErrors and OSErrors, and
# a tar of headers about headers about headers ends in a RecursionError.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, tarfile.TarError, zlib.error, LZMAError, ValueError, RecursionError),
)


def read_file(path: Path) -> bytes:
    """The bytes of an image's file.

    Raises:
        ImageError: it is no regular file, or larger than MAX_BYTES. OSError: it cannot be read.
    """
    try:
        file = _opened(path)
    except ValueError:
        raise ImageError("no file can have such a name") from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is no regular file")
        if status.st_size <= MAX_BYTES:
            return file.read(status.st_size)
    raise ImageError(f"the file has more than {MAX_BYTES} bytes")


def _opened(path: str | Path) -> BinaryIO:
    """A file, whatever kind it is: what is checked then is what is read."""
    return open(os.open(path, os.O_RDONLY | _FLAGS), "rb")  # noqa: PTH123


def name_of(path: str) -> tuple[str, str | None]:
    """A file's name as a text for tables, and what is wrong with it: None, or the reason."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        return shown[:MAX_PATH], "its name is not UTF-8"
    return path[:MAX_PATH], f"its name has {size} bytes" if size > MAX_PATH else None


def suffix_of(name: str) -> str:
    """The last suffix of a path in small letters, `.jpg`; nothing where there is none."""
    base = name.rpartition("/")[2]
    stem, dot, kind = base.rpartition(".")
    return f".{kind.casefold()}" if dot and stem else ""


def open_file(url: str) -> BinaryIO:
    """A local file, or what fsspec opens.

    Raises:
        OSError: it cannot be opened, or is no regular file: a FIFO would be waited for, for ever.
    """
    if "://" not in url:
        file = _opened(url)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "it is no regular file", url)
        return file
    opened: BinaryIO = file_system(url).open(url)
    return opened


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


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None of what is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def file_digest(url: str, *options: Any) -> str:
    """Of the file's size and time of change (or what its protocol tells), and of the options."""
    try:
        state = file_system(url).ukey(url) if "://" in url else stamp(Path(url))
    except OSError:  # reading it will say why
        state = None
    return hashlib.sha256(repr((last_name(url), state, options)).encode()).hexdigest()


def unreachable(url: str, error: Exception) -> AugSelfError | None:
    """A network that fails is no damage: the error that ends the run; None where it is damage."""
    if "://" in url and getattr(error, "errno", None) not in (None, errno.ENOENT):
        return AugSelfError(f"{url} cannot be reached: {one_line(error)}; try again to go on")
    return None


def last_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def shard_names(urls: Sequence[str]) -> list[str]:
    """Names below the folder they share: where the files lie is no part of an image's name."""
    top = os.path.commonprefix(urls).rpartition("/")[0]  # noqa: RUF071 (commonpath spoils URLs)
    return [name_of(url[len(top) :].lstrip("/"))[0] for url in urls]


def expanded(text: str) -> list[str]:
    """`x-{000..002}.tar` -> three names.

    Raises:
        AugSelfError: more than a million.
    """
    if not (found := _RANGE.search(text)):
        return [text]
    first, last = found.groups()
    if int(last) - int(first) >= MOST_NAMES:
        raise AugSelfError(f"{text} stands for more than {MOST_NAMES} names")
    numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    return [name for n in numbers for name in expanded(_RANGE.sub(n, text, count=1))]


def one_line(error: Exception) -> str:
    """An exception in one line, without the address it may name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
