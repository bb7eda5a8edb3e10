"""Checkpoints as files: each ends with a manifest of sha256 and appears by one rename.

The stock trainer resumes from a half-written newest checkpoint, or without an optimizer, and says
nothing. Here a resume takes the newest checkpoint that is whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from augself_hub.errors import AugSelfError
from augself_hub.folder import file_sha256

MANIFEST, SPENT, LOCK = "manifest.json", "spent.json", ".lock"
NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")

log = logging.getLogger(__name__)


def hold(output: Path) -> BinaryIO:
    """Keep other processes from training in a run's folder, until what is returned is closed.

    A record lock: unlike `flock`'s, data-loading processes do not hold it on after a kill.

    Raises:
        AugSelfError: another process trains there.
    """
    file = (output / LOCK).open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise AugSelfError(
            f"another process trains in {output}: wait for it, or choose another --output"
        ) from None
    except OSError as error:  # a file system without locks
        log.debug("%s cannot be locked: %s", output, error)
    return file


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
    """What is wrong with a checkpoint: it must have a manifest, and be what that says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        return "it was not finished"
    if not isinstance(files, dict) or not all(isinstance(sum_, str) for sum_ in files.values()):
        return f"{MANIFEST} is damaged"
    if missing := next((name for name in NEEDED if name not in files), None):
        return f"{missing} is not in its {MANIFEST}"
    if not any(name.startswith("rng_state") for name in files):
        return f"rng_state.pth is not in its {MANIFEST}"
    for name, sha256 in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != sha256:
            return f"{name} is damaged"
    return None


@dataclass(frozen=True)
class Spent:
    """What a run took: seconds of the clock, and of the CPU in its first process."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)

    def write(self, checkpoint: Path) -> None:
        (checkpoint / SPENT).write_text(json.dumps(dataclasses.asdict(self)))


def spent_until(checkpoint: Path | None) -> Spent:
    """Nothing where there is none, or where it is of a version that did not write it down."""
    if checkpoint is None or not (checkpoint / SPENT).is_file():
        return Spent()
    return Spent(**json.loads((checkpoint / SPENT).read_text()))
