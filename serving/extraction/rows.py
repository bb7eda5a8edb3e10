"""Rows of a table that holds images -> items, for parquet files and Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.extraction.sources import Columns, Item

READ_ROWS = 16  # undecoded images of a table in memory at once


def row_item(
    name: str, row: dict[str, Any], columns: Columns, label_names: Sequence[str], root: Path
) -> Item:
    """A table's row -> an item. The image's own path, where it has one, ends its name.

    Args:
        root: what the paths in the table start from.
    """
    image, label = row[columns.image or ""], row.get(columns.label or "")
    image = image if isinstance(image, dict) else {"bytes": image}
    data, path = image.get("bytes"), image.get("path")
    name = f"{name}/{Path(path).name}" if path else name
    images = (data,) if data is not None else (root / path,) if path else ()
    label = label_names.index(label) if isinstance(label, str) else label
    label = None if label is None or label < 0 else label  # -1 means unlabelled in datasets
    problem = None if images else "the row has no image"
    return Item((name,), images, label, row.get(columns.split or ""), problem)
