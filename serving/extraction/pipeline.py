"""Batch extraction: images -> a table of features, or pairs of images -> predicted differences.

    a source cuts itself into shards; shard k of the source becomes part k of the table

`extract_shards` is the whole inner loop. It depends on nothing but its arguments, so any shard may
be computed at any time, anywhere: in this process (`fill_here`) or on a cluster
(`serving.fleet.ray_extraction`). Here one thread a core takes a batch from bytes to rows: no core
waits for another, also not at a shard's end, and while one decodes, another may run the model.
Order, and so the output, depends on the source alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from augself_hub.cores import usable_cores
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.features import TABLE
from augself_hub.folder import MANIFEST, file_sha256
from augself_hub.images import (
    AS_FOUND,
    Inventory,
    Item,
    Options,
    Shard,
    ShardError,
    Source,
    open_source,
)
from serving.extraction.destination import Destination
from serving.extraction.parts import Counts, Part, Parts
from serving.extraction.plan import plan_of
from serving.extraction.progress import Progress
from serving.extraction.tables import PLAIN, TableSettings, difference_table, feature_table
from serving.inference.engine import Engine, load

logger = logging.getLogger(__name__)
SHARD_ROWS = 2048
BATCH = 16  # at the end all cores wait for the last batch, so it should be small
_AHEAD = 2  # batches a worker that wait or are done but not yet taken


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Args:
        counts: of the whole table. inventory: of the source. seconds: of this run.
        computed: images of this run; the others were there already.
        images_per_second: of those computed.
    """

    counts: Counts
    inventory: Inventory
    seconds: float
    computed: int
    images_per_second: float


@dataclass(frozen=True)
class Work:
    """What `extract` hands to whoever makes the parts of a table.

    Args:
        parts: those that are there, and where the others go. shards: shard k becomes part k.
        engine: in this process, with one thread of its own.
        progress: told of what is done.
        workers: at once; None: as many as there are cores for.
    """

    parts: Parts
    shards: Sequence[Shard]
    engine: Engine
    settings: TableSettings
    progress: Progress
    workers: int | None


class PartMaker:
    """Makes parts of a table with one engine, `workers` batches at once.

    Leaving it drops what waits: a run that has failed does not finish.
    """

    def __init__(self, parts: Parts, engine: Engine, settings: TableSettings, workers: int) -> None:
        self.parts, self.engine, self.settings, self.workers = parts, engine, settings, workers
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make(
        self, shards: Sequence[tuple[int, Shard]], done: Callable[[int, int], None]
    ) -> Iterator[Counts]:
        """The parts of shards, which come with their numbers, one after the other in this order."""
        parts = extract_shards(
            (shard for _, shard in shards),
            self.engine,
            self.settings,
            self._pool,
            self.workers,
            done,
        )
        for (number, shard), part in zip(shards, parts, strict=True):
            yield self.parts.write(number, part, shard.digest, self.engine.sha256)


def fill_here(work: Work) -> Counts:
    """Make the parts that are not there, one after the other in this process, a batch a core."""
    total, missing = Counts(), []
    for number, shard in enumerate(work.shards):
        part = work.parts.read(number, shard.digest)
        if part is None:
            missing.append((number, shard))
        else:
            work.progress.keep(part.images, part.errors)
            total = total.plus(part)
    workers = work.workers or usable_cores()
    with PartMaker(work.parts, work.engine, work.settings, workers) as maker:
        for part in maker.make(missing, work.progress.add):
            total = total.plus(part)
    return total


def extract(
    source: str | Path | Sequence[str | Path] | Source,
    destination: str | Path,
    engine: Engine,
    settings: TableSettings = PLAIN,
    *,
    options: Options = AS_FOUND,
    layout: str = "parquet",
    shard_rows: int = SHARD_ROWS,
    workers: int | None = None,
    fill: Callable[[Work], Counts] = fill_here,
    progress: bool | None = None,
) -> Summary:
    """Write the features of every image of a source (see `augself_hub.features`).

    What an unfinished run has left in the destination is gone on with.

    Args:
        source: a path, a glob, a URL or a Hub id (see docs/data-sources.md), a list of paths, or
            any `Source`.
        destination: a new folder, or one that the same call began.
        engine: with one thread of its own; `workers` of them run at once.
        options: what chooses where a source leaves a choice.
        layout: parquet, or npy: one features.npy beside ids.parquet.
        shard_rows: images in one part, where the source lets itself be cut.
        workers: threads; None: the usable cores.
        fill: makes the parts; `serving.fleet.ray_extraction.fill` does so on a Ray cluster.
        progress: a bar; None: on a terminal and in a notebook.

    Raises:
        UsageError: the source has more shards than a table may have parts.
        AugSelfError: no image can be read, the input is not what it was when the destination was
            begun, somebody else writes there, or the disk is full.
    """
    images = open_source(source, options, pairs=settings.pairs)
    logger.info("%s", images.inventory.text())
    shards = images.shards(shard_rows)
    plan = plan_of(images, shards, engine, settings, options, layout, shard_rows)
    known = [shard.images for shard in shards if shard.images is not None]
    total = sum(known) if len(known) == len(shards) else None
    with Destination(Path(destination)) as there, Progress(total, progress) as shown:
        if there.begin(plan):
            there.clean(layout == "parquet")
            counts = Counts(**there.manifest()["counts"])
            return Summary(counts, images.inventory, shown.seconds, 0, 0.0)
        counts = fill(Work(there.parts, shards, engine, settings, shown, workers))
        _finish(there, images, plan, counts)
        computed = shown.done - shown.kept
        return Summary(counts, images.inventory, shown.seconds, computed, shown.rate)


def extract_shards(
    shards: Iterable[Shard],
    engine: Engine,
    settings: TableSettings,
    pool: Executor,
    workers: int,
    done: Callable[[int, int], None] = lambda images, errors: None,
) -> Iterator[Part]:
    """Shards of the source -> a part of the table each, in order.

    While the last batches of one are computed, those of the next are begun.

    Args:
        pool: where batches are computed, `workers` at a time.
        done: told of the images and errors of each batch.
    """

    def extracted(batch: _Batch) -> tuple[int, pa.Table, list[dict[str, str]]]:
        if isinstance(batch.items, Exception):
            raise batch.items
        return batch.shard, *extract_batch(batch.items, engine, settings)

    left_out: dict[int, Counter[str]] = defaultdict(Counter)
    batches = (
        batch
        for number, shard in enumerate(shards)
        for batch in _batches(number, shard, left_out[number])
    )
    results = _in_order(pool, extracted, batches, _AHEAD * workers)
    for number, some in groupby(results, key=itemgetter(0)):
        tables, errors = [], []
        for _, table, failed in some:
            tables.append(table)
            errors += failed
            done(table.num_rows + len(failed), len(failed))
        yield Part(pa.concat_tables(tables).combine_chunks(), errors, dict(left_out.pop(number)))


def extract_batch(
    items: Sequence[Item], engine: Engine, settings: TableSettings
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Items -> the rows of those that can be read, and {id, reason} of those that cannot."""
    good, errors = [], []
    for item in items:
        try:
            good.append((item, [engine.preprocessing.prepare(image) for image in item.read()]))
        except ImageError as error:
            errors.append({"id": item.id, "reason": str(error)})
        except OSError as error:
            errors.append({"id": item.id, "reason": error.strerror or "cannot be read"})
    readable = [item for item, _ in good]
    if settings.pairs:
        images = [found[side] for side in (0, 1) for _, found in good]
        answered = engine.predict(images) if images else None
        return difference_table(readable, engine.spec, answered), errors
    images = [image for _, found in good for image in found]
    features = engine.features(images) if images else np.empty((0, engine.spec.features), "f4")
    return feature_table(readable, features, settings), errors


class _Batch(NamedTuple):
    """A few items of a shard, by its place; or the error instead of which they would come."""

    shard: int
    items: list[Item] | Exception


def _batches(number: int, shard: Shard, left_out: Counter[str]) -> Iterator[_Batch]:
    """All of a shard. The first is empty: it gives the columns where no image can be read.

    An error takes its turn, so that the shards before it are done with when it is raised. What
    damage leaves of a shard is used, and the damage itself is one more item.
    """
    yield _Batch(number, [])

    def items() -> Iterator[Item]:
        try:
            yield from shard.items(lambda reason, name: left_out.update([reason]))
        except ShardError as error:
            yield Item((shard.name,), (), problem=str(error))

    coming = items()
    try:
        while some := list(islice(coming, BATCH)):
            yield _Batch(number, some)
    except Exception as error:
        yield _Batch(number, error)


def _in_order(
    pool: Executor, run: Callable[[Any], Any], inputs: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """pool.map, but no more than `ahead` inputs are taken before their results are."""
    waiting: deque[Future[Any]] = deque()
    for one in inputs:
        waiting.append(pool.submit(run, one))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finish(there: Destination, source: Source, plan: dict[str, Any], counts: Counts) -> None:
    left_out = there.write_errors()
    if not counts.rows:
        there.clean(keep_parts=False)  # so that nothing stands in the next run's way
        if not counts.images:
            reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
            rest = f"; left out: {reasons}" if reasons else ""
            raise AugSelfError(f"{source.location} holds no image{rest}")
        raise AugSelfError(
            f"none of the {counts.images} images in {source.location} can be read: "
            f"{there.errors} says why"
        )
    if plan["layout"] == "npy":
        model = plan["model"]
        there.write_array(counts.rows, model["features"], plan["dtype"], model["sha256"])
    names = source.classes
    if plan["table"] == TABLE and not names:
        names = [str(number) for number in range(there.largest_label() + 1)]
    inventory = source.inventory
    if inventory.images is None:  # now it is known
        inventory = dataclasses.replace(
            inventory,
            found=counts.images + sum(left_out.values()),
            images=counts.images,
            left_out=left_out,
        )
    manifest = {
        **plan,
        "label_names": names,
        "counts": dataclasses.asdict(counts),
        "inventory": inventory.record(),
    }
    there.finish(manifest, keep_parts=plan["layout"] == "parquet")


def extract_with(
    model: str,
    device: str,
    source: str | Path | Sequence[str | Path] | Source,
    destination: str | Path,
    **options: Any,
) -> Summary:
    """`extract` with an engine that is loaded here: for whoever has none, as evaluation.

    Args:
        model: a model folder. options: as of `extract`.
    """
    manifest = file_sha256(Path(model) / MANIFEST)
    return extract(source, destination, _engine(model, device, manifest), **options)


@lru_cache(maxsize=1)
def _engine(model: str, device: str, manifest: str) -> Engine:
    """One engine for the many lists of an evaluation.

    Args:
        manifest: its sha256, as the folder may be another model's the next time.
    """
    return load(model, device, 1)
