"""Extraction on a Ray cluster, or on a Ray of this machine's own: `augself extract --engine ray`.

    the driver   holds the destination's lock, hands out shards, counts
    a worker     an actor with a session of its own: shard k of the source -> part k, on the disk

Plain actors, not Ray Data: that moves blocks of rows and decides on their order, their cut and the
names of files; its checkpoints (2.60) keep every row's id, load all of them and trust the files.
Here a shard is a unit of work already, a part that is whole is its checkpoint, whose checksums are
read again, and only numbers travel through Ray.
What kills a worker costs its shard, which Ray gives to the worker's successor; what kills the
driver costs every worker's shard, and the same command goes on.
"""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from augself_hub.errors import AugSelfError
from augself_hub.hub import EMBEDDED_NAME
from augself_hub.images import Shard
from serving.extraction.parts import Counts, Parts
from serving.extraction.pipeline import PartMaker, Work
from serving.extraction.tables import TableSettings
from serving.inference.engine import DIGESTS, Engine, load
from serving.inference.providers import ON_CPUS

RETRIES = 3  # of a shard whose worker died


def fill(work: Work) -> Counts:
    """Make the parts on a cluster, or on a Ray of this machine's own where it belongs to none.

    RAY_ADDRESS names the cluster, as for every program of Ray.

    Raises:
        AugSelfError: a node does not see the same files or model, or a shard kills every worker.
    """
    with _ray():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, needs, threads = room(work.engine.provider, nodes, work.workers)
        actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **needs)(Worker)
        arguments = (work.parts.folder.resolve(), Model.of(work.engine), work.settings, threads)
        return _handed_out(
            work, [actor.remote(*arguments) for _ in range(min(count, len(work.shards)))]
        )


@contextmanager
def _ray() -> Iterator[None]:
    """Connected, as the caller is or until the end."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of our own reports to nobody
    ray.init(include_dashboard=False, logging_level="WARNING")
    try:
        yield
    finally:
        ray.shutdown()


def room(
    provider: str, nodes: Sequence[dict[str, float]], wanted: int | None
) -> tuple[int, dict[str, int], int]:
    """How many workers a cluster has room for, what each takes of it, and its threads.

    A worker is a core, which reads, decodes and runs the model; on GPUs it is a GPU and its share
    of its node's cores, on the node where that is least: an actor that fits no node is never
    started. Nothing else needs a core: there are no readers, and the driver waits.

    Args:
        provider: the driver's. nodes: CPU and GPU of each. wanted: workers.

    Raises:
        AugSelfError: the model runs on GPUs here, and the cluster has none.
    """
    there = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if provider in ON_CPUS:
        return wanted or max(1, sum(cores for cores, _ in there)), {"num_cpus": 1}, 1
    if not any(gpus for _, gpus in there):
        raise AugSelfError("the Ray cluster has no GPU: add nodes that do, or give --device cpu")
    threads = max(1, min(cores // gpus for cores, gpus in there if gpus))
    count = wanted or sum(gpus for _, gpus in there)
    return count, {"num_cpus": threads, "num_gpus": 1}, threads


@dataclass(frozen=True)
class Model:
    """The driver's model, for a worker to load.

    Args:
        digests: by their names in `DIGESTS`.
    """

    folder: Path
    name: str
    precision: str
    decode: str
    digests: dict[str, str | None]
    provider: str

    @classmethod
    def of(cls, engine: Engine) -> Model:
        decode, folder = engine.preprocessing.decode, engine.folder.resolve()
        return cls(folder, engine.name, engine.precision, decode, engine.digests, engine.provider)

    def load(self) -> Engine:
        """From its folder where this node sees it, else by its name.

        Raises:
            AugSelfError: it is another one here, or it has not the driver's provider.
        """
        named = None if self.name == EMBEDDED_NAME else self.name
        device = self.provider.removesuffix("ExecutionProvider").lower()
        place = str(self.folder) if self.folder.is_dir() else named
        engine = load(place, device, 1, self.precision, self.decode)
        for name, word in DIGESTS.items():
            here, there = ((d or "none")[:12] for d in (engine.digests[name], self.digests[name]))
            if here != there:
                raise AugSelfError(
                    f"{engine.name} on {platform.node()}: {word} is {here}, on the driver {there}: "
                    "give every node the same"
                )
        return engine


class Worker:
    """An actor. A restarted one loads the model again.

    Args:
        folder: of the table. threads: batches at once.
    """

    def __init__(self, folder: Path, model: Model, settings: TableSettings, threads: int) -> None:
        self.parts = Parts(folder)
        self.model, self.settings, self.threads = model, settings, threads

    @cached_property
    def maker(self) -> PartMaker:
        return PartMaker(self.parts, self.model.load(), self.settings, self.threads)

    def part(self, number: int, shard: Shard, digest: str) -> tuple[Counts, bool]:
        """One shard's part, and whether it was there already.

        Args:
            digest: of the shard, as the driver sees it.

        Raises:
            AugSelfError: this node sees another source, or no destination.
        """
        if shard.digest != digest:
            raise AugSelfError(
                f"{shard.name} on {platform.node()} is not what the driver sees: put SOURCE on a "
                "file system that every node shares, and leave it as it is meanwhile"
            )
        if not self.parts.data.is_dir():
            raise _not_shared(self.parts)
        part = self.parts.read(number, digest)
        if part is not None:
            return part, True
        [part] = self.maker.make([(number, shard)], lambda images, errors: None)
        return part, False


def _handed_out(work: Work, workers: Sequence[Any]) -> Counts:
    """Each worker gets the next shard when it is done with the one before.

    Its first comes when it has started: one there is no room for yet is not waited for.
    """
    following = enumerate(work.shards)
    waiting: dict[Any, tuple[Any, int | None]] = {
        worker.__ray_ready__.remote(): (worker, None) for worker in workers
    }
    left, total = len(work.shards), Counts()
    while left:
        [done], _ = ray.wait(list(waiting))
        worker, number = waiting.pop(done)
        made = _result(done, "starting" if number is None else work.shards[number].name)
        if number is not None:
            if not work.parts.has(number):
                raise _not_shared(work.parts)
            part, kept = made
            (work.progress.keep if kept else work.progress.add)(part.images, part.errors)
            total, left = total.plus(part), left - 1
        if (asked := next(following, None)) is not None:
            number, shard = asked
            coming = worker.part.remote(number, _undigested(shard), shard.digest)
            waiting[coming] = (worker, number)
    return total


def _result(done: Any, doing: str) -> Any:
    """What a worker answered; what it raised, as it raised it."""
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from error
    except RayActorError as error:
        raise AugSelfError(
            f"a worker and its {RETRIES} successors died: {doing}; perhaps for want of memory, "
            "Ray's log says more. The parts written so far are kept; give fewer --threads"
        ) from error


def _not_shared(parts: Parts) -> AugSelfError:
    return AugSelfError(
        f"{parts.folder} on {platform.node()} is not the folder that other nodes see: put --output "
        "on a file system that every node shares"
    )


def _undigested(shard: Shard) -> Shard:
    """The shard without the digest it remembers, so that a node has to look at its own files."""
    copied = copy.copy(shard)
    copied.__dict__.pop("digest", None)
    return copied
