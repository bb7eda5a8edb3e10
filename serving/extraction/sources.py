"""Where images come from: one small protocol, and the sources that are lists of files.

    a source cuts itself into shards; a shard yields its items, in order

A shard is a plain record of where its items are. It can be pickled, so any shard may be read at any
time on any machine that sees the files, and its digest changes when what it holds does.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.preprocess import SUFFIXES

SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class Item:
    """What one row is made from: an image, or the two images of a pair.

    Args:
        names: what the images are called: one, or two of a pair.
        images: their files or bytes; nothing where there is a `problem`.
        label: index into the source's label names, or a bare number where it has none.
        split: train, test ...; None where the source does not say.
        problem: why there is no image.
    """

    names: tuple[str, ...]
    images: tuple[Path | bytes, ...]
    label: int | None = None
    split: str | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        return " -> ".join(self.names)


class ShardError(Exception):
    """The rest of a shard cannot be read. The message is the reason."""


class Shard(Protocol):
    """A part of a source that becomes one part of the table.

    Attributes:
        name: for messages. digest: changes when the shard's input does.
        images: how many items there will be; None where only reading tells.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def images(self) -> int | None: ...
    def items(self) -> Iterator[Item]:
        """Raises ShardError where the rest cannot be read."""
        ...


class Source(Protocol):
    """Images of one place.

    Attributes:
        location: as the user gave it.
        label_names: sorted; empty where labels are bare numbers or there are none.
    """

    @property
    def location(self) -> str: ...
    @property
    def label_names(self) -> list[str]: ...
    def shards(self, rows: int) -> Sequence[Shard]:
        """Cut into shards of about so many rows; what has a cut of its own (a tar) keeps it."""
        ...


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; None: the first of the usual ones that is there."""

    image: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Columns:
        """`image=path`, `label=species` ... -> the columns.

        Raises:
            UsageError: a word that is none of these, a role that is given twice.
        """
        pairs = [word.partition("=")[::2] for word in words]
        if any(role not in cls.__dataclass_fields__ or not name for role, name in pairs):
            raise UsageError(f"--column {' '.join(words)}: write image=, label= or split=NAME")
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"--column {' '.join(words)}: name one column for each role")
        return cls(**dict(pairs))

    def found(self, there: Sequence[str], location: str) -> Columns:
        """The same for a table with these columns.

        Raises:
            AugSelfError: a column that was named is not there, or none holds images.
        """
        for name in (self.image, self.label, self.split):
            if name is not None and name not in there:
                raise AugSelfError(f"{location} has no column {name!r}, only {', '.join(there)}")
        image = self.image or _first(("image", "path", "file_name", "file", "filename"), there)
        if image is None:
            raise AugSelfError(
                f"{location} has the columns {', '.join(there)}: name the images' with "
                "--column image=NAME"
            )
        label = self.label or _first(("label", "class"), there)
        return Columns(image, label, self.split or _first(("split",), there))


USUAL = Columns()


def _first(usual: Iterable[str], there: Sequence[str]) -> str | None:
    return next((name for name in usual if name in there), None)


class Row(NamedTuple):
    """Paths, absolute or below the list's root; a label's index; a split."""

    names: tuple[str, ...]
    label: int | None = None
    split: str | None = None


@dataclass(frozen=True)
class FileList:
    """Image files with labels and splits, in a fixed order.

    Args:
        root: what relative names start from.
    """

    location: str
    root: Path
    rows: list[Row]
    label_names: list[str]

    def shards(self, rows: int) -> list[FileShard]:
        starts = range(0, len(self.rows), rows)
        return [FileShard(self.root, self.rows[start : start + rows]) for start in starts]


@dataclass(frozen=True)
class FileShard:
    """Consecutive rows of a list."""

    root: Path
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        return f"{self.rows[0].names[0]} ... {self.rows[-1].names[-1]}"

    @property
    def images(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """Of names, labels, splits, and every file's size and time of change."""
        seen = hashlib.sha256()
        for row in self.rows:
            stamps = [stamp(self.root / name) for name in row.names]
            seen.update(repr((*row, stamps)).encode())
        return seen.hexdigest()

    def items(self) -> Iterator[Item]:
        for row in self.rows:
            yield Item(row.names, tuple(self.root / n for n in row.names), row.label, row.split)


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None of what is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def image_folder(folder: Path) -> FileList:
    """Every image below a folder, by suffix; hidden files and folders are left out.

    The first sub-folder is the class. Where the first sub-folders are train, val, test and the
    like, they are the splits and the second is the class.

    Raises:
        AugSelfError: there is no image.
    """
    below = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    ids = sorted(_id(p) for p in below if not any(x.startswith(".") for x in p.parts))
    if not ids:
        raise AugSelfError(f"{folder} holds no image ({', '.join(SUFFIXES)})")
    splits = all(i.partition("/")[0] in SPLITS and "/" in i for i in ids)
    places = [(*(i.split("/", 1) if splits else (None, i)),) for i in ids]
    classes = [below.partition("/")[0] if "/" in below else None for _, below in places]
    return _labelled(str(folder), folder, [(i,) for i in ids], classes, [s for s, _ in places])


def _id(path: Path) -> str:
    """A name that is not UTF-8 has no place in the table: escaped, it ends among the errors."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _labelled(
    location: str,
    root: Path,
    names: Sequence[tuple[str, ...]],
    classes: Sequence[str | None],
    splits: Sequence[str | None],
) -> FileList:
    """Class names -> indices into their sorted list."""
    label_names = sorted({name for name in classes if name})
    numbers = {name: number for number, name in enumerate(label_names)}
    labels = [numbers.get(name or "") for name in classes]
    rows = [Row(*fields) for fields in zip(names, labels, splits, strict=True)]
    return FileList(location, root, rows, label_names)


def path_list(paths: Iterable[str], location: str, root: Path = Path()) -> FileList:
    """Paths in the order they are given.

    Raises:
        AugSelfError: there are none.
    """
    rows = [Row((path,)) for path in paths]
    if not rows:
        raise AugSelfError(f"{location} names no image")
    return FileList(location, root, rows, [])


def text_list(path: Path) -> FileList:
    """A text file: one path a line, absolute or below the file's folder."""
    lines = (line.strip() for line in _text(path).splitlines())
    return path_list((line for line in lines if line), str(path), path.parent)


def matches(pattern: str) -> list[str]:
    """The files a glob matches, sorted; `**` reaches into sub-folders.

    Raises:
        AugSelfError: none.
    """
    found = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207
    if not found:
        raise AugSelfError(f"nothing matches {pattern}")
    return found


def csv_list(path: Path, columns: Columns) -> FileList:
    """A CSV (or .tsv) with a header and a column of paths; perhaps labels and splits.

    Raises:
        AugSelfError: it is not such a table.
    """
    header, lines = _csv(path)
    found = columns.found(header, str(path))
    names = [(line[found.image or ""],) for line in lines]
    classes = [line[found.label] if found.label else None for line in lines]
    splits = [(line[found.split] or None) if found.split else None for line in lines]
    return _labelled(str(path), path.parent, names, classes, splits)


def pair_list(path: Path) -> FileList:
    """A CSV (or .tsv) of image pairs: columns a and b.

    Raises:
        AugSelfError: it is not such a table.
    """
    header, lines = _csv(path)
    if not {"a", "b"} <= set(header):
        raise AugSelfError(f"{path} has the columns {', '.join(header)}: pairs need a and b")
    return FileList(str(path), path.parent, [Row((line["a"], line["b"])) for line in lines], [])


def _csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header and the lines, every field there."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(_text(path).splitlines(), delimiter=delimiter, restval="")
    try:
        lines = list(reader)
    except csv.Error as error:
        raise AugSelfError(f"{path}, line {reader.line_num}: {error}") from error
    if not lines:
        raise AugSelfError(f"{path} has no rows below its header")
    return list(reader.fieldnames or ()), lines


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AugSelfError(f"{path} is not UTF-8 text: {error.reason}") from error
