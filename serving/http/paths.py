"""Paths of requests: which are ours, which need a key, and what they are counted as."""

from __future__ import annotations

from starlette.types import Scope

OURS = ("v1", "v2", "health", "version", "metrics", "docs", "openapi.json")  # first parts of paths
HEALTH = ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
_COUNTED = ("/v1/embeddings", "/v1/augmentations", "/v1/models")


def placed(scope: Scope, root: str) -> Scope:
    """A request with the path that routing wants.

    `root` stands before it, whether a proxy took it off or not, unless the whole application was
    mounted there already; one slash at the end of a path of ours is taken away, as some clients
    write it.
    """
    path = scope["path"]
    if root and not scope.get("root_path"):
        inside = path == root or path.startswith(f"{root}/")
        scope = {**scope, "root_path": root, "path": path if inside else root + path}
    if not scope["path"].endswith("/"):
        return scope
    ours = inner_path(scope)[1:].partition("/")[0] in OURS
    return {**scope, "path": scope["path"][:-1]} if ours else scope


def inner_path(scope: Scope) -> str:
    """The path as our routes have it, wherever the whole application was mounted."""
    root: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


def is_api(path: str) -> bool:
    """Whether it is /v1's or /v2's: what pages of allowed origins may read."""
    return path.startswith(("/v1", "/v2"))


def label_of(path: str) -> str:
    """What it is counted as: a name of ours, never one that a client made up."""
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return "/v2/infer"
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in _COUNTED else "other"
