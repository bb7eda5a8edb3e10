"""Items and what the model said of them -> the columns of a table.

features      id, label, split, features
differences   a, b, match, and columns for each number the model predicts: color_brightness, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from augself_hub.augmentations.spec import Spec
from augself_hub.differences import Answered, records
from augself_hub.errors import AugSelfError
from augself_hub.features import ERROR, REASON
from augself_hub.images import Item


@dataclass(frozen=True)
class TableSettings:
    """What is computed and how it is kept.

    Args:
        dtype: of the features, float32 or float16.
        normalize: scale each image's features to length 1.
        pairs: differences of pairs instead of features of images.
    """

    dtype: str = "float32"
    normalize: bool = False
    pairs: bool = False


PLAIN = TableSettings()


def feature_table(items: Sequence[Item], features: np.ndarray, settings: TableSettings) -> pa.Table:
    """N items and their features (N, D) float32 -> N rows.

    Raises:
        AugSelfError: a number does not fit the dtype.
    """
    if settings.normalize:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        features = features / np.where(lengths > 0, lengths, 1)
    with np.errstate(over="ignore"):
        stored = features.astype(settings.dtype)
    if not np.isfinite(stored).all():
        raise AugSelfError(f"the model's features are not all finite numbers in {settings.dtype}")
    columns = {
        "id": pa.array([item.names[0] for item in items], pa.string()),
        "label": pa.array([item.label for item in items], pa.int32()),
        "split": pa.array([item.split for item in items], pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(stored.ravel(), stored.shape[1]),
    }
    return pa.table(columns)


def difference_table(items: Sequence[Item], spec: Spec, answered: Answered | None) -> pa.Table:
    """N pairs and what the model says of them -> N rows.

    Args:
        answered: of the N pairs; None: there are none.

    For each number there are three columns, NAME, NAME_standard_error (whose field says of what, a
    pair or the average) and NAME_reason: where one cannot be told it is null and the reason is
    there. `match` is the probability that both pictures show one thing, null where the model
    cannot tell.
    """
    columns: dict[str, tuple[pa.Array, dict[str, str] | None]] = {
        name: (pa.array([item.names[side] for item in items], pa.string()), None)
        for side, name in enumerate("ab")
    }
    said = [] if answered is None else list(records(spec, answered))
    match = pa.array([one["match"] for one in said], pa.float32())
    columns["match"] = (match, {"unit": "probability"})
    for kind, (which, head) in spec.answering(spec.matcher is not None).items():
        of = "pair" if which == "matcher" or spec.uncertainty else "average"
        of_kind = [one["differences"][kind] for one in said]
        for place, dimension in enumerate(head.dimensions):
            name, regression = f"{kind}_{dimension.name}", head.type == "regression"
            found = [one[place] if regression else one for one in of_kind]
            value = "value" if regression else dimension.name
            numbers = pa.list_(pa.float32(), head.classes) if head.classes else pa.float32()
            unknown = [None] * head.classes or None  # of each class
            given = [unknown if one[value] is None else one[value] for one in found]
            values = pa.array(given, numbers)
            reasons = pa.array([one.get("reason") for one in found], pa.string())
            columns[name] = (values, {"unit": dimension.unit})
            if regression:
                errors = pa.array([one["standard_error"] for one in found], pa.float32())
                columns[name + ERROR] = (errors, {"unit": dimension.unit, "of": of})
            columns[name + REASON] = (reasons, None)
    schema = [pa.field(n, array.type, metadata=about) for n, (array, about) in columns.items()]
    return pa.table([array for array, _ in columns.values()], pa.schema(schema))
