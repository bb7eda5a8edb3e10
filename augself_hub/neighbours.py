"""The nearest rows of a table by cosine, exact, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = np.ndarray[Any, Any]
QUERIES, BLOCK = 256, 16384  # rows of two tables compared at a time: 16 MiB of cosines


def nearest(queries: Rows, features: Rows, k: int) -> tuple[Rows, Rows]:
    """The k rows nearest to each query, the nearest first; of equals the first.

    Args:
        queries: (Q, D). features: (N, D), floats of any kind; may lie on the disk.

    Returns:
        Row numbers and cosines, (Q, min(k, N)) each.
    """
    k = min(k, len(features))
    all_numbers: list[Rows] = [np.empty((0, k), np.int64)]
    all_cosines: list[Rows] = [np.empty((0, k), np.float32)]
    for first in range(0, len(queries), QUERIES):
        some = unit(queries[first : first + QUERIES])
        numbers: Rows = np.empty((len(some), 0), np.int64)
        cosines: Rows = np.empty((len(some), 0), np.float32)
        for at in range(0, len(features), BLOCK):
            block = unit(features[at : at + BLOCK])
            here = np.broadcast_to(np.arange(at, at + len(block)), (len(some), len(block)))
            numbers = np.concatenate([numbers, here], axis=1)
            cosines = np.concatenate([cosines, some @ block.T], axis=1)
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            numbers = np.take_along_axis(numbers, best, 1)
            cosines = np.take_along_axis(cosines, best, 1)
        all_numbers.append(numbers)
        all_cosines.append(cosines)
    return np.concatenate(all_numbers), np.concatenate(all_cosines)


def unit(rows: Rows) -> Rows:
    """(N, D) -> float32 rows of length 1; rows of zeros stay so."""
    rows = np.asarray(rows, np.float32)
    scaled: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled
