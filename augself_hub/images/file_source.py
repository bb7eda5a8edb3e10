"""A source that is a list of image files, and its shards. Which files: `folders`, `listed`."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from augself_hub.errors import ImageError
from augself_hub.images.files import read_file, stamp
from augself_hub.images.inventory import Inventory, Tally
from augself_hub.images.source import UNLABELED, Item, Listing, class_name, no_split
from augself_hub.images.words import same_split


@dataclass(frozen=True)
class FileSource:
    """N image files, or pairs of them, in a fixed order.

    Args:
        root: what relative names start from.
        names: of each image, or of each pair; that of an image is where it is below the root.
        labels: N numbers, UNLABELED where there is none. splits: N, or None for none at all.
        kind: folder, list, glob or pairs. tally: what was found and left out. notes: further ones.
        problems: position -> why there is no image.
    """

    location: str
    root: Path
    names: Sequence[str | tuple[str, str]]
    labels: array[int]
    classes: list[str]
    splits: list[str | None] | None
    kind: str
    tally: Tally
    advice: str
    notes: tuple[str, ...] = ()
    problems: dict[int, str] = field(default_factory=dict)

    @cached_property
    def inventory(self) -> Inventory:
        notes = list(self.notes)
        if self.problems:
            position, problem = next(iter(self.problems.items()))
            count, name = len(self.problems), self.names[position]
            notes.append(f"{count} cannot be read, the first is {name}: {problem}")
        numbers = Counter(self.labels)
        numbers.pop(UNLABELED, None)
        classes = {class_name(self, n) or "": count for n, count in numbers.most_common()}
        splits = self.splits or ()
        return self.tally.inventory(
            self.location, self.kind, len(self.names), classes, splits, notes
        )

    def chosen(self, split: str) -> FileSource:
        there = self.inventory.splits
        kept = [i for i, name in enumerate(self.splits or ()) if same_split(name, split)]
        if not kept:
            raise no_split(self.location, split, list(there))
        assert self.splits is not None
        tally = Tally.of(self.inventory)
        for name, count in there.items():
            if not same_split(name, split):
                tally.left_out[f"split {name}"] += count
        if rest := len(self.names) - len(kept) - sum(tally.left_out[f"split {n}"] for n in there):
            tally.left_out["in no split"] += rest
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in kept],
            labels=array("i", (self.labels[i] for i in kept)),
            splits=[self.splits[i] for i in kept],
            problems={new: self.problems[i] for new, i in enumerate(kept) if i in self.problems},
            tally=tally,
            notes=self.inventory.notes,
        )

    def shards(self, rows: int) -> list[FileShard]:
        return [
            FileShard(
                self.root,
                self.names[start : start + rows],
                self.labels[start : start + rows],
                self.splits and self.splits[start : start + rows],
                {i - start: p for i, p in self.problems.items() if start <= i < start + rows},
            )
            for start in range(0, len(self.names), rows)
        ]

    def listing(self) -> Listing:
        names = [name if isinstance(name, str) else " -> ".join(name) for name in self.names]
        return Listing(names, self.labels, self.splits, _ReadFile(self))


@dataclass(frozen=True)
class _ReadFile:
    """A class and not a closure, so that worker processes can receive it."""

    source: FileSource

    def __call__(self, index: int) -> bytes:
        if (problem := self.source.problems.get(index)) is not None:
            raise ImageError(problem)
        return read_file(self.source.root / str(self.source.names[index]))


@dataclass(frozen=True)
class FileShard:
    """Consecutive rows of a list; `splits` and `problems` as in the source."""

    root: Path
    names: Sequence[str | tuple[str, str]]
    labels: Sequence[int]
    splits: Sequence[str | None] | None
    problems: dict[int, str]

    @property
    def name(self) -> str:
        first, last = ((n,) if isinstance(n, str) else n for n in (self.names[0], self.names[-1]))
        return f"{first[0]} ... {last[-1]}"

    @property
    def images(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Of names, labels, splits, and every file's size and time of change."""
        seen = hashlib.sha256()
        for item in self.items():
            stamps = [stamp(self.root / name) for name in item.names]
            seen.update(repr((item.names, item.label, item.split, stamps)).encode())
        return seen.hexdigest()

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        for row, name in enumerate(self.names):
            names: tuple[str, ...] = (name,) if isinstance(name, str) else name
            label = self.labels[row] if self.labels[row] != UNLABELED else None
            split = self.splits[row] if self.splits else None
            problem = self.problems.get(row)
            paths = () if problem else tuple(self.root / n for n in names)
            yield Item(names, paths, label, split, problem)
