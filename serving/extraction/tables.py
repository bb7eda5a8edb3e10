"""Items and what the model said of them -> the columns of a table.

features      id, label, split, features
differences   a, b, and a column for each number the heads predict: color_brightness, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from augself_hub.augmentations.spec import Head, Spec
from augself_hub.errors import AugSelfError
from augself_hub.images import Item


@dataclass(frozen=True)
class Settings:
    """What is computed and how it is kept.

    Args:
        dtype: of the features, float32 or float16.
        normalize: scale each image's features to length 1.
        pairs: differences of pairs instead of features of images.
    """

    dtype: str = "float32"
    normalize: bool = False
    pairs: bool = False


PLAIN = Settings()


def feature_table(items: Sequence[Item], features: np.ndarray, settings: Settings) -> pa.Table:
    """N items and their features (N, D) float32 -> N rows.

    Raises:
        AugSelfError: a number does not fit the dtype.
    """
    stored = _stored(features, settings)
    columns = {
        "id": pa.array([item.names[0] for item in items], pa.string()),
        "label": pa.array([item.label for item in items], pa.int32()),
        "split": pa.array([item.split for item in items], pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(stored.ravel(), stored.shape[1]),
    }
    return pa.table(columns)


def _stored(features: np.ndarray, settings: Settings) -> np.ndarray:
    if settings.normalize:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        features = features / np.where(lengths > 0, lengths, 1)
    with np.errstate(over="ignore"):
        stored = features.astype(settings.dtype)
    if not np.isfinite(stored).all():
        raise AugSelfError(f"the model's features are not all finite numbers in {settings.dtype}")
    return stored


def difference_table(
    items: Sequence[Item], spec: Spec, values: dict[str, np.ndarray], gray: np.ndarray
) -> pa.Table:
    """N pairs and their predicted differences -> N rows.

    Args:
        values: kind -> (N, outputs) in physical units.
        gray: (N,) bool; where either picture is gray, what needs colour is null.
    """
    fields = [pa.field("a", pa.string()), pa.field("b", pa.string())]
    arrays = [pa.array([item.names[side] for item in items], pa.string()) for side in (0, 1)]
    for kind, head in spec.heads.items():
        for field, array in _head_columns(kind, head, values[kind], gray):
            fields.append(field)
            arrays.append(array)
    return pa.table(arrays, pa.schema(fields))


def _head_columns(
    kind: str, head: Head, values: np.ndarray, gray: np.ndarray
) -> list[tuple[pa.Field, pa.Array]]:
    """A column a dimension; of a head with classes one column of their probabilities.

    What the model has not learned is null.
    """
    hidden = [(gray & d.needs_color) | (d.learned is False) for d in head.dimensions]
    if head.type == "classes":
        mask = np.repeat(hidden[0], values.shape[1])
        flat = pa.array(values.ravel(), pa.float32(), mask=mask)
        arrays = [pa.FixedSizeListArray.from_arrays(flat, values.shape[1])]
    else:
        arrays = [pa.array(v, pa.float32(), mask=m) for v, m in zip(values.T, hidden, strict=True)]
    units = [{"unit": dimension.unit} for dimension in head.dimensions]
    names = [f"{kind}_{dimension.name}" for dimension in head.dimensions]
    return [
        (pa.field(name, array.type, metadata=unit), array)
        for name, array, unit in zip(names, arrays, units, strict=True)
    ]
