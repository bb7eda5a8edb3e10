"""The settings of one server, checked as a whole before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from augself_hub.errors import UsageError
from serving.inference.engine import MAX_BATCH
from serving.limits import Limits

_ROOT = re.compile(r"(/[\w.~-]+)+", re.ASCII)
# First parts of the server's own paths: below a prefix of that name they would have two meanings.
_TAKEN = ("v1", "v2", "health", "version", "metrics", "docs", "gradio_api", "assets", "static")


@dataclass(frozen=True)
class ServerSettings:
    """How a server answers.

    Args:
        limits: of requests.
        demo: show the demo at /.
        table: a FeatureTable's folder whose pictures the demo searches; None: the examples.
        lazy: load a model when it is first asked for.
        memory_limit: bytes that loaded models may take; None: any.
        decoders: threads that decode; None: the usable cores.
        max_batch_size: images gathered for one run.
        tokens: one of them must come with requests to /v1, /v2 and the demo; none: nothing must.
        host: what the server listens on; None: somebody else listens, or nobody.
        allow_hosts: more names it may be called by, see `serving.http.callers`.
        allow_origins: pages of other origins that may ask.
        url_hosts: hosts that images are fetched from; none: URLs are refused.
        access_log: a file for a line about each request, `-` for standard output; None: nowhere.
        root_path: what stands before the server's paths, as /images; empty: nothing.
        request_ids: put X-Request-Id on answers; not where a server in front of it does.

    Raises:
        UsageError: two settings that contradict each other.
    """

    limits: Limits = field(default_factory=Limits)
    demo: bool = False
    table: str | None = None
    lazy: bool = False
    memory_limit: int | None = None
    decoders: int | None = None
    max_batch_size: int = MAX_BATCH
    tokens: tuple[str, ...] = ()
    host: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    url_hosts: tuple[str, ...] = ()
    access_log: str | None = None
    root_path: str = ""
    request_ids: bool = True

    def __post_init__(self) -> None:
        limits = self.limits
        if self.max_batch_size > limits.max_queue_size:
            raise UsageError(
                f"--max-batch-size is {self.max_batch_size}, but max_queue_size is "
                f"{limits.max_queue_size} images: no batch could be as large"
            )
        first = self.root_path.partition("/")[2].partition("/")[0]
        if self.root_path and (not _ROOT.fullmatch(self.root_path) or first in _TAKEN):
            raise UsageError(
                f"--root-path {self.root_path}: write a path that begins with a slash and ends "
                f"without one, as /images, and with none of {', '.join(_TAKEN)}"
            )
        if self.url_hosts and limits.fetch_seconds >= limits.deadline_seconds:
            raise UsageError(
                f"fetch_seconds is {limits.fetch_seconds:g}, but the answer must be there after "
                f"{limits.deadline_seconds:g} (deadline_seconds): allow less for fetching"
            )
