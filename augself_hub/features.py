"""FeatureTable and DifferenceTable: what extraction writes, and evaluation and notebooks read.

manifest.json                 model, preprocessing, provider, counts, label names; written last
data/part-00000.parquet ...   of images: id, label (int32 or null), split (or null), features
                              (float32[D] or float16[D]); of pairs: a, b and a column a number;
                              the file's metadata names the model it came from
features.npy, ids.parquet     instead of data/ where `--format npy` was asked for
errors.jsonl                  one {"id", "reason"} a line for what could not be read
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from augself_hub.configs import MAX_FEATURES, read_json
from augself_hub.errors import AugSelfError, MissingExtra, UsageError
from augself_hub.lazy import needs
from augself_hub.neighbours import nearest
from augself_hub.paths import path_text

FORMAT, DIFFERENCES_FORMAT = 1, 2  # of 1 a table of differences had numbers alone
ERROR, REASON = "_standard_error", "_reason"  # behind a number's name: what is said of it
MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"
PARTS = "data/part-*.parquet"
ARRAY = "features.npy"
IDS = "ids.parquet"
TABLE, DIFFERENCES = "features", "differences"
MODEL_KEY = b"augself.model.sha256"
SHOWN = 5  # rows in a notebook


class Row(NamedTuple):
    """One image of a table: its label is the class's name, None where it has none."""

    id: str
    label: str | None
    split: str | None
    features: np.ndarray


@dataclass(frozen=True, repr=False, eq=False)
class FeatureTable:
    """The features of N images under one model.

    len(table), table[3] (a `Row`), table[10:20], table[[4, 2]], table[table.labels == 1] (tables),
    `for row in table`; `to_pandas`, `to_polars`, `to_arrow`; `nearest`.

    Args:
        ids: names of the N images, e.g. paths below the source folder.
        labels: (N,) int32 indices into `label_names`; -1 where an image has none.
        label_names: the class names, sorted.
        splits: N times train, test ...; None where the source does not say.
        features: (N, D) float32 or float16.
        model: sha256 of the encoder's graph.
        normalized: every row has length 1.
        errors: (name, reason) of every image that has no row, as it could not be read.
    """

    ids: list[str]
    labels: np.ndarray
    label_names: list[str]
    splits: list[str | None]
    features: np.ndarray
    model: str
    normalized: bool
    errors: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> FeatureTable:
        """Read the folder an extraction has written. Of an .npy the rows stay on the disk.

        Raises:
            AugSelfError: no finished table of features is there, or its parts come from several
                models.
            MissingExtra: without pyarrow.
        """
        folder = Path(path_text("folder", folder))
        manifest = _manifest_of(folder, TABLE)
        table = _read_rows(folder, manifest)
        return cls(
            ids=table["id"].to_pylist(),
            labels=table["label"].fill_null(-1).to_numpy(),
            label_names=manifest["label_names"],
            splits=table["split"].to_pylist(),
            features=_features(folder, table, manifest),
            model=manifest["model"]["sha256"],
            normalized=manifest["normalized"],
            errors=_errors(folder),
        )

    @classmethod
    def concatenate(cls, tables: Sequence[FeatureTable]) -> FeatureTable:
        """The rows of several tables, e.g. of a train and a test set, in one.

        Raises:
            AugSelfError: they come from different models, or their rows cannot be compared.
            UsageError: there are none.
        """
        if not tables:
            raise UsageError("there is no table to concatenate: give at least one")
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
            errors=tuple(error for table in tables for error in table.errors),
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
        return self[rows]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, which: int | np.integer[Any]) -> Row: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | np.ndarray) -> FeatureTable: ...

    def __getitem__(self, which: Any) -> Row | FeatureTable:
        """A row by its number; or a table of those that a slice, numbers or a mask choose."""
        if isinstance(which, int | np.integer):
            number = range(len(self))[which]
            label = int(self.labels[number])
            name = None if label < 0 else self.label_names[label]
            return Row(self.ids[number], name, self.splits[number], self.features[number])
        if not isinstance(which, slice):
            which = np.asarray(which)
            which = which if which.size else which.astype(np.int64)  # of an empty list it is float
        return replace(
            self,
            ids=[self.ids[number] for number in np.arange(len(self))[which]],
            labels=self.labels[which],
            splits=[self.splits[number] for number in np.arange(len(self))[which]],
            features=self.features[which],
            errors=(),
        )

    def nearest(
        self, queries: int | np.ndarray | FeatureTable, k: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images nearest to some features, by cosine, the nearest first.

        Example:
            numbers, cosines = table.nearest(encoder.features(["query.jpg"])[0])
            table[numbers].ids

        Args:
            queries: (D,) or (Q, D) features of the same model; a table of it; or the number of one
                of these rows, which is not its own neighbour.
            k: how many; fewer where the table has fewer.

        Returns:
            Row numbers and cosines, (k,) each for one query, (Q, k) for several.

        Raises:
            UsageError: features of another width or that are no numbers, as those of a skipped
                image; no whole number k. AugSelfError: a table of another model.
        """
        own = queries if isinstance(queries, int | np.integer) else None
        if isinstance(queries, bool) or not isinstance(k, int | np.integer) or isinstance(k, bool):
            raise UsageError(f"nearest takes a row or features and a whole number k, not k={k!r}")
        if isinstance(queries, FeatureTable):
            self._refuse_different(replace(queries, label_names=self.label_names))
            queries = queries.features
        given = self.features[own] if own is not None else np.asarray(queries)
        wanted = np.atleast_2d(given).astype(np.float32)
        width = self.features.shape[1]
        if given.ndim not in (1, 2) or wanted.shape[1] != width or k < 1:
            raise UsageError(
                f"nearest takes (Q, {width}) features and k of 1 or more, not {given.shape}, k={k}"
            )
        if not (whole := np.isfinite(wanted).all(axis=1)).all():
            raise UsageError(
                f"query {int(np.argmin(whole))} has features that are no numbers, as those of an "
                "image that was skipped: leave it out"
            )
        numbers, cosines = nearest(wanted, self.features, k + (own is not None))
        if own is not None:
            others = numbers[0] != range(len(self))[own]
            numbers, cosines = (side[:, others][:, :k] for side in (numbers, cosines))
        return (numbers[0], cosines[0]) if given.ndim == 1 else (numbers, cosines)

    def to_arrow(self) -> Any:
        """A pyarrow.Table: id, label (the class's name), split, features (a list of D numbers)."""
        with needs("serve"):
            import pyarrow as pa
        features = np.ascontiguousarray(self.features)
        names = [None if label < 0 else self.label_names[label] for label in self.labels.tolist()]
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "label": pa.array(names, pa.string()),
            "split": pa.array(self.splits, pa.string()),
            "features": pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1]),
        }
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of the same columns; each of `features` is a (D,) array."""
        import pandas

        rows = self.to_arrow().drop_columns(["features"]).to_pandas()
        rows["features"] = pandas.Series(list(self.features), index=rows.index, dtype=object)
        return rows

    def to_polars(self) -> Any:
        """A polars.DataFrame of the same columns; `features` is an Array of width D."""
        import polars

        return polars.from_arrow(self.to_arrow())

    def __repr__(self) -> str:
        parts = [f"{len(self):,} images", f"{self.features.shape[1]} features"]
        parts[1] += f" ({self.features.dtype})"
        if self.label_names:
            parts.append(f"{len(self.label_names)} classes")
        splits = Counter(split for split in self.splits if split is not None)
        parts += [", ".join(f"{name} {n:,}" for name, n in splits.items())] if splits else []
        parts += [f"{len(self.errors):,} unreadable"] if self.errors else []
        return f"FeatureTable({', '.join(parts)}, model {self.model[:12]})"

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        heads = "".join(f"<th>{name}</th>" for name in Row._fields)
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in row[:3])
            + f"<td>{', '.join(f'{v:.3f}' for v in row.features[:4])} ...</td></tr>"
            for row in (self[number] for number in range(min(len(self), SHOWN)))
        )
        return (
            f"<p>{escape(repr(self))}</p><table><thead><tr>{heads}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )


def _errors(folder: Path) -> tuple[tuple[str, str], ...]:
    path = folder / ERRORS
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        errors = [json.loads(line) for line in lines]
        return tuple((str(error["id"]), str(error["reason"])) for error in errors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AugSelfError(f"{path} is damaged: extract again") from error


@dataclass(frozen=True, repr=False, eq=False)
class DifferenceTable:
    """The predicted differences of N pairs of images under one model.

    len(table); `to_arrow`, `to_pandas`, `to_polars`.

    Args:
        a, b: the images' names; a difference is what takes a to b.
        values: e.g. color_brightness -> (N,) float32, NaN where it cannot be told; of a head with
            classes (N, classes) probabilities.
        units: of the values, by the same names.
        model: sha256 of the encoder's graph.
        errors: standard errors of the values, (N,), by the same names; of the matcher each pair's.
        reasons: why a value is NaN, N texts or None each, by the same names.
        match: (N,) probability that both images show one thing, NaN where the model cannot tell;
            None: a table of version 0.1, which has neither errors nor reasons.
        unreadable: ("a -> b", reason) of every pair that has no row, as it could not be read.
    """

    a: list[str]
    b: list[str]
    values: dict[str, np.ndarray]
    units: dict[str, str]
    model: str
    errors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    reasons: dict[str, list[str | None]] = dataclasses.field(default_factory=dict)
    match: np.ndarray | None = None
    unreadable: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> DifferenceTable:
        """Read the folder an extraction of pairs has written. Raises as FeatureTable.read does."""
        folder = Path(path_text("folder", folder))
        manifest = _manifest_of(folder, DIFFERENCES)
        table = _read_rows(folder, manifest)
        names = [name for name in table.column_names if name not in ("a", "b", "match")]
        numbers = [name for name in names if not name.endswith((ERROR, REASON))]
        return cls(
            a=table["a"].to_pylist(),
            b=table["b"].to_pylist(),
            values={name: _numbers(table[name]) for name in numbers},
            units={name: table.field(name).metadata[b"unit"].decode() for name in numbers},
            model=manifest["model"]["sha256"],
            errors={n: _numbers(table[n + ERROR]) for n in numbers if n + ERROR in names},
            reasons={n: table[n + REASON].to_pylist() for n in numbers if n + REASON in names},
            match=_numbers(table["match"]) if "match" in table.column_names else None,
            unreadable=_errors(folder),
        )

    def __len__(self) -> int:
        return len(self.a)

    def __repr__(self) -> str:
        lost = f"{len(self.unreadable):,} unreadable, " if self.unreadable else ""
        return f"DifferenceTable({len(self):,} pairs, {lost}{', '.join(self.values)})"

    def to_arrow(self) -> Any:
        """A pyarrow.Table: a, b, match, and a column a number, null where it cannot be told, beside
        its error and the reason."""
        with needs("serve"):
            import pyarrow as pa
        columns: dict[str, Any] = {"a": pa.array(self.a), "b": pa.array(self.b)}
        if self.match is not None:
            columns["match"] = pa.array(self.match, mask=np.isnan(self.match))
        for name, values in self.values.items():
            if values.ndim == 1:
                columns[name] = pa.array(values, mask=np.isnan(values))
            else:
                hidden = np.isnan(values).any(axis=1)
                rows = [
                    None if no else row for no, row in zip(hidden, values.tolist(), strict=True)
                ]
                columns[name] = pa.array(rows, pa.list_(pa.float32(), values.shape[1]))
            if name in self.errors:
                errors = self.errors[name]
                columns[name + ERROR] = pa.array(errors, mask=np.isnan(errors))
            if name in self.reasons:
                columns[name + REASON] = pa.array(self.reasons[name], pa.string())
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of the same columns."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """A polars.DataFrame of the same columns."""
        import polars

        return polars.from_arrow(self.to_arrow())


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a finished extraction."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AugSelfError(f"{path} is missing: this is not a finished extraction")
    manifest = read_json(path)
    if manifest.get("format") not in (FORMAT, DIFFERENCES_FORMAT):
        raise AugSelfError(
            f"{path} is not of format {FORMAT} or {DIFFERENCES_FORMAT}: upgrade augself-hub"
        )
    for field, (kinds, wanted) in _FIELDS.items():
        value: Any = manifest
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if type(value) not in kinds or not (wanted is None or wanted(value)):
            raise AugSelfError(f"{path} cannot be read: {field} is {repr(value)[:40]}")
    return manifest


_Check = Callable[[Any], bool] | None
_FIELDS: dict[str, tuple[tuple[type, ...], _Check]] = {
    "table": ((str,), lambda v: v in (TABLE, DIFFERENCES)),
    "layout": ((str,), lambda v: v in ("parquet", "npy")),
    "model.name": ((str,), str.isprintable),
    "model.sha256": ((str,), lambda v: re.fullmatch("[0-9a-f]{64}", v) is not None),
    "model.features": ((int,), lambda v: 1 <= v <= MAX_FEATURES),
    "counts.rows": ((int,), lambda v: 0 <= v < 2**31),
    "dtype": ((str,), lambda v: v in ("float32", "float16")),
    "normalized": ((bool,), None),
    "shard_rows": ((int,), lambda v: v >= 1),
    "source": ((dict,), lambda v: isinstance(v.get("location"), str)),
    "label_names": ((list,), lambda v: all(isinstance(name, str) for name in v)),
}


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

    table = pa.concat_tables(tables).combine_chunks()
    if manifest["table"] == TABLE:
        _check_columns(folder, table, manifest)
    return table


def _check_columns(folder: Path, table: Any, manifest: dict[str, Any]) -> None:
    """Raises AugSelfError where a column is not what the manifest says: names it."""
    import pyarrow as pa

    wanted = {"id": pa.string(), "label": pa.int32(), "split": pa.string()}
    if manifest["layout"] == "parquet":
        number = pa.type_for_alias(manifest["dtype"])
        wanted["features"] = pa.list_(number, manifest["model"]["features"])
    for name, kind in wanted.items():
        there = table.schema.get_field_index(name) >= 0 and table.schema.field(name).type
        same = there == kind or (name == "split" and there == pa.null())
        if not same or (name in ("id", "features") and table[name].null_count):
            raise AugSelfError(f"{folder}: column {name} holds {there}, not {kind}: extract again")
    labels = table["label"].drop_null().to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest["label_names"]):
        raise AugSelfError(f"{folder}: a label is none of the {len(manifest['label_names'])} names")


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
    from augself_hub.images.parquet_files import refuse_bomb

    try:
        refuse_bomb(parquet.read_metadata(path), path.stat().st_size)
        table = parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise AugSelfError(f"{path} is damaged: extract again") from error
    found = (table.schema.metadata or {}).get(MODEL_KEY, b"none").decode()
    if found != model:
        raise AugSelfError(
            f"{path} comes from model {found[:12]}, not {model[:12]}: mixed, extract again"
        )
    return table


def _features(folder: Path, table: Any, manifest: dict[str, Any]) -> np.ndarray:
    if manifest["layout"] == "parquet":
        return _numbers(table["features"])
    path = folder / ARRAY
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
    except Exception as error:  # numpy reads the header by Python's own tokenizer and parser
        raise AugSelfError(f"{path} is damaged: extract again") from error
    wanted = (table.num_rows, manifest["model"]["features"]), manifest["dtype"]
    if not isinstance(array, np.ndarray) or (array.shape, array.dtype.name) != wanted:
        raise AugSelfError(f"{path} is no array of {wanted[0]} {wanted[1]}: extract again")
    return array


def _numbers(column: Any) -> np.ndarray:
    """A column of numbers, or of lists of one length -> (N,) or (N, length)."""
    whole = column.combine_chunks()
    if hasattr(whole.type, "list_size"):
        rows: np.ndarray = whole.flatten().to_numpy().reshape(len(whole), -1)
        return rows
    values: np.ndarray = whole.to_numpy(zero_copy_only=False)
    return values
