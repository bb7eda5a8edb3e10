"""Visitors' sessions: as many as fit, and nothing of Gradio's kept for the others.

Gradio makes a session for every hash that a request names, some 0.2 MB each, and keeps it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from serving.demo.files import SECONDS, Files

MOST = 128  # sessions at once
MOST_STREAMS = 2 * MOST  # of all sessions: a page has one, and one more while it asks something
STREAMS = 4  # of one session: of a page that was loaded again, those before may not have ended yet
_GRACE = 30.0  # seconds without a connection after which a page that was open is gone


class Sessions:
    """Who visits. All of it runs on the event loop.

    Args:
        page: mounted already.
        connections: how many the server may have; half of them may be streams.

    Raises:
        AttributeError: this version of Gradio keeps its sessions in another way.
    """

    def __init__(self, page: gr.Blocks, files: Files, connections: int) -> None:
        self._most_streams = min(MOST_STREAMS, max(1, connections // 2))
        self._files, self._queue = files, page._queue
        self._kept: tuple[MutableMapping[str, Any], ...] = (
            page.state_holder.session_data,
            page.state_holder.time_last_used,
            page._queue.pending_messages_per_session,
            page._queue.pending_event_ids_session,
            page.pending_streams,
            page.pending_diff_streams,
        )
        self._named_files = page.temp_file_sets
        self._seen: dict[str, float] = {}  # when they were used last
        self._streams: Counter[str] = Counter()

    def __contains__(self, session: str) -> bool:
        return session in self._seen

    async def enter(self, session: str) -> bool:
        """A session is used: room is made for it. False: every other one has its page open."""
        gone = None
        if session not in self._seen and len(self._seen) >= MOST:
            alone = [s for s in self._seen if not self._streams[s]]
            if not alone:
                return False
            gone = min(alone, key=self._seen.__getitem__)
            del self._seen[gone]
        self._seen[session] = time.monotonic()
        if gone is not None:
            await self._end(gone)
        return True

    def may_stream(self, session: str) -> bool:
        """Whether one more stream may be opened. They have no end, and nothing else counts them."""
        fits = sum(self._streams.values()) < self._most_streams
        return fits and self._streams[session] < STREAMS

    @contextmanager
    def connected(self, session: str, page: bool) -> Iterator[None]:
        """While the `with` lasts, a connection of this session is open.

        Args:
            page: it is open as long as the page is, so that its end is the page's.
        """
        self._streams[session] += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]
                if page and session in self._seen:
                    self._seen[session] = time.monotonic() - SECONDS + _GRACE

    async def sweep(self) -> None:
        """End the sessions nobody uses any more."""
        until = time.monotonic() - SECONDS
        for session in [s for s, used in self._seen.items() if used < until]:
            if not self._streams[session]:
                await self._end(session)
        # A call that was running when its session ended has made it anew.
        for session in {s for kept in self._kept for s in kept if s not in self._seen}:
            await self._end(session)
        self._files.sweep(self._streams.keys())
        for names in self._named_files:  # Gradio's own lists of the same files
            names.clear()

    async def _end(self, session: str) -> None:
        self._seen.pop(session, None)
        await self._queue.clean_events(session_hash=session)
        for kept in self._kept:
            kept.pop(session, None)
        self._files.end(session)
