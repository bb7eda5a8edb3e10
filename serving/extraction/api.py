"""Extraction from Python: what `augself extract` calls, too."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import DifferenceTable, FeatureTable
from augself_hub.images import Columns, Options, Source
from augself_hub.lazy import needs
from augself_hub.paths import path_text
from serving.extraction.pipeline import SHARD_ROWS, Summary, fill_here
from serving.extraction.pipeline import extract as write_table
from serving.extraction.tables import TableSettings
from serving.inference.engine import load

LAYOUTS, DTYPES, ENGINES = ("parquet", "npy"), ("float32", "float16"), ("local", "ray")
Given = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Source


def extract(
    source: Given,
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    columns: Sequence[str] = (),
    split: str | None = None,
    read_as: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    dtype: str = "float32",
    normalize: bool = False,
    layout: Literal["parquet", "npy"] = "parquet",
    shard_rows: int = SHARD_ROWS,
    max_errors: int | float | str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    decode: str = "exact",
    threads: int | None = None,
    engine: str = "local",
    progress: bool | None = None,
) -> FeatureTable | DifferenceTable:
    """Write the features of the images of a source as a table, and read it.

    The same call goes on with what an interrupted one has left; what is complete is only read.
    Images that cannot be read are no rows: `table.errors` names them, of pairs `table.unreadable`.

    Example:
        table = extract("PHOTOS", "features")
        table.to_pandas()

    Args:
        source: a folder (its sub-folders are the classes), a glob, a list of paths, a .txt or CSV,
            tars, parquet files, org/name ... (docs/data-sources.md).
        output: a new folder, or one that the same call began.
        model: a model folder or Hub id; None: the embedded model.
        columns: ROLE=NAME texts, of sources that have columns. split: the only one wanted.
        read_as: what a folder is to be read as. image_root: where paths of a table may lead, too.
        pairs: the source is a CSV of pairs a, b: predict differences, a `DifferenceTable`.
        dtype: of the features, float32 or float16. normalize: scale each row to length 1.
        layout: parquet, or npy: one features.npy beside ids.parquet.
        shard_rows: images in one part of the table.
        max_errors: raise if more images cannot be read: 10, 0.01 or "1%"; None: any number may.
        device, precision, decode: as `Encoder` takes them.
        threads: batches computed at once; None: the usable cores. engine: local, or ray.
        progress: a bar; None: on a terminal and in a notebook.

    Raises:
        UsageError: an option that is wrong or has no effect on such a source.
        AugSelfError: no image can be read, too many cannot, the folder holds something else.
    """
    asked = Extraction(
        None if model is None else path_text("model", model),
        device=device,
        precision=precision,
        decode=decode,
        reading=Options(
            Columns.parse(tuple(columns)),
            split,
            read_as,
            image_root=None if image_root is None else Path(path_text("image_root", image_root)),
        ),
        settings=TableSettings(dtype, normalize, pairs),
        layout=layout,
        shard_rows=shard_rows,
        max_errors=max_errors,
        threads=threads,
        engine=engine,
    )
    asked.refuse_errors(asked.write(source, output, progress), output)
    return (DifferenceTable if pairs else FeatureTable).read(output)


@dataclass(frozen=True)
class Extraction:
    """What an extraction is asked for, checked before any work.

    Args:
        model, device, precision, decode: the engine, see `load`.
        reading: how the source is read. settings: what is computed and how it is kept.
        layout, shard_rows, max_errors, threads, engine: as `extract` takes them.

    Raises:
        UsageError: one that cannot be.
    """

    model: str | None
    device: str
    precision: str
    decode: str
    reading: Options
    settings: TableSettings
    layout: str
    shard_rows: int
    max_errors: int | float | str | None
    threads: int | None
    engine: str

    def __post_init__(self) -> None:
        if self.max_errors is not None:
            limit_of(self.max_errors)
        for name, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("dtype", self.settings.dtype, DTYPES),
            ("engine", self.engine, ENGINES),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r}: give {' or '.join(known)}")
        threads = 1 if self.threads is None else self.threads
        for name, count in (("shard_rows", self.shard_rows), ("threads", threads)):
            if type(count) is not int or count < 1:
                raise UsageError(f"{name} {count!r}: give a whole number of at least 1")
        if self.settings.pairs:
            for name, given in (
                ("--format", self.layout != "parquet"),
                ("--dtype", self.settings.dtype != "float32"),
                ("--normalize", self.settings.normalize),
            ):
                if given:
                    raise UsageError(f"{name} is for features: --pairs writes differences")

    def write(
        self, source: Given, output: str | os.PathLike[str], progress: bool | None = None
    ) -> Summary:
        """Write the table, and say what was done. Raises as `extract` does."""
        fill = fill_here
        if self.engine == "ray":
            with needs("fleet"):
                from serving.fleet.ray_extraction import fill as fill_on_ray
            fill = fill_on_ray
        return write_table(
            _plain(source),
            path_text("output", output),
            load(self.model, self.device, 1, self.precision, self.decode),
            self.settings,
            options=self.reading,
            layout=self.layout,
            shard_rows=self.shard_rows,
            workers=self.threads,
            fill=fill,
            progress=progress,
        )

    def refuse_errors(self, summary: Summary, output: str | os.PathLike[str]) -> None:
        """Raises AugSelfError where more images than `max_errors` cannot be read."""
        if self.max_errors is None:
            return
        counts, limit = summary.counts, limit_of(self.max_errors)
        if counts.errors > limit(counts.images):
            raise AugSelfError(
                f"{counts.errors} of {counts.images} images cannot be read, more than "
                f"--max-errors {self.max_errors}: {Path(output) / 'errors.jsonl'} says why"
            )


def _plain(source: Any) -> Any:
    """A text, a list of texts, or a source that is open already."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if hasattr(source, "shards"):
        return source
    if not isinstance(source, Sequence) or isinstance(source, bytes):
        raise UsageError(f"{type(source).__name__} is no source: give a folder, or a list of paths")
    if not source:
        raise UsageError("the list of paths is empty: give at least one image")
    for number, path in enumerate(source):
        if not isinstance(path, str | os.PathLike):
            raise UsageError(
                f"image {number} is no path but {type(path).__name__}: extract reads files; "
                "Encoder().features takes images"
            )
    return [os.fspath(path) for path in source]


def limit_of(allowed: int | float | str) -> Callable[[int], float]:
    """`10` -> at most ten errors; `0.01`, `1e-2` or `1%` -> at most that share of the images."""
    text = str(allowed)
    share = not text.isdecimal()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number <= (1 if share else sys.float_info.max):
        raise UsageError(f"--max-errors {text}: write a number (10) or a share (0.01 or 1%)")
    return lambda images: number * (images if share else 1)
