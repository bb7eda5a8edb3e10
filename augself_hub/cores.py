"""How many cores this process may use: the least of its affinity and its cgroup's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """At least 1. A container that may use 2 of 64 cores gets 2: threads beyond it only wait."""
    return max(1, math.floor(min([_affinity(), *_quotas(cgroups, own)])))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """The cores allowed by this process's group and by every group above it, both versions."""
    found = []
    for root, path in _groups(cgroups, own):
        for folder in (root / path, *(root / parent for parent in path.parents)):
            v1 = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
            for numbers in (_numbers(folder / "cpu.max"), v1):
                if len(numbers) == 2 and numbers[0] > 0:
                    found.append(numbers[0] / numbers[1])
    return found


def _groups(cgroups: Path, own: Path) -> list[tuple[Path, Path]]:
    """Lines `number:controllers:/path` -> (where the hierarchy is mounted, the path below it)."""
    lines = own.read_text().splitlines() if own.is_file() else []
    fields = [line.split(":", 2) for line in lines]
    return [
        (cgroups / "cpu" if controllers else cgroups, Path(path.lstrip("/")))
        for _, controllers, path in fields
        if controllers == "" or "cpu" in controllers.split(",")
    ]


def _numbers(path: Path) -> list[float]:
    """The numbers in a file; none where it is not there or says `max`."""
    words = path.read_text().split() if path.is_file() else []
    return [] if "max" in words else [float(word) for word in words]
