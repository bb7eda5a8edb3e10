"""Batch extraction: a folder of images -> a parquet table of features.

    the sorted list of images is cut into shards; shard k of the source becomes part k of the table

A part appears by one rename, with its errors inside it (the file's metadata), so what a killed run
leaves is a set of whole parts and nothing else. Images are decoded in threads while the session
runs. Order, and so the output, depends on the source alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.features import ERRORS, FORMAT, MANIFEST, MODEL_KEY
from augself_hub.preprocess import SUFFIXES, load
from serving.cores import usable_cores
from serving.engine import MAX_BATCH, Engine

SHARD_ROWS = 4096
ERRORS_KEY = b"augself.errors"
_AHEAD = 4 * MAX_BATCH  # images decoded or being decoded beyond the batch that runs
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A folder of images, one class a sub-folder or no classes.

    Args:
        folder: where the images are.
        ids: their paths below it, posix, sorted.
    """

    folder: Path
    ids: list[str]

    @classmethod
    def scan(cls, folder: Path) -> Source:
        """Every image below the folder, by suffix; hidden files and folders are left out.

        Raises:
            AugSelfError: no folder, or no image in it.
        """
        if not folder.is_dir():
            raise AugSelfError(f"{folder} is not a folder: give a folder of images")
        below = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        ids = sorted(_id(p) for p in below if not any(x.startswith(".") for x in p.parts))
        if not ids:
            raise AugSelfError(f"{folder} holds no image ({', '.join(SUFFIXES)})")
        return cls(folder, ids)

    @cached_property
    def label_names(self) -> list[str]:
        return sorted({name for i in self.ids if (name := class_of(i)) is not None})

    def shards(self, rows: int) -> list[list[str]]:
        return [self.ids[start : start + rows] for start in range(0, len(self.ids), rows)]


@dataclass(frozen=True)
class Counts:
    """images = rows + errors."""

    images: int = 0
    rows: int = 0
    errors: int = 0

    def plus(self, part: pa.Table, errors: int) -> Counts:
        images = part.num_rows + errors
        return Counts(self.images + images, self.rows + part.num_rows, self.errors + errors)


def _id(path: Path) -> str:
    """A name that is not UTF-8 has no place in the table: escaped, it ends among the errors."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def class_of(image: str) -> str | None:
    """The first folder of an id, None for an image that lies in the source folder itself."""
    name, slash, _ = image.partition("/")
    return name if slash else None


def extract(
    source: Path, destination: Path, engine: Engine, shard_rows: int = SHARD_ROWS
) -> Counts:
    """Write the features of every image of a folder (see `augself_hub.features`).

    Args:
        source: a folder of images; the first sub-folder of a path is the image's class.
        destination: a folder that does not exist yet.
        shard_rows: images in one part.

    Raises:
        AugSelfError: no image could be read, or the destination exists.
    """
    images = Source.scan(source)
    _create(destination)
    counts = Counts()
    with _progress(len(images.ids)) as bar, ThreadPoolExecutor(usable_cores()) as pool:
        for number, ids in enumerate(images.shards(shard_rows)):
            part = extract_shard(images, ids, engine, pool, bar)
            _write_part(destination / f"part-{number:05}.parquet", part)
            counts = counts.plus(part, len(_errors(part)))
            _tell(bar, counts, len(images.ids))
    _write_errors(destination)
    if not counts.rows:
        raise AugSelfError(
            f"none of the {counts.images} images in {source} can be read: "
            f"{destination / ERRORS} says why"
        )
    _write(destination / MANIFEST, json.dumps(_manifest(images, engine, counts), indent=2) + "\n")
    return counts


def extract_shard(
    source: Source, ids: Sequence[str], engine: Engine, pool: ThreadPoolExecutor, bar: tqdm
) -> pa.Table:
    """One shard of the source -> one part of the table, its errors in the metadata.

    It depends on nothing but its arguments, so any shard may be computed at any time, anywhere.
    """
    good: list[str] = []
    errors: list[dict[str, str]] = []
    features: list[np.ndarray] = [np.empty((0, engine.spec.features), np.float32)]
    for batch in _batched(_loaded(source, ids, engine.preprocessing.size, pool)):
        images = [image for _, image in batch if isinstance(image, np.ndarray)]
        good += [i for i, image in batch if isinstance(image, np.ndarray)]
        errors += [{"id": i, "reason": reason} for i, reason in batch if isinstance(reason, str)]
        features += [engine.features(images)] if images else []
        bar.update(len(batch))
    return _table(source, good, np.concatenate(features), errors, engine)


def _loaded(
    source: Source, ids: Sequence[str], side: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, np.ndarray | str]]:
    """(id, image or the reason there is none) in order, decoded a bounded number ahead."""
    ahead: deque[tuple[str, Future[np.ndarray | str]]] = deque()
    for image in ids:
        ahead.append((image, pool.submit(_load, source.folder / image, side)))
        if len(ahead) >= _AHEAD:
            name, future = ahead.popleft()
            yield name, future.result()
    for name, future in ahead:
        yield name, future.result()


def _load(path: Path, side: int) -> np.ndarray | str:
    try:
        return load(path, side)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "cannot be read"


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(items, MAX_BATCH)):
        yield batch


def _table(
    source: Source,
    ids: list[str],
    features: np.ndarray,
    errors: list[dict[str, str]],
    engine: Engine,
) -> pa.Table:
    numbers = {name: i for i, name in enumerate(source.label_names)}
    labels = [numbers.get(class_of(i)) for i in ids]  # type: ignore[arg-type]
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.int32()),
        "features": pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1]),
    }
    metadata = {MODEL_KEY: engine.sha256, ERRORS_KEY: json.dumps(errors)}
    return pa.table(columns).replace_schema_metadata(metadata)


def _errors(part: pa.Table) -> list[dict[str, str]]:
    return json.loads(part.schema.metadata[ERRORS_KEY])


def _create(destination: Path) -> None:
    try:
        destination.mkdir(parents=True)
    except FileExistsError:
        raise AugSelfError(f"{destination} exists: choose another output or remove it") from None


def _write_part(path: Path, part: pa.Table) -> None:
    hidden = path.with_name(f".{path.name}")
    try:
        parquet.write_table(part, hidden)
        hidden.rename(path)
    finally:
        hidden.unlink(missing_ok=True)


def _write_errors(destination: Path) -> None:
    """errors.jsonl from what the parts say."""
    schemas = (parquet.read_schema(path) for path in sorted(destination.glob("part-*.parquet")))
    errors = [e for schema in schemas for e in json.loads(schema.metadata[ERRORS_KEY])]
    _write(destination / ERRORS, "".join(json.dumps(error) + "\n" for error in errors))


def _write(path: Path, text: str) -> None:
    hidden = path.with_name(f".{path.name}")
    hidden.write_text(text)
    hidden.rename(path)


def _manifest(source: Source, engine: Engine, counts: Counts) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": {"name": engine.name, "sha256": engine.sha256, "features": engine.spec.features},
        "preprocessing": dataclasses.asdict(engine.preprocessing),
        "provider": engine.provider,
        "label_names": source.label_names,
        "counts": dataclasses.asdict(counts),
    }


def _progress(total: int) -> AbstractContextManager[tqdm]:
    """A bar on a terminal; elsewhere `_tell` writes lines."""
    return tqdm(total=total, unit="image", disable=not sys.stderr.isatty())


def _tell(bar: tqdm, counts: Counts, total: int) -> None:
    if bar.disable:
        logger.info("%d of %d images, %d errors", counts.images, total, counts.errors)
