"""Features of a list of images, for the evaluation, which asks for many lists of one model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from serving.extraction.pipeline import extract
from serving.inference.engine import Engine, load


def extract_list(listing: Path, destination: Path, model: str, device: str) -> None:
    """Write the feature table of a list.

    Args:
        listing: a CSV or parquet file as `augself extract` takes it. destination: a new folder.
        model: a model folder. device: as `augself extract --device` takes it.
    """
    extract(listing, destination, _engine(model, device))


@lru_cache(maxsize=1)
def _engine(model: str, device: str) -> Engine:
    """One engine for the many lists of an evaluation."""
    return load(model, device, 1)
