"""Extraction from Python: what `augself extract` calls, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import DifferenceTable, FeatureTable
from augself_hub.images import Columns, Options, Source
from augself_hub.lazy import needs
from augself_hub.paths import path_text
from serving.extraction.destination import Counts
from serving.extraction.pipeline import SHARD_ROWS, Summary, Work, fill_here
from serving.extraction.pipeline import extract as write_table
from serving.extraction.tables import Settings
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
    Images that cannot be read are no rows: `table.errors` names them.

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
    if max_errors is not None:
        limit_of(max_errors)  # a wrong one is refused before any work
    given = Options(
        Columns.parse(tuple(columns)),
        split,
        read_as,
        image_root=None if image_root is None else Path(path_text("image_root", image_root)),
    )
    settings = Settings(dtype, normalize, pairs)
    summary = written(
        source,
        output,
        None if model is None else path_text("model", model),
        settings,
        given,
        layout=layout,
        shard_rows=shard_rows,
        device=device,
        precision=precision,
        decode=decode,
        workers=threads,
        where=engine,
        progress=progress,
    )
    refuse_errors(summary, output, max_errors)
    return (DifferenceTable if pairs else FeatureTable).read(output)


def written(
    source: Given,
    output: str | os.PathLike[str],
    model: str | None,
    settings: Settings,
    options: Options,
    *,
    layout: str,
    shard_rows: int,
    device: str,
    precision: str,
    decode: str,
    workers: int | None,
    where: str,
    progress: bool | None = None,
) -> Summary:
    """Write the table, and say what was done. Raises as `extract` does."""
    for name, value, known in (
        ("layout", layout, LAYOUTS),
        ("dtype", settings.dtype, DTYPES),
        ("engine", where, ENGINES),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r}: give {' or '.join(known)}")
    for name, count in (("shard_rows", shard_rows), ("threads", 1 if workers is None else workers)):
        if type(count) is not int or count < 1:
            raise UsageError(f"{name} {count!r}: give a whole number of at least 1")
    return write_table(
        _plain(source),
        path_text("output", output),
        load(model, device, 1, precision, decode),
        settings,
        options=options,
        layout=layout,
        shard_rows=shard_rows,
        workers=workers,
        fill=_filler(where),
        progress=progress,
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


def _filler(where: str) -> Callable[[Work], Counts]:
    """Who makes the parts of a table: local or ray."""
    if where == "local":
        return fill_here
    with needs("fleet"):
        from serving.fleet.ray_extraction import fill
    return fill


def refuse_errors(
    summary: Summary, output: str | os.PathLike[str], allowed: int | float | str | None
) -> None:
    """
    Raises:
        UsageError: `allowed` is neither a number of images nor a share of them.
        AugSelfError: more images than that cannot be read.
    """
    if allowed is None:
        return
    counts, limit = summary.counts, limit_of(allowed)
    if counts.errors > limit(counts.images):
        raise AugSelfError(
            f"{counts.errors} of {counts.images} images cannot be read, more than "
            f"--max-errors {allowed}: {Path(output) / 'errors.jsonl'} says why"
        )


def limit_of(allowed: int | float | str) -> Callable[[int], float]:
    """`10` -> at most ten errors; `0.01` or `1%` -> at most that share of the images."""
    text = str(allowed)
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"--max-errors {text}: write a number (10) or a share (0.01 or 1%)")
    share = text.endswith("%") or "." in text
    return lambda images: number * (images if share else 1)
