"""FeatureTable: what extraction writes and evaluation reads.

manifest.json           model, preprocessing, provider, counts, label names; written last
part-00000.parquet ...  columns id (string), label (int32 or null), features (list<float32>[D]);
                        the file's metadata names the model it came from
errors.jsonl            one {"id", "reason"} a line for what could not be read
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub.errors import AugSelfError, MissingExtra

FORMAT = 1
MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"
PARTS = "part-*.parquet"
MODEL_KEY = b"augself.model.sha256"


@dataclass(frozen=True)
class FeatureTable:
    """The features of N images under one model.

    Args:
        ids: (N,) names of the images, e.g. paths below the source folder.
        labels: (N,) int32 indices into `label_names`; -1 where an image has none.
        label_names: the class names, sorted.
        features: (N, D) float32.
        model: sha256 of the encoder's graph.
    """

    ids: list[str]
    labels: np.ndarray
    label_names: list[str]
    features: np.ndarray
    model: str

    @classmethod
    def read(cls, folder: Path) -> FeatureTable:
        """Read the folder an extraction has written.

        Raises:
            AugSelfError: no finished extraction is there, or its parts come from several models.
            MissingExtra: without pyarrow.
        """
        manifest = read_manifest(folder)
        table = _read_parts(folder, manifest["model"]["sha256"])
        features = table["features"].combine_chunks()
        if table.num_rows != manifest["counts"]["rows"]:
            raise AugSelfError(
                f"{folder} has {table.num_rows} rows, its manifest {manifest['counts']['rows']}: "
                "extract again"
            )
        return cls(
            ids=table["id"].to_pylist(),
            labels=table["label"].fill_null(-1).to_numpy(),
            label_names=manifest["label_names"],
            features=features.flatten().to_numpy().reshape(table.num_rows, -1),
            model=manifest["model"]["sha256"],
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a finished extraction."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AugSelfError(f"{path} is missing: this is not a finished extraction")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise AugSelfError(f"{path} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise AugSelfError(f"{path} is not of format {FORMAT}: upgrade augself-hub")
    return manifest


def _read_parts(folder: Path, model: str) -> Any:
    """All parts as one table, in order. Features of different models cannot be compared."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("pyarrow", "serve") from error
    tables = []
    for path in sorted(folder.glob(PARTS)):
        table = parquet.read_table(path)
        found = (table.schema.metadata or {}).get(MODEL_KEY, b"none").decode()
        if found != model:
            raise AugSelfError(f"{path} comes from model {found[:12]}, not {model[:12]}: mixed")
        tables.append(table)
    return pa.concat_tables(tables)
