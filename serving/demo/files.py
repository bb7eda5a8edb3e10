"""The files a visitor can name: uploads, the page's own pictures and tables, the examples.

A name is good where it is, letter for letter, one that this store has given out and still holds.
No path is ever resolved, so traversal, links, case and encodings have nothing to work on.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gradio_client.utils import strip_invalid_filename_characters

SECONDS = 900  # a file lives after it was last named, where no open page holds it
_SMALLEST = 8192  # bytes that even an empty file takes, with its folder


@dataclass
class _Held:
    """One file. `owner`: the session that named it first; None: nobody has, or it is ours."""

    bytes: int
    used: float
    owner: str | None = None


class Files:
    """Everything of the demo's on disk, in one folder that nobody else reads.

    Args:
        folder: an empty one, of mode 0700; whoever made it removes it.
        capacity: bytes of all files but the examples; beyond it those go that were named the
            longest ago.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder.resolve(), capacity
        self.bytes = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the longest ago first
        self._lasting: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)

    def shipped(self, source: Path) -> str:
        """The name of an example, which stays."""
        if source not in self._lasting:
            path = self._place(f"example-{len(self._lasting)}", source.name)
            shutil.copyfile(source, path)
            self._lasting[source] = str(path)
        return self._lasting[source]

    def upload(self, file: BinaryIO, name: str) -> str:
        """The name of a copy of what a visitor sent, in a folder nobody can guess.

        Raises:
            OSError: it cannot be written.
        """
        clean = strip_invalid_filename_characters(Path(name.replace("\\", "/")).name)
        path = self._place(secrets.token_urlsafe(16), clean if clean.strip(". ") else "file")
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(file, copy)
                size = copy.tell()
        except OSError:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        with self._lock:
            self._hold(path, size)
        return str(path)

    def keep(self, data: bytes, name: str, owner: str | None = None) -> str:
        """The name of a file of ours. What is there already is not written again: somebody may be
        reading it."""
        digest = hashlib.blake2b(data, key=self._key, digest_size=16)
        digest.update((owner or "").encode())  # one that ends takes nothing from another
        key = digest.hexdigest()
        with self._lock:
            if (path := str(self.folder / key / name)) in self._held:
                self._touch(path)
            else:
                self._place(key, name).write_bytes(data)
                self._hold(Path(path), len(data), owner)
        return path

    def __contains__(self, path: str) -> bool:
        """Whether it may be fetched. Asking for a file counts as naming it."""
        with self._lock:
            if path in self._held:
                self._touch(path)
                return True
            return path in self._lasting.values()

    def claim(self, path: str, session: str) -> bool:
        """Whether this session may give it to a function: an example, or an upload of its own."""
        with self._lock:
            held = self._held.get(path)
            if held is None:
                return path in self._lasting.values()
            if held.owner not in (None, session):
                return False
            held.owner = session
            self._touch(path)
            return True

    def sweep(self, open_sessions: Collection[str]) -> None:
        """Delete what nobody has named for `SECONDS` and no open page holds."""
        until = time.monotonic() - SECONDS
        with self._lock:
            for path in [
                path
                for path, held in self._held.items()
                if held.used < until and held.owner not in open_sessions
            ]:
                self._delete(path)

    def end(self, session: str) -> None:
        """A session is over: what it owns is deleted."""
        with self._lock:
            for path in [path for path, held in self._held.items() if held.owner == session]:
                self._delete(path)

    def _place(self, folder: str, name: str) -> Path:
        (self.folder / folder).mkdir(mode=0o700, exist_ok=True)
        return self.folder / folder / name

    def _hold(self, path: Path, size: int, owner: str | None = None) -> None:
        held = _Held(max(size, _SMALLEST), time.monotonic(), owner)
        self._held[str(path)] = held
        self.bytes += held.bytes
        while self.bytes > self.capacity and len(self._held) > 1:
            self._delete(next(iter(self._held)))

    def _touch(self, path: str) -> None:
        self._held[path].used = time.monotonic()
        self._held.move_to_end(path)

    def _delete(self, path: str) -> None:
        self.bytes -= self._held.pop(path).bytes
        shutil.rmtree(Path(path).parent, ignore_errors=True)
