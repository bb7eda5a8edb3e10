"""Checkpoints as files: each ends with a manifest of sha256 and appears by one rename.

The stock trainer resumes from a half-written newest checkpoint, or without an optimizer, and says
nothing. Here a resume takes the newest checkpoint that is whole.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from augself_hub.folder import file_sha256

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def write_manifest(folder: Path) -> None:
    """The sha256 of every file, written last: a checkpoint without it is partial."""
    files = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(files, indent=2))


def publish(staged: Path, limit: int | None) -> None:
    """Finish a staged checkpoint, give it its place, then remove what it makes superfluous.

    A checkpoint of this step or a later one was found damaged when the run was resumed before it.
    """
    write_manifest(staged)
    place = staged.parents[1] / staged.name
    shutil.rmtree(place, ignore_errors=True)
    staged.rename(place)
    found = _newest_first(place.parent)
    reached = found[found.index(place) :]
    for folder in set(found) - set(reached[: limit or None]):
        shutil.rmtree(folder, ignore_errors=True)


def _newest_first(output: Path) -> list[Path]:
    """Newest first."""
    found = [p for p in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)


def newest_valid(output: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; says which newer ones do not."""
    for folder in _newest_first(output):
        if fault := _fault(folder):
            log.warning("ignored %s: %s", folder, fault)
        else:
            return folder
    return None


def _fault(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return "it was not finished"
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != sha256:
            return f"{name} is damaged"
    return None
