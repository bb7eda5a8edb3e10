"""FeatureTable and DifferenceTable: what extraction writes, and evaluation and notebooks read.

manifest.json                 model, preprocessing, provider, counts, label names; written last
data/part-00000.parquet ...   of images: id, label (int32 or null), split (or null), features
                              (float32[D] or float16[D]); of pairs: a, b and a column a number;
                              the file's metadata names the model it came from
features.npy, ids.parquet     instead of data/ where `--format npy` was asked for
errors.jsonl                  one {"id", "reason"} a line for what could not be read
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub.errors import AugSelfError, MissingExtra

FORMAT = 1
MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"
PARTS = "data/part-*.parquet"
ARRAY = "features.npy"
IDS = "ids.parquet"
TABLE, DIFFERENCES = "features", "differences"
MODEL_KEY = b"augself.model.sha256"


@dataclass(frozen=True)
class FeatureTable:
    """The features of N images under one model.

    Args:
        ids: names of the N images, e.g. paths below the source folder.
        labels: (N,) int32 indices into `label_names`; -1 where an image has none.
        label_names: the class names, sorted.
        splits: N times train, test ...; None where the source does not say.
        features: (N, D) float32 or float16.
        model: sha256 of the encoder's graph.
        normalized: every row has length 1.
    """

    ids: list[str]
    labels: np.ndarray
    label_names: list[str]
    splits: list[str | None]
    features: np.ndarray
    model: str
    normalized: bool

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> FeatureTable:
        """Read the folder an extraction has written. Of an .npy the rows stay on the disk.

        Raises:
            AugSelfError: no finished table of features is there, or its parts come from several
                models.
            MissingExtra: without pyarrow.
        """
        folder = Path(folder)
        manifest = _manifest_of(folder, TABLE)
        table = _read_rows(folder, manifest)
        return cls(
            ids=table["id"].to_pylist(),
            labels=table["label"].fill_null(-1).to_numpy(),
            label_names=manifest["label_names"],
            splits=table["split"].to_pylist(),
            features=_features(folder, table),
            model=manifest["model"]["sha256"],
            normalized=manifest["normalized"],
        )

    @classmethod
    def concatenate(cls, tables: Sequence[FeatureTable]) -> FeatureTable:
        """The rows of several tables, e.g. of a train and a test set, in one.

        Raises:
            AugSelfError: they come from different models, or their rows cannot be compared.
        """
        first = tables[0]
        for table in tables[1:]:
            first._refuse_different(table)
        return cls(
            ids=[i for table in tables for i in table.ids],
            labels=np.concatenate([table.labels for table in tables]),
            label_names=first.label_names,
            splits=[split for table in tables for split in table.splits],
            features=np.concatenate([table.features for table in tables]),
            model=first.model,
            normalized=first.normalized,
        )

    def _refuse_different(self, other: FeatureTable) -> None:
        if other.model != self.model:
            raise AugSelfError(
                f"features of model {self.model[:12]} and of model {other.model[:12]} cannot be "
                "mixed: extract both with one model"
            )
        if other.normalized != self.normalized:
            raise AugSelfError("normalised features cannot be mixed with others: extract again")
        if other.label_names != self.label_names:
            raise AugSelfError(
                f"the labels mean different classes: {self.label_names[:5]} ... and "
                f"{other.label_names[:5]} ..."
            )

    def split(self, name: str) -> FeatureTable:
        """The rows of one split.

        Raises:
            AugSelfError: there are none.
        """
        rows = [number for number, split in enumerate(self.splits) if split == name]
        if not rows:
            there = sorted({split for split in self.splits if split is not None})
            raise AugSelfError(f"no row is of split {name!r}: there are {there}")
        return FeatureTable(
            ids=[self.ids[row] for row in rows],
            labels=self.labels[rows],
            label_names=self.label_names,
            splits=[name] * len(rows),
            features=self.features[rows],
            model=self.model,
            normalized=self.normalized,
        )


@dataclass(frozen=True)
class DifferenceTable:
    """The predicted differences of N pairs of images under one model.

    Args:
        a, b: the images' names; a difference is what takes a to b.
        values: e.g. color_brightness -> (N,) float32, NaN where it is not observable; of a head
            with classes (N, classes) probabilities.
        units: of the values, by the same names.
        model: sha256 of the encoder's graph.
    """

    a: list[str]
    b: list[str]
    values: dict[str, np.ndarray]
    units: dict[str, str]
    model: str

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> DifferenceTable:
        """Read the folder an extraction of pairs has written. Raises as FeatureTable.read does."""
        folder = Path(folder)
        manifest = _manifest_of(folder, DIFFERENCES)
        table = _read_rows(folder, manifest)
        fields = [field for field in table.schema if field.name not in ("a", "b")]
        return cls(
            a=table["a"].to_pylist(),
            b=table["b"].to_pylist(),
            values={field.name: _numbers(table[field.name]) for field in fields},
            units={field.name: field.metadata[b"unit"].decode() for field in fields},
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


def _manifest_of(folder: Path, kind: str) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest["table"] != kind:
        reader = {TABLE: "FeatureTable", DIFFERENCES: "DifferenceTable"}[manifest["table"]]
        raise AugSelfError(f"{folder} holds {manifest['table']}: read it with {reader}.read")
    return manifest


def _read_rows(folder: Path, manifest: dict[str, Any]) -> Any:
    """All rows in order."""
    npy = manifest["layout"] == "npy"
    paths = [folder / IDS] if npy else sorted(folder.glob(PARTS))
    tables = [read_part(path, manifest["model"]["sha256"]) for path in paths]
    rows = sum(table.num_rows for table in tables)
    if rows != manifest["counts"]["rows"]:
        raise AugSelfError(
            f"{folder} has {rows} rows, its manifest {manifest['counts']['rows']}: extract again"
        )
    import pyarrow as pa

    return pa.concat_tables(tables).combine_chunks()


def read_part(path: Path, model: str, columns: list[str] | None = None) -> Any:
    """One part of a table as a pyarrow.Table, its checksums verified.

    Args:
        model: sha256 of the encoder's graph: features of different models cannot be compared.
        columns: those wanted; None: all.

    Raises:
        AugSelfError: it is damaged, or comes from another model.
        MissingExtra: without pyarrow.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("pyarrow", "serve") from error
    try:
        table = parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise AugSelfError(f"{path} is damaged: extract again") from error
    found = (table.schema.metadata or {}).get(MODEL_KEY, b"none").decode()
    if found != model:
        raise AugSelfError(
            f"{path} comes from model {found[:12]}, not {model[:12]}: mixed, extract again"
        )
    return table


def _features(folder: Path, table: Any) -> np.ndarray:
    if (folder / ARRAY).is_file():
        return np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
    return _numbers(table["features"])


def _numbers(column: Any) -> np.ndarray:
    """A column of numbers, or of lists of one length -> (N,) or (N, length)."""
    whole = column.combine_chunks()
    if hasattr(whole.type, "list_size"):
        return whole.flatten().to_numpy().reshape(len(whole), -1)
    return whole.to_numpy(zero_copy_only=False)
