"""A cosine index over a feature table: the images most like one, without comparing it with all.

    index.usearch    a graph of small worlds (HNSW, Malkov & Yashunin, arXiv:1603.09320) and vectors
    manifest.json    the table and model it is of, the rows of each part, the recall; written last

Rows are numbered through all parts of the table. Names and labels stay in the table, which the
index finds beside itself: its path is relative, and its manifest's sha256 must be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from usearch.index import Index

from augself_hub.configs import read_json
from augself_hub.cores import usable_cores
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import MANIFEST, PARTS, TABLE, read_manifest, read_part
from augself_hub.folder import new_folder
from augself_hub.paths import path_text

FORMAT = 1
GRAPH = "index.usearch"
RECALL_AT, QUERIES = 10, 200
_STORED = {"float32": "f32", "float16": "f16"}
_TIE = 1e-6  # cosines this near are equal


@dataclass(frozen=True)
class Match:
    """One row of the table.

    Args:
        id, label: the image's name and its class's, if it has one.
        part: of the table, and shard of the source, that holds it.
        cosine: between its features and the query's, -1 to 1.
    """

    id: str
    label: str | None
    part: int
    cosine: float


def build(table: Path, output: Path) -> dict[str, Any]:
    """Index a table that `augself extract` has written.

    Args:
        table: of features, in parquet. output: a new folder.

    Returns:
        The index's manifest. Its recall_at_10 is measured: of `QUERIES` rows of the table, spread
        evenly, how many of the ten that brute force finds nearest (or as near) are found.

    Raises:
        UsageError: the table cannot be indexed.
        AugSelfError: it is not finished or is damaged, the output exists, the disk is full.
    """
    table, output = Path(path_text("table", table)), Path(path_text("output", output))
    manifest = read_manifest(table)
    if manifest["table"] != TABLE:
        raise UsageError(f"{table} holds {manifest['table']}: give a table of features")
    if manifest["layout"] != "parquet":
        raise UsageError(f"{table} is of --format {manifest['layout']}: extract it as parquet")
    if manifest["counts"]["rows"] < 2:
        raise UsageError(f"{table} has one row: there is nothing to search")
    rows, width = manifest["counts"]["rows"], manifest["model"]["features"]
    asked = np.unique(np.linspace(0, rows - 1, min(rows, QUERIES)).astype(np.int64))
    with new_folder(output) as folder:
        graph = Index(ndim=width, metric="cos", dtype=_STORED[manifest["dtype"]])
        parts = []
        for features in _parts(table, manifest):
            numbers = np.arange(len(graph), len(graph) + len(features), dtype=np.uint64)
            graph.add(numbers, features, threads=usable_cores())
            parts.append(len(features))
        if sum(parts) != rows:
            raise AugSelfError(f"{table} has {sum(parts)} rows, not {rows}: extract again")
        try:
            graph.save(folder / GRAPH)
        except (RuntimeError, ValueError, OSError) as error:  # usearch's share no class
            raise AugSelfError(f"{output} cannot be written, make room: {error}") from error
        made = {
            "format": FORMAT,
            "table": os.path.relpath(table.resolve(), output.resolve()),
            "table_sha256": _sha256(table),
            "model": manifest["model"],
            "bytes": (folder / GRAPH).stat().st_size,
            "parts": parts,
            "recall_at_10": _recall(graph, table, manifest, asked),
        }
        (folder / MANIFEST).write_text(json.dumps(made, indent=2) + "\n")
    return made


def _parts(table: Path, manifest: dict[str, Any]) -> Iterator[np.ndarray]:
    """The features (N, D) of each part, in order.

    Raises:
        AugSelfError: a part is damaged or comes from another model.
    """
    for path in sorted(table.glob(PARTS)):
        part = read_part(path, manifest["model"]["sha256"], ["features"])
        features = part["features"].combine_chunks()
        yield features.flatten().to_numpy().reshape(-1, features.type.list_size)


def _recall(graph: Index, table: Path, manifest: dict[str, Any], asked: np.ndarray) -> float:
    """Share of the answers to some rows that are as near as brute force's; not to themselves."""
    count = min(RECALL_AT, len(graph) - 1)
    queries = _unit(_rows(_parts(table, manifest), asked))
    found = np.stack([_others(graph, q, n, count) for q, n in zip(queries, asked, strict=True)])
    best = np.full((len(asked), count), -np.inf, np.float32)
    near = best.copy()
    start = 0
    for features in _parts(table, manifest):
        cosines = queries @ _unit(features.astype(np.float32)).T
        own = (asked >= start) & (asked < start + len(features))
        cosines[own, asked[own] - start] = -np.inf
        here = (found >= start) & (found < start + len(features))
        near[here] = cosines[np.nonzero(here)[0], found[here] - start]
        best = -np.sort(-np.concatenate([best, cosines], axis=1), axis=1)[:, :count]
        start += len(features)
    return float((near >= best[:, -1:] - _TIE).mean())


def _rows(parts: Iterator[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The features (Q, D) float32 of some rows, whose numbers rise."""
    found, start = [], 0
    for features in parts:
        inside = numbers[(numbers >= start) & (numbers < start + len(features))]
        found.append(features[inside - start].astype(np.float32))
        start += len(features)
    return np.concatenate(found)


def _others(graph: Index, query: np.ndarray, number: int, count: int) -> np.ndarray:
    """The rows found for a row; itself where there are fewer than `count`, which is no answer."""
    keys = graph.search(query, count + 1).keys.astype(np.int64)
    others = keys[keys != number][:count]
    return np.pad(others, (0, count - len(others)), constant_values=number)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _sha256(table: Path) -> str:
    """Of the table's manifest, which names its model, its source and every shard's content."""
    return hashlib.sha256((table / MANIFEST).read_bytes()).hexdigest()


class FeatureIndex:
    """An index, open: mapped, not read into memory.

    Args:
        folder: what `build` has written.

    Attributes:
        manifest: the index's. table: where its table is.

    Raises:
        AugSelfError: this is no whole index, or its table is gone or has changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, _read(folder)
        self.table = (folder / self.manifest["table"]).resolve()
        if not (self.table / MANIFEST).is_file():
            raise AugSelfError(
                f"the table of {folder} is not at {self.table}: move it back, or make the index "
                "again with augself index"
            )
        if _sha256(self.table) != self.manifest["table_sha256"]:
            raise AugSelfError(
                f"{self.table} has changed since {folder} was made: make the index again with "
                "augself index"
            )
        graph = folder / GRAPH
        if not graph.is_file() or graph.stat().st_size != self.manifest["bytes"]:
            raise AugSelfError(f"{graph} is damaged: make the index again with augself index")
        try:
            restored = Index.restore(graph, view=True)
        except (RuntimeError, ValueError, KeyError, TypeError):  # usearch's share no class
            restored = None
        shape = sum(self.manifest["parts"]), self.manifest["model"]["features"]
        if restored is None or (len(restored), restored.ndim) != shape:
            raise AugSelfError(f"{graph} is damaged: make the index again with augself index")
        self._graph = restored

    @property
    def rows(self) -> int:
        return len(self._graph)

    @cached_property
    def table_manifest(self) -> dict[str, Any]:
        return read_manifest(self.table)

    def search(self, features: np.ndarray, count: int) -> list[Match]:
        """The rows whose features are most like (D,) ones, by cosine, best first.

        Raises:
            UsageError: the table has fewer rows.
        """
        if count > self.rows:
            raise UsageError(f"-k {count}: {self.table} has {self.rows} rows")
        found = self._graph.search(features, count)
        ends = np.cumsum(self.manifest["parts"])
        if len(found.keys) and int(found.keys.max()) >= ends[-1]:
            raise AugSelfError(f"{self.folder / GRAPH} is damaged: make the index again")
        parts = np.searchsorted(ends, found.keys.astype(np.int64), side="right")
        places = found.keys.astype(np.int64) - (ends - self.manifest["parts"])[parts]
        matches = zip(parts.tolist(), places.tolist(), found.distances.tolist(), strict=True)
        names, found_rows = self.table_manifest["label_names"], []
        for part, place, distance in matches:
            row = self._rows(part).slice(place, 1).to_pylist()[0]
            if row["label"] is not None and not 0 <= row["label"] < len(names):
                raise AugSelfError(f"{self.table}: a label is none of the {len(names)} names")
            label = None if row["label"] is None else names[row["label"]]
            found_rows.append(Match(row["id"], label, part, 1 - distance))
        return found_rows

    def _rows(self, part: int) -> pa.Table:
        path = sorted(self.table.glob(PARTS))[part]
        return parquet.read_table(path, columns=["id", "label"])


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST)
        known = manifest["format"] == FORMAT and type(manifest["bytes"]) is int
        parts, model = manifest["parts"], manifest["model"]
        texts = (manifest["table"], manifest["table_sha256"], model["sha256"], model["name"])
        counts = all(type(n) is int and 0 <= n < 2**31 for n in (*parts, model["features"]))
        if known and parts and counts and all(isinstance(text, str) for text in texts):
            return manifest
    except (AugSelfError, KeyError, TypeError):
        pass
    raise AugSelfError(f"{folder} is no index: make one with augself index TABLE --output INDEX")


def refuse_other_model(index: FeatureIndex, sha256: str, name: str) -> None:
    """
    Raises:
        UsageError: the features of this model mean nothing to the index.
    """
    model = index.manifest["model"]
    if model["sha256"] != sha256:
        raise UsageError(
            f"{index.folder} is of model {model['name']} ({model['sha256'][:12]}), not of {name} "
            f"({sha256[:12]}): give --model {model['name']}"
        )
