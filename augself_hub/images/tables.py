"""Tables that hold images: parquet files and Hugging Face data sets are parts of one.

A cell is bytes, {"bytes", "path"}, a path below the table's folder, or base64. A label is a class
number or a name; a split is what a column, the part or its file's name says.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images.files import MAX_BYTES, name_of
from augself_hub.images.inventory import Inventory, Tally
from augself_hub.images.source import UNLABELED, Item, Listing, Shard, no_split
from augself_hub.images.words import MAX_NAME, Columns, Labels, same_split

READ_ROWS = 16  # undecoded images of a table in memory at once
# Nothing in it can be matched in two ways, so that a text is looked through once.
_BASE64 = re.compile(r"(?:data:image/[\w.+-]{1,100};base64,)?([A-Za-z0-9+/\s]{16,}={0,2})")
MAX_TEXT = MAX_BYTES // 3 * 4 + 200  # of an image in base64
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")


@dataclass(frozen=True)
class Rows:
    """How rows of a table become items.

    Args:
        columns: those that are read. rule: how labels are read.
        roots: the folders that paths in the table may lead into; relative ones start from the
            first.
        split: of every row, where no column says it. only: the rows of this split alone are wanted.
    """

    columns: Columns
    rule: Labels
    roots: tuple[Path, ...] = ()
    split: str | None = None
    only: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The columns to be read."""
        return [c for c in (self.columns.image, self.columns.label, self.columns.split) if c]

    def items(self, name: Callable[[int], str], rows: Iterable[dict[str, Any]]) -> Iterator[Item]:
        """Rows in order -> items; `name` gives what row n is called."""
        for number, row in enumerate(rows):
            split = self.split_of(row.get(self.columns.split or ""))
            if self.wants(split):
                yield self.item(name(number), row, split)

    def wants(self, split: str | None) -> bool:
        return self.only is None or same_split(split, self.only)

    def split_of(self, value: Any) -> str | None:
        text = "" if value is None else str(value).strip()
        text = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}..."
        return (text or None) if self.columns.split else self.split

    def item(self, name: str, row: dict[str, Any], split: str | None) -> Item:
        """The image's own path, where it has one, ends its name."""
        problem, label, image = None, None, row.get(self.columns.image or "")
        try:
            label = self.rule.number(row.get(self.columns.label or ""))
        except ValueError as error:
            problem = str(error)
        data, path = _data_and_path(image)
        if path is not None:
            end, wrong = end_of(path)
            name, problem = f"{name}/{end}" if end else name, problem or wrong
        found: bytes | Path | None = None
        if isinstance(data, (bytes, bytearray, memoryview)):
            if len(data) > MAX_BYTES:
                found, problem = b"", problem or f"the image has more than {MAX_BYTES} bytes"
            else:
                found = bytes(data)
        elif path is not None:
            found, wrong = self._below(path)
            problem = problem or wrong
        elif data is not None:
            problem = problem or f"the cell holds {type(data).__name__} and no image"
        if found is None:
            problem = problem or "the row has no image"
        return Item((name,), () if problem else (found,), label, split, problem)  # type: ignore[arg-type]

    def _below(self, path: str) -> tuple[Path | None, str | None]:
        """A path that a stranger wrote into the table may name any file of this machine."""
        if "://" in path:
            return None, "the image is a URL: download it first, for example with img2dataset"
        try:
            found = (self.roots[0] / path if self.roots else Path(path)).resolve()
            if any(found.is_relative_to(root.resolve()) for root in self.roots):
                return found, None
        except (OSError, ValueError, RuntimeError):
            return None, "no file can have such a name"
        return None, "its path leads out of the table's folder: --image-root DIR allows another"


def _data_and_path(cell: Any) -> tuple[Any, str | None]:
    """What a cell holds and what it names."""
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
    elif isinstance(cell, str):
        data = _decoded(cell)
        path = cell if data is None else None
    else:
        data, path = cell, None
    return data, path if isinstance(path, str) and path else None


def end_of(path: str) -> tuple[str, str | None]:
    """The last part of a path, for an image's name, and what is wrong with it."""
    return name_of(path.replace("\\", "/").rstrip("/").rpartition("/")[2])


def ends_of(column: Any) -> list[str] | None:
    """What each row's image adds to its name; None: nothing, as where there are bytes alone.

    Args:
        column: an Arrow column of images, or of their paths alone.
    """

    def end(cell: Any) -> str:
        path = _data_and_path(cell)[1]
        return "" if path is None else end_of(path)[0]

    ends = list(values_of(column, end))
    return ends if any(ends) else None


def values_of(column: Any, made: Callable[[Any], Any] = lambda value: value) -> Iterator[Any]:
    """What is made of each value of an Arrow column; of a dictionary's once, however often it is
    there: a table of 1 KB may repeat a text of 1 MB a million times."""
    for chunk in column.chunks:
        if (known := getattr(chunk, "dictionary", None)) is None:
            yield from map(made, chunk.to_pylist())
            continue
        done, nothing = [made(value) for value in known.to_pylist()], made(None)
        yield from (nothing if n is None else done[n] for n in chunk.indices.to_pylist())


def _decoded(text: str) -> bytes | None:
    """Base64 of something that begins as an image does; None: it is something else."""
    if (found := _BASE64.fullmatch(text.strip())) is None:
        return None
    try:
        data = base64.b64decode("".join(found[1].split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(_MAGIC) else None


@dataclass(frozen=True)
class Names(Sequence[str]):
    """The names of the rows of parts, made when they are asked for: part/0, part/1/dog.jpg ..."""

    parts: Sequence[str]
    counts: Sequence[int]
    ends: Sequence[Sequence[str] | None]

    @cached_property
    def _until(self) -> list[int]:
        return list(itertools.accumulate(self.counts))

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, row = self.place(index)
        ends = self.ends[part]
        end = ends[row] if ends else ""
        return f"{self.parts[part]}/{row}" + (f"/{end}" if end else "")

    def place(self, index: int) -> tuple[int, int]:
        """The part and the row in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._until, index)
        return part, index - (self._until[part - 1] if part else 0)


class Part(Protocol):
    """A file or a split.

    Attributes:
        name: what its rows' names begin with. split: of all its rows, unless a column says it.
        size: rows; None where only reading tells, and `reason` says why.
        labels, splits: those columns, as Arrow has them; None where there is none.
        ends: what the images' own paths add to the rows' names; None: nothing.
        roots: folders that paths in it may lead into.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def labels(self) -> Any: ...
    @property
    def splits(self) -> Any: ...
    @property
    def ends(self) -> Sequence[str] | None: ...
    @property
    def roots(self) -> tuple[Path, ...]: ...
    def shards(self, rows: Rows, count: int) -> Sequence[Shard]: ...


@dataclass(frozen=True)
class TableSource:
    """Parts in order.

    Args:
        kind: parquet or dataset.
        rows: how the rows of every part are read, but for what the part itself says.
        opened: parts -> for each one whose [row]["image"] is the row's cell.
        left_out: of the inventory: parts that were not chosen.
    """

    location: str
    kind: str
    parts: Sequence[Part]
    rows: Rows
    opened: Callable[[Sequence[Any]], Sequence[Any]]
    notes: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    advice = (
        "name the column of the classes with --column label=NAME (datasets' class_encode_column "
        "makes classes of a column)"
    )

    @property
    def classes(self) -> list[str]:
        return self.rows.rule.classes

    def _of(self, part: Part) -> Rows:
        return replace(self.rows, roots=part.roots, split=part.split)

    @cached_property
    def _known(self) -> tuple[array[int], list[str | None]]:
        """Labels and splits of all rows, also of those not chosen."""
        labels, splits = array("i"), list[str | None]()
        for part in self.parts:
            rows, size = self._of(part), part.size or 0

            def number(value: Any, rule: Labels = rows.rule) -> int:
                try:
                    found = rule.number(value)
                except ValueError:  # the item will say so
                    found = None
                return UNLABELED if found is None else found

            none = [number(None)] * size
            labels.extend(none if part.labels is None else values_of(part.labels, number))
            same = [rows.split_of(None)] * size
            splits += same if part.splits is None else values_of(part.splits, rows.split_of)
        return labels, splits

    @cached_property
    def inventory(self) -> Inventory:
        notes = [f"{part.name}: {part.reason}" for part in self.parts if part.reason]
        notes = [*notes[:3], *self.notes]
        if all(part.size is None for part in self.parts):
            return Inventory(self.location, self.kind, notes=tuple(notes))
        tally, (labels, splits) = Tally(), self._known
        tally.left_out.update(self.left_out)
        tally.found = len(labels) + sum(self.left_out.values())
        kept = [self.rows.wants(split) for split in splits]
        for split, wanted in zip(splits, kept, strict=True):
            if not wanted:
                tally.left_out[f"split {split}" if split else "in no split"] += 1
        used = [row for row, wanted in enumerate(kept) if wanted]
        counted = Counter(labels[row] for row in used if labels[row] != UNLABELED)
        classes = {
            self.classes[label] if self.classes else str(label): number
            for label, number in counted.most_common()
        }
        found_splits = Counter(splits[row] for row in used)
        return tally.inventory(self.location, self.kind, len(used), classes, found_splits, notes)

    def chosen(self, split: str) -> TableSource:
        if self.rows.columns.split is not None:
            there = self.inventory.splits
            if not any(same_split(name, split) for name in there):
                raise no_split(self.location, split, list(there))
            return replace(self, rows=replace(self.rows, only=split))
        kept = [part for part in self.parts if same_split(part.split, split)]
        if not kept:
            names = dict.fromkeys(part.split for part in self.parts if part.split)
            raise no_split(self.location, split, list(names))
        left_out = Counter(self.left_out)
        for part in self.parts:
            if part not in kept:
                left_out[f"split {part.split}"] += part.size or 0
        return replace(self, parts=kept, left_out=dict(left_out))

    def shards(self, rows: int) -> list[Shard]:
        return [shard for part in self.parts for shard in part.shards(self._of(part), rows)]

    def listing(self) -> Listing:
        """Of parquet files by way of datasets, which keeps an Arrow copy in its cache.

        Raises:
            UsageError: it can only be read in order.
        """
        if unknown := next((part for part in self.parts if part.size is None), None):
            raise UsageError(
                f"{self.location} can only be read in order, with --stream: {unknown.name}: "
                f"{unknown.reason}"
            )
        columns = ((part.name, part.size or 0, part.ends) for part in self.parts)
        names = Names(*zip(*columns, strict=True))
        rows = [replace(self._of(part), columns=Columns("image")) for part in self.parts]
        read = _ReadRow(self.opened(self.parts), names, rows)
        labels, splits = self._known
        if self.rows.only is None:
            return Listing(names, labels, splits if any(splits) else None, read)
        kept = [i for i, split in enumerate(splits) if self.rows.wants(split)]
        chosen = replace(read, kept=kept)
        numbers = array("i", (labels[i] for i in kept))
        return Listing([names[i] for i in kept], numbers, [splits[i] for i in kept], chosen)


@dataclass(frozen=True)
class _ReadRow:
    parts: Sequence[Any]
    names: Names
    rows: Sequence[Rows]
    kept: Sequence[int] | None = None

    def __call__(self, index: int) -> bytes:
        part, row = self.names.place(index if self.kept is None else self.kept[index])
        cell = {"image": self.parts[part][row]["image"]}
        return self.rows[part].item("", cell, None).read()[0]


def labels_of(columns: Sequence[Any], name: str, location: str) -> Labels:
    """The labels that Arrow columns hold.

    Raises:
        AugSelfError: numbers that are no whole ones.
    """
    chunks = (chunk for column in columns for chunk in column.chunks)
    values = {value for chunk in chunks for value in chunk.unique().to_pylist()}
    for value in values:
        if isinstance(value, float) and value == value and not value.is_integer():
            raise AugSelfError(
                f"column {name} of {location} holds numbers such as {value}: labels are class "
                "numbers or names; --column label=NAME names another"
            )
    return Labels.of_values(values)
