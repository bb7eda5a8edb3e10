"""Sources that are lists of image files: folders, globs, .txt, .csv, pairs, paths from Python.

A folder's first sub-folders are its classes, as torchvision's ImageFolder has it; where all of them
are words for a split, as Hugging Face's imagefolder has them, they are the splits and the second
ones the classes. Links are followed, unless they lead back to a folder they are in.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images.files import SUFFIXES, name_of, read_file, stamp, suffix_of
from augself_hub.images.inventory import Inventory, Tally
from augself_hub.images.source import UNLABELED, Item, Listing, class_name, no_split
from augself_hub.images.words import Columns, Labels, same_split, split_of

JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
JUNK |= {"lost+found", "thumbs.db", "desktop.ini", "__pycache__"}
MAX_LINKS = 4  # folders that are links, on the way to one image
PACKED = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".parquet", ".zip")


@dataclass(frozen=True)
class FileSource:
    """N image files, or pairs of them, in a fixed order.

    Args:
        root: what relative names start from.
        names: of each image, or of each pair; that of an image is where it is below the root.
        labels: N numbers, UNLABELED where there is none. splits: N, or None for none at all.
        problems: position -> why there is no image.
    """

    location: str
    root: Path
    names: Sequence[str | tuple[str, str]]
    labels: array[int]
    classes: list[str]
    splits: list[str | None] | None
    inventory: Inventory
    advice: str
    problems: dict[int, str] = field(default_factory=dict)

    def chosen(self, split: str) -> FileSource:
        there = self.inventory.splits
        kept = [i for i, name in enumerate(self.splits or ()) if same_split(name, split)]
        if not kept:
            raise no_split(self.location, split, list(there))
        assert self.splits is not None
        part = dataclasses.replace(
            self,
            names=[self.names[i] for i in kept],
            labels=array("i", (self.labels[i] for i in kept)),
            splits=[self.splits[i] for i in kept],
            problems={new: self.problems[i] for new, i in enumerate(kept) if i in self.problems},
        )
        tally = Tally.of(self.inventory)
        for name, count in there.items():
            if not same_split(name, split):
                tally.left_out[f"split {name}"] += count
        if rest := len(self.names) - len(kept) - sum(tally.left_out[f"split {n}"] for n in there):
            tally.left_out["in no split"] += rest
        return dataclasses.replace(part, inventory=_inventory(part, tally, self.inventory))

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


def _inventory(source: FileSource, tally: Tally, before: Inventory) -> Inventory:
    notes = []
    if source.problems:
        position, problem = next(iter(source.problems.items()))
        count, name = len(source.problems), source.names[position]
        notes.append(f"{count} cannot be read, the first is {name}: {problem}")
    numbers = Counter(source.labels)
    numbers.pop(UNLABELED, None)
    classes = {class_name(source, n) or "": count for n, count in numbers.most_common()}
    return tally.inventory(
        source.location,
        before.kind,
        len(source.names),
        classes,
        source.splits or (),
        [*before.notes, *notes],
    )


# -- Folders ---------------------------------------------------------------------------------------


Waiting = tuple[str, tuple[tuple[int, int], ...], int]
"""A folder to be walked: where it is, the device and inode of those it is in, links on the way."""


def walk(top: Path, tally: Tally) -> tuple[list[str], dict[str, str], list[str]]:
    """Images below a folder, sorted; what stands in some of their ways; tars and tables on the way.

    Returns:
        paths below the folder; path -> problem, also of folders that cannot be listed (these end
        in /); packed files, which are left out and counted unless the caller reads them.
    """
    names: list[str] = []
    problems: dict[str, str] = {}
    packed: list[str] = []
    status = top.stat()
    waiting: list[Waiting] = [("", ((status.st_dev, status.st_ino),), 0)]
    while waiting:
        below, above, links = waiting.pop()
        try:
            with os.scandir(os.path.join(top, below)) as entries:  # noqa: PTH118 (speed)
                found = list(entries)
        except OSError as error:
            if not below:
                raise AugSelfError(f"{top} cannot be listed: {error.strerror}") from error
            tally.found += 1
            problems[below] = f"the folder cannot be listed: {error.strerror}"
            continue
        for entry in found:
            path, suffix = below + entry.name, suffix_of(entry.name)
            if entry.name.startswith("."):
                reason = "hidden"
            elif entry.name.casefold() in JUNK:
                reason = "left there by a system"
            elif _is_folder(entry):
                reason = _descend(entry, path, above, links, waiting)
                if not reason:
                    continue
            elif suffix in SUFFIXES:
                tally.found += 1
                names.append(path)
                continue
            else:
                if suffix in PACKED:
                    packed.append(path)
                reason = f"{suffix} files" if suffix else "files without a suffix"
            tally.found += 1
            tally.leave_out(reason, name_of(path)[0])
    return sorted([*names, *problems]), problems, sorted(packed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link nobody may follow: reading it will say why
        return False


def _descend(
    entry: os.DirEntry[str],
    path: str,
    above: tuple[tuple[int, int], ...],
    links: int,
    waiting: list[Waiting],
) -> str:
    """Note a folder to be walked; or the reason why it is not."""
    links += entry.is_symlink()
    try:
        status = entry.stat()
    except OSError as error:
        return f"folders: {error.strerror}"
    here = (status.st_dev, status.st_ino)
    if here in above:
        return "links that lead back to a folder they are in"
    if links > MAX_LINKS:
        return f"more than {MAX_LINKS} linked folders deep"
    waiting.append((f"{path}/", (*above, here), links))
    return ""


def folder_source(
    folder: Path,
    location: str,
    found: tuple[list[str], dict[str, str], list[str]],
    tally: Tally,
    kind: str | None = None,
) -> FileSource:
    """What `walk` has found, with classes and splits.

    Args:
        kind: splits or classes: what the first sub-folders are; None: see the module.

    Raises:
        AugSelfError: some of them are splits and some are not.
    """
    paths, problems, packed = found
    notes = []
    if packed:
        kinds = sorted({suffix_of(path) for path in packed})
        notes.append(
            f"the {', '.join(kinds)} files beside the images are not read: "
            "--read-as tars or --read-as parquet reads them instead"
        )
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path})
    words = [top for top in tops if split_of(top)]
    splits = kind == "splits" or (kind is None and bool(tops) and len(words) == len(tops))
    if kind is None and words and not splits and "train" in map(split_of, words):
        other = next(top for top in tops if not split_of(top))
        raise AugSelfError(
            f"{location} holds {', '.join(words)} beside {other}: say --read-as splits (and leave "
            f"{other} out) or --read-as classes"
        )
    if splits and tops:
        notes.append(
            f"{', '.join(tops if kind is None else words)}: read as splits "
            "(--read-as classes reads them as classes)"
        )
    rows: list[tuple[str, str | None, str | None]] = []  # path, class, split
    for path in paths:
        top, slash, rest = path.partition("/")
        if not splits:
            rows.append((path, top if slash else None, None))
        elif not slash or not split_of(top):
            tally.leave_out("beside the splits", name_of(path)[0])
        else:
            within, slash, _ = rest.partition("/")
            rows.append((path, within if slash else None, top.casefold()))
    if not rows:
        raise AugSelfError(f"{location} holds no image ({', '.join(SUFFIXES)})")
    names, bad = [], {}
    for position, (path, _, _) in enumerate(rows):
        name, problem = name_of(path)
        names.append(name)
        if problem := problems.get(path, problem):
            bad[position] = problem
    column, told = "", dict[str, str]()
    if kind != "classes":
        column, told = metadata_labels(folder, ["", *(words if splits else [])])
    if column:
        notes.append(f"labels are those of {column}; --read-as classes takes the folders' names")
        written = [told.get(path) for path, _, _ in rows]
        rule = Labels.of_values(written)
    else:
        written = [None if name is None else name_of(name)[0] for _, name, _ in rows]
        # folders' names are names, also where they are numbers
        rule = Labels(sorted({name for name in written if name is not None}), named=True)
    labels = array("i")
    for position, value in enumerate(written):
        try:
            number = rule.number(value) if column else rule.index(value)
        except ValueError as error:
            number = None
            bad.setdefault(position, str(error))
        labels.append(UNLABELED if number is None else number)
    source = FileSource(
        location, folder, names, labels, rule.classes,
        [split for _, _, split in rows] if splits else None,
        Inventory(location, "folder", notes=tuple(notes)),
        "sort the images into class sub-folders",
        bad,
    )  # fmt: skip
    return dataclasses.replace(source, inventory=_inventory(source, tally, source.inventory))


def metadata_labels(folder: Path, places: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What the metadata.csv or .jsonl of imagefolder says: the column, path -> label.

    Args:
        places: where one may lie below the folder: paths in it start from there.
    """
    column, found = "", dict[str, str]()
    for place in places:
        for path in (folder / place / "metadata.csv", folder / place / "metadata.jsonl"):
            if not path.is_file():
                continue
            header, lines = _csv(path) if path.suffix == ".csv" else _json_lines(path)
            if "file_name" not in header:
                continue
            label = Columns("file_name").found(header, str(path)).label
            if label is not None:
                column = f"column {label} of {path.name}"
                name, value = header.index("file_name"), header.index(label)
                prefix = f"{place}/" if place else ""
                found.update({prefix + line[name]: line[value] for line in lines})
    return column, found


def _json_lines(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    try:
        records = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
        header = list(dict.fromkeys(key for record in records for key in dict(record)))
    except (ValueError, TypeError, RecursionError) as error:
        raise AugSelfError(f"{path} is no JSON lines of objects: {error}") from error
    values = ([record.get(key) for key in header] for record in records)
    return header, (["" if v is None else str(v) for v in line] for line in values)


# -- Lists -----------------------------------------------------------------------------------------


def path_source(
    paths: Sequence[str], location: str, root: Path = Path(), kind: str = "list"
) -> FileSource:
    """Paths in the order they are given.

    Raises:
        AugSelfError: there are none.
    """
    if not paths:
        raise AugSelfError(f"{location} names no image")
    return _list(
        location,
        root,
        list(paths),
        [None] * len(paths),
        None,
        kind,
        "name the images in a CSV with a column label",
    )


def _list(
    location: str,
    root: Path,
    names: Sequence[str | tuple[str, str]],
    written: Sequence[str | None],
    splits: list[str | None] | None,
    kind: str,
    advice: str,
) -> FileSource:
    rule = Labels.of_values(written)
    labels, problems = array("i", bytes(4 * len(names))), {}
    for row, value in enumerate(written):
        try:
            number = rule.number(value)
        except ValueError as error:
            number, problems[row] = None, str(error)
        labels[row] = UNLABELED if number is None else number
    shown: list[str | tuple[str, str]] = []
    for row, name in enumerate(names):
        pair = [name_of(n) for n in ((name,) if isinstance(name, str) else name)]
        shown.append(pair[0][0] if isinstance(name, str) else (pair[0][0], pair[1][0]))
        for _, problem in pair:
            if problem:
                problems[row] = problem
    if splits is not None and not any(splits):
        splits = None
    source = FileSource(location, root, shown, labels, rule.classes, splits,
                        Inventory(location, kind), advice, problems)  # fmt: skip
    tally = Tally()
    tally.found = len(names)
    return dataclasses.replace(source, inventory=_inventory(source, tally, source.inventory))


def text_source(path: Path) -> FileSource:
    """A text file: one path a line, absolute or below the file's folder."""
    lines = (line.strip() for line in _text(path).splitlines())
    return path_source([line for line in lines if line], str(path), path.parent)


def csv_source(paths: Sequence[Path], location: str, columns: Columns) -> FileSource:
    """CSVs (or .tsv) with a header and a column of paths; perhaps labels and splits.

    Paths in them are absolute or below the CSV's folder.

    Raises:
        AugSelfError: one is not such a table.
    """
    parents = [path.parent for path in paths]
    root = Path(os.path.commonpath(parents)) if len(set(parents)) > 1 else parents[0]
    names: list[str] = []
    labels: list[str | None] = []
    splits: list[str | None] = []
    advice = "name the column of the classes with --column label=NAME"
    for path in paths:
        header, lines = _csv(path)
        found, before = columns.found(header, str(path)), len(names)
        image, label, split = (
            header.index(name) if name else None for name in (found.image, found.label, found.split)
        )
        assert image is not None
        folder = path.parent.relative_to(root)
        for line in lines:
            names.append(str(folder / line[image]) if folder.parts else line[image])
            labels.append(None if label is None else line[label])
            splits.append((line[split] or None) if split is not None else None)
        if len(names) == before:
            raise AugSelfError(f"{path} has no rows below its header")
    return _list(location, root, names, labels, splits, "list", advice)


def pair_source(path: Path) -> FileSource:
    """A CSV (or .tsv) of image pairs: columns a and b.

    Raises:
        AugSelfError: it is not such a table.
    """
    header, lines = _csv(path)
    if not {"a", "b"} <= set(header):
        raise AugSelfError(f"{path} has the columns {', '.join(header)}: pairs need a and b")
    a, b = header.index("a"), header.index("b")
    pairs: list[str | tuple[str, str]] = [(line[a], line[b]) for line in lines]
    if not pairs:
        raise AugSelfError(f"{path} has no rows below its header")
    return _list(str(path), path.parent, pairs, [None] * len(pairs), None, "pairs", "")


def _csv(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The header and the lines, every field there, without blanks around them.

    The delimiter is the one of comma, semicolon, tab and bar that the header has most of.
    """
    text = _text(path)
    first = text.lstrip().partition("\n")[0]
    most = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=most, skipinitialspace=True)

    def rows() -> Iterator[list[str]]:
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield cells
        except csv.Error as error:
            raise AugSelfError(f"{path}, line {reader.line_num}: {error}") from error

    def whole(header: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
        for row in rows:
            if any(row[len(header) :]):
                raise AugSelfError(
                    f"{path}, line {reader.line_num} has {len(row)} fields, its header "
                    f"{len(header)}: put names with a delimiter in quotes"
                )
            yield row + [""] * (len(header) - len(row))

    coming = rows()
    header = next(coming, [])
    return header, whole(header, coming)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AugSelfError(f"{path} is not UTF-8 text: {error.reason}") from error
