"""How many cores this process may use: the least of its affinity and its cgroup's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """At least 1. A container that may use 2 of 64 cores gets 2: threads beyond it only wait.

    Of its own cgroup and of every one above it the quota counts, in both versions of cgroups.
    """
    affinity = hasattr(os, "sched_getaffinity")
    allowed: list[float] = [len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)  # number:controllers:/path
        if controllers and "cpu" not in controllers.split(","):
            continue
        root, group = cgroups / "cpu" if controllers else cgroups, Path(path.lstrip("/"))
        for folder in (root / group, *(root / parent for parent in group.parents)):
            v1 = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
            for numbers in (_numbers(folder / "cpu.max"), v1):
                if len(numbers) == 2 and numbers[0] > 0:
                    allowed.append(numbers[0] / numbers[1])
    return max(1, math.floor(min(allowed)))


def _numbers(path: Path) -> list[float]:
    """The numbers in a file; none where it is not there or says `max`."""
    words = path.read_text().split() if path.is_file() else []
    return [] if "max" in words else [float(word) for word in words]
