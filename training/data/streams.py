"""Streams: images that are read in order, shard by shard, and never all listed.

Any source of augself_hub.images is one where --stream asks for it (or `stream:` before the source):
tars at URLs or compressed ones, a Hugging Face data set that is not downloaded first.

An epoch is `images` images. It is cut into partitions, each read by one worker of one process:

    shards, permuted by (seed, epoch), dealt to 16 partitions at most (2, 4, 8, ... of fewer shards)
    partition -> its shards one after another -> a keyed shuffle buffer -> position 0, 1, 2, ...
    batch b of an epoch = the next positions of partition b mod partitions

So an image of a stream is asked for like one of a list: by (epoch, (partition, position)). What
that is depends on (seed, epoch, partition, position) alone; the order of an epoch does not depend
on workers, and a resumed run reads on where it was: it reads again, undecoded, what its partitions
have passed. Each byte is read once as long as workers times processes divides the number of
partitions; else partitions are read by several, and nothing but the reading is lost. The order
depends on how many images a process takes at a time, hence on the number of processes, which a
resume compares; the views never do.

No image comes twice in an epoch unless its partition has run out, which is then dealt shards anew,
with other views; so is one whose shards have nothing to train on. What an epoch leaves out, others
bring: the shards are dealt anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import AS_FOUND, Inventory, Options, Shard, ShardError, open_source
from augself_hub.images.source import UNLABELED
from augself_hub.preprocess import decode
from augself_hub.progress import counted
from training.data.batches import Counted, KeyedSampler, Read, Views
from training.data.sources import Images, key_of, one_split

PARTITIONS = 16
SHARD_ROWS = 2048  # of a shard, where the source has no cut of its own
BUFFER = 4096  # undecoded images that wait to be drawn, of all partitions together
HELD_OUT_EVERY = 20
PATIENCE = 1000  # images in a row that cannot be decoded


class Sample(NamedTuple):
    """An undecoded image: its name shard/key, its bytes, its label; why there are no bytes."""

    name: str
    data: bytes
    label: int
    problem: str = ""


def samples_of(
    shard: Shard, left_out: Callable[[str, str], None] | None = None
) -> Iterator[Sample]:
    """The items of a shard; one that cannot be read has no bytes, and decoding it will say so.

    Args:
        left_out: called with (reason, name) of what is passed over.

    Raises:
        ShardError: the rest is damaged. AugSelfError: it cannot be reached.
    """
    for item in shard.items(left_out):
        data, problem = b"", ""
        try:
            data = item.read()[0]
        except (ImageError, OSError) as error:
            problem = str(error)
        yield Sample(item.id, data, UNLABELED if item.label is None else item.label, problem)


@dataclass(frozen=True)
class Stream:
    """Shards that make an endless supply of epochs.

    Args:
        shards: what there is to read.
        classes: label names; empty where they are not known before all is read.
        images: how many make an epoch.
        held_out: leave out one image in twenty, by their names (`held_out_images` takes them).
        labelled: leave out the images without a label.
        inventory: of its source. advice: what would give it labels.
    """

    shards: Sequence[Shard]
    classes: Sequence[str]
    images: int
    held_out: bool
    labelled: bool
    inventory: Inventory
    advice: str

    def __len__(self) -> int:
        return self.images

    @property
    def names(self) -> list[str]:
        return [shard.name for shard in self.shards]

    @property
    def labels(self) -> tuple[()]:
        """No label is known before it is read."""
        return ()

    @property
    def partitions(self) -> int:
        return min(PARTITIONS, 1 << (len(self.shards).bit_length() - 1))

    def trains_on(self, sample: Sample) -> bool:
        if self.labelled and sample.label == UNLABELED:
            return False
        return not (self.held_out and is_held_out(sample))


def open_stream(
    source: str,
    images: int | None,
    held_out: bool,
    labelled: bool = False,
    options: Options = AS_FOUND,
) -> Stream:
    """A stream of a source; nothing but what tells its shards is read yet.

    Args:
        source: as above.
        images: how many make an epoch.
        held_out: whether images are to be held out of it.
        labelled: whether images without a label are of no use.

    Raises:
        UsageError: no epoch length.
        AugSelfError: nothing is there.
    """
    if not images:
        raise UsageError(f"{source} does not say how long an epoch is: give --epoch-images")
    options = dataclasses.replace(options, stream=True)
    opened = one_split(open_source(source, options), options, ("train",))
    return Stream(
        opened.shards(SHARD_ROWS),
        opened.classes,
        images,
        held_out,
        labelled,
        opened.inventory,
        opened.advice,
    )


# -- In which order --------------------------------------------------------------------------------


class PartitionSampler(KeyedSampler):
    """Yields (epoch, (partition, position)) in order.

    Args:
        images: of an epoch.
        batch: images of one optimizer step; the last few that do not fill one are left out.
        share: images a process takes at a time. They are of one partition.
        partitions: how many there are.
    """

    def __init__(self, images: int, batch: int, share: int, partitions: int) -> None:
        super().__init__(images, 0, batch)
        self.share, self.partitions = share, partitions

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        epoch = self.epoch
        for n in range(self.length):
            share, within = divmod(n, self.share)
            before, partition = divmod(share, self.partitions)
            yield epoch, (partition, before * self.share + within)


class Partition:
    """One partition of one epoch: a window on its samples that moves forwards.

    Attributes:
        damaged: names of the shards whose rest could not be read, since it was last emptied.
        counted: what was in those that have ended, likewise.
    """

    def __init__(self, stream: Stream, seed: int, epoch: int, number: int) -> None:
        self.stream, self.seed, self.epoch, self.number = stream, seed, epoch, number
        self.damaged: list[str] = []
        self.counted: list[Counted] = []
        self.first = 0  # position of the window's first sample
        self._window: deque[tuple[int, Sample]] = deque()
        self._empty: set[int] = set()  # shards that have nothing to train on
        self._coming = self._repeated()

    def since(self, position: int) -> Iterator[tuple[int, Sample]]:
        """(repeat, sample) from a position on, which is not before `first`. Never ends."""
        while self.first < position:
            _ = self._window.popleft() if self._window else next(self._coming)
            self.first += 1
        for ahead in itertools.count():
            if ahead == len(self._window):
                self._window.append(next(self._coming))
            yield self._window[ahead]

    def _repeated(self) -> Iterator[tuple[int, Sample]]:
        """Where its shards have nothing, the next repeat deals it others."""
        for repeat in itertools.count():
            for sample in self._shuffled(self._samples(repeat), repeat):
                yield repeat, sample
            if len(self._empty) == len(self.stream.shards):
                raise AugSelfError(f"no images in {', '.join(self.stream.names[:3])} ...")

    def _samples(self, repeat: int) -> Iterator[Sample]:
        shards = self.stream.shards
        order = np.random.default_rng((self.seed, self.epoch, repeat)).permutation(len(shards))
        for number in order[self.number :: self.stream.partitions].tolist():
            if number in self._empty:
                continue
            found, images = False, 0
            left_out = Counter[str]()

            def note(reason: str, _: str, left_out: Counter[str] = left_out) -> None:
                left_out[reason] += 1

            try:
                for sample in samples_of(shards[number], note):
                    images += 1
                    if self.stream.trains_on(sample):
                        found = True
                        yield sample
            except ShardError:
                self.damaged.append(shards[number].name)
            self.counted.append(Counted(shards[number].name, images, tuple(left_out.items())))
            if not found:
                self._empty.add(number)

    def _shuffled(self, samples: Iterable[Sample], repeat: int) -> Iterator[Sample]:
        """A buffer from which a keyed choice is drawn whenever it is full."""
        random = np.random.default_rng((self.seed, self.epoch, repeat, self.number))
        room, buffer = BUFFER // self.stream.partitions, []
        for sample in samples:
            buffer.append(sample)
            if len(buffer) >= room:
                yield _drawn(buffer, random)
        while buffer:
            yield _drawn(buffer, random)


def _drawn(buffer: list[Sample], random: np.random.Generator) -> Sample:
    chosen = int(random.integers(len(buffer)))
    buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
    return buffer.pop()


def is_held_out(sample: Sample) -> bool:
    """One image in twenty, by its name."""
    return key_of(sample.name) % HELD_OUT_EVERY == 0


# -- What is made of it ----------------------------------------------------------------------------


class StreamViews(Views):
    """(epoch, (partition, position)) -> the views of an image of a stream.

    Args:
        images: the stream.
        policy, seed: as `Views` takes them.
    """

    def __init__(self, images: Stream, policy: Policy, seed: int) -> None:
        super().__init__(policy, seed)
        self.images = images
        self._partitions: dict[int, Partition] = {}

    def __len__(self) -> int:
        return len(self.images)

    def read(self, key: tuple[int, tuple[int, int]]) -> Read:
        epoch, (number, position) = key
        partition = self._partitions.get(number)
        if partition is None or partition.epoch != epoch or partition.first > position:
            # What is asked for lies before it: its beginning is read again.
            partition = self._partitions[number] = Partition(self.images, self.seed, epoch, number)
        repeat, asked = next(partition.since(position))
        image, label, skipped = _first_readable(partition.since(position))
        skipped += partition.damaged
        counted, partition.counted = partition.counted, []
        partition.damaged.clear()
        drawn = epoch + (repeat << 32), key_of(asked.name)
        return Read(image, label, drawn, skipped, counted)

    def sampler(self, seed: int, batch: int, share: int) -> PartitionSampler:
        return PartitionSampler(len(self), batch, share, self.images.partitions)

    def lost(self, skipped: set[str], epochs: float) -> float:
        """The share of what so many epochs read, or of the shards, that is among these names."""
        shards = skipped & set(self.images.names)
        return max(len(skipped) / (epochs * len(self)), len(shards) / len(self.images.shards))

    def check_readable(self) -> None:
        """Raise AugSelfError where nothing can be decoded. What it opens, it closes again."""
        _first_readable(Partition(self.images, self.seed, 0, 0).since(0))


def _first_readable(coming: Iterator[tuple[int, Sample]]) -> tuple[Image.Image, int, list[str]]:
    """The first image that can be decoded, its label, and the names of those that cannot."""
    skipped: list[str] = []
    reason = ""
    for _, sample in itertools.islice(coming, PATIENCE):
        try:
            return decode(sample.data), sample.label, skipped
        except ImageError as error:
            skipped.append(sample.name)
            reason = sample.problem or str(error)
    raise AugSelfError(
        f"none of {PATIENCE} images in a row can be decoded, from {skipped[0]} on; the last: "
        f"{reason}"
    )


def held_out_images(stream: Stream, most: int) -> Images:
    """What the stream leaves out, undecoded in memory: the first so many, in the shards' order.

    At most an epoch of images is read for it.
    """
    some = filter(is_held_out, itertools.islice(_all_samples(stream), len(stream)))
    return _listed(stream, some, most)


def labelled_images(stream: Stream, most: int) -> Images:
    """Those with a label among the first so many that the stream trains on, in the shards' order.

    They are undecoded in memory.
    """
    first = first_images(stream, most)
    return first.at([i for i, label in enumerate(first.labels) if label != UNLABELED])


def first_images(stream: Stream, most: int) -> Images:
    """The first so many that the stream trains on, in the shards' order, undecoded in memory."""
    return _listed(stream, filter(stream.trains_on, _all_samples(stream)), most)


def _all_samples(stream: Stream) -> Iterator[Sample]:
    for shard in stream.shards:
        with contextlib.suppress(ShardError):  # training will name it
            yield from samples_of(shard)


def _listed(stream: Stream, some: Iterable[Sample], most: int) -> Images:
    parts = ((sample,) for sample in itertools.islice(some, most))
    samples = [s for (s,) in counted(parts, most, "reading ahead in the stream", "image")]
    names, labels = [s.name for s in samples], [s.label for s in samples]
    keys, read = [key_of(name) for name in names], _Bytes([s.data for s in samples])
    return Images(names, labels, stream.classes, read, keys, inventory=stream.inventory)


@dataclass(frozen=True)
class _Bytes:
    """`read` of files that are in memory."""

    files: list[bytes]

    def __call__(self, index: int) -> Image.Image:
        return decode(self.files[index])
