"""Lists of image files: globs, .txt, .csv, pairs, paths from Python."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from augself_hub.errors import AugSelfError
from augself_hub.images.file_source import FileSource
from augself_hub.images.files import name_of
from augself_hub.images.inventory import Tally
from augself_hub.images.words import Columns, Labels, refuse_twice

MAX_LIST = 2**29  # bytes: five million paths; it is in memory several times over


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
    dropped: Sequence[str] = (),
) -> FileSource:
    rule = Labels.of_values(written)
    labels, problems = rule.numbers(written)
    shown: list[str | tuple[str, str]] = []
    for row, name in enumerate(names):
        pair = [name_of(n) for n in ((name,) if isinstance(name, str) else name)]
        shown.append(pair[0][0] if isinstance(name, str) else (pair[0][0], pair[1][0]))
        for _, problem in pair:
            if problem:
                problems[row] = problem
    if splits is not None and not any(splits):
        splits = None
    tally = Tally()
    tally.found = len(names)
    return FileSource(
        location, root, shown, labels, rule.classes, splits, kind, tally, advice,
        (f"other columns are not read: {_few(dropped)}",) if dropped else (),
        problems,
    )  # fmt: skip


def _few(columns: Sequence[str]) -> str:
    """The first of them."""
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return ", ".join(name or "one without a name" for name in columns[:5]) + more


def text_source(path: Path) -> FileSource:
    """A text file: one path a line, absolute or below the file's folder."""
    lines = (line.strip() for line in read_text(path).split("\n"))  # names may hold other ends
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
    others: dict[str, None] = {}  # in their order
    advice = "name the column of the classes with --column label=NAME"
    for path in paths:
        header, lines = read_csv(path)
        found, before = columns.found(header, str(path)), len(names)
        image, label, split = (
            header.index(name) if name else None for name in (found.image, found.label, found.split)
        )
        assert image is not None
        used = (found.image, found.label, found.split)
        others.update(dict.fromkeys(name for name in header if name not in used))
        folder = path.parent.relative_to(root)
        for line in lines:
            names.append(str(folder / line[image]) if folder.parts else line[image])
            labels.append(None if label is None else line[label])
            splits.append((line[split] or None) if split is not None else None)
        if len(names) == before:
            raise AugSelfError(f"{path} has no rows below its header")
    return _list(location, root, names, labels, splits, "list", advice, [*others])


def pair_source(path: Path) -> FileSource:
    """A CSV (or .tsv) of image pairs: columns a and b.

    Raises:
        AugSelfError: it is not such a table.
    """
    header, lines = read_csv(path)
    if not {"a", "b"} <= set(header):
        raise AugSelfError(f"{path} has the columns {', '.join(header)}: pairs need a and b")
    refuse_twice("ab", header, str(path))
    a, b = header.index("a"), header.index("b")
    pairs: list[str | tuple[str, str]] = [(line[a], line[b]) for line in lines]
    if not pairs:
        raise AugSelfError(f"{path} has no rows below its header")
    others = [name for name in header if name not in ("a", "b")]
    return _list(str(path), path.parent, pairs, [None] * len(pairs), None, "pairs", "", others)


def read_csv(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The header and the lines, every field there, without blanks around them.

    The delimiter is the one of comma, semicolon, tab and bar that the header has most of.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    most = max(",;\t|", key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=most, skipinitialspace=True, strict=True
    )

    header: list[str] = []

    def rows() -> Iterator[list[str]]:
        try:
            for cells in reader:
                row = [cell.strip() for cell in cells]
                if any(header and row[len(header) :]):
                    raise AugSelfError(
                        f"{path}, line {reader.line_num} has {len(row)} fields, its header "
                        f"{len(header)}: put names with a delimiter in quotes"
                    )
                if any(row):
                    yield row + [""] * (len(header) - len(row))
        except csv.Error as error:
            raise AugSelfError(
                f"{path}, line {reader.line_num}: {error}; a field that begins with a quote ends "
                "with one"
            ) from error

    coming = rows()
    header.extend(next(coming, []))
    if not header:
        raise AugSelfError(f"{path} is empty: its first line has to name the columns")
    return header, coming


def read_text(path: Path) -> str:
    """Raises AugSelfError: it is larger than `MAX_LIST`, or no UTF-8."""
    if (size := path.stat().st_size) > MAX_LIST:
        raise AugSelfError(
            f"{path} has {size} bytes, a list at most {MAX_LIST}: cut it into several"
        )
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AugSelfError(f"{path} is not UTF-8 text: {error.reason}") from error
