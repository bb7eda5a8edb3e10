"""What this process takes of the machine's memory, and what it can give back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

_STATM, _PAGE = Path("/proc/self/statm"), 4096  # bytes
_MMAP_THRESHOLD, _LARGE = -3, 4 * 2**20  # M_MMAP_THRESHOLD of glibc's malloc.h; bytes


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    return int(_STATM.read_text().split()[1]) * _PAGE if _STATM.is_file() else 0


def give_back() -> None:
    """Give what is free to the system, after a model was unloaded."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Let the allocator give memory of large pictures back to the system when they are freed.

    Left alone glibc raises the size from which it does so to that of the largest block it has seen,
    and keeps 0.8 GB after four pictures of 50 million pixels. Other allocators have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
