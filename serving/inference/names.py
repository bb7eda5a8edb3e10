"""What the models of one server are called: in bodies, in paths under /v2, in metrics.

    runs/a/model          model
    org/name@revision     org/name@revision
    NAME=runs/a/model     NAME
    none                  embedded

Folders that would have one name take as many of their last parts as tell them apart: a-model and
b-model. A dash joins them, since gateways and file names read a slash in their own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from augself_hub.hub import EMBEDDED_NAME

_NAMED = re.compile(r"([\w.-]+)=(.+)")


def named(models: Sequence[str]) -> list[tuple[str, str | None]]:
    """What `augself serve --model` was given -> (name, folder or Hub id) of each, in their order.

    No model is the embedded one. A folder with an = in its path is a folder. A name can still come
    twice, for the same folder given twice say: `Models` refuses it.
    """
    given = [_split(model) for model in models]
    paths = {_parts(model) for name, model in given if name is None and _is_folder(model)}
    return [(name or _name(model, paths), model) for name, model in given] or [
        (EMBEDDED_NAME, None)
    ]


def _split(model: str) -> tuple[str | None, str]:
    """NAME=MODEL -> (NAME, MODEL)."""
    found = None if _is_folder(model) else _NAMED.fullmatch(model)
    return (None, model) if found is None else (found[1], found[2])


def _name(model: str, paths: Iterable[tuple[str, ...]]) -> str:
    """A Hub id, or of a folder's path the shortest end that none of the other `paths` has."""
    if not _is_folder(model):
        return model
    own = _parts(model)
    others = [path for path in paths if path != own]
    lengths = range(1, len(own) + 1)
    alone = (n for n in lengths if all(path[-n:] != own[-n:] for path in others))
    return "-".join(own[-next(alone, len(own)) :])


def _is_folder(model: str) -> bool:
    return Path(model).is_dir()


def _parts(folder: str) -> tuple[str, ...]:
    """Of the path, without its root."""
    return Path(folder).resolve().parts[1:]
