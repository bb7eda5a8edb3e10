"""Folders of images.

A folder's first sub-folders are its classes, as torchvision's ImageFolder has it; where all of them
are words for a split, as Hugging Face's imagefolder has them, they are the splits and the second
ones the classes. Links are followed, unless they lead back to a folder they are in.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from augself_hub.errors import AugSelfError
from augself_hub.images.file_source import FileSource
from augself_hub.images.files import SUFFIXES, name_of, suffix_of
from augself_hub.images.inventory import Tally
from augself_hub.images.listed import read_csv, read_text
from augself_hub.images.source import UNLABELED
from augself_hub.images.words import Columns, Labels, split_of

JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
JUNK |= {"lost+found", "thumbs.db", "desktop.ini", "__pycache__"}
MAX_LINKS = 4  # folders that are links, on the way to one image
PACKED = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".parquet", ".zip")


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
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link nobody may follow: reading it will say why
                is_folder = False
            if entry.name.startswith("."):
                reason = "hidden"
            elif entry.name.casefold() in JUNK:
                reason = "left there by a system"
            elif is_folder:
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
    column, written = "", dict[str, str]()
    if kind != "classes":
        column, written = metadata_labels(folder, ["", *(words if splits else [])])
    if column:
        notes.append(f"labels are those of {column}; --read-as classes takes the folders' names")
        values = [written.get(path) for path, _, _ in rows]
        rule = Labels.of_values(values)
        labels, wrong = rule.numbers(values)
    else:  # folders' names are names, also where they are numbers
        classes = [None if name is None else name_of(name)[0] for _, name, _ in rows]
        rule = Labels(sorted({name for name in classes if name is not None}), named=True)
        numbers = {name: number for number, name in enumerate(rule.classes)}
        labels = array("i", (UNLABELED if name is None else numbers[name] for name in classes))
        wrong = {}
    names, bad = [], {}
    for position, (path, _, _) in enumerate(rows):
        name, problem = name_of(path)
        names.append(name)
        if problem := problems.get(path, problem):
            bad[position] = problem
    for position, problem in wrong.items():
        bad.setdefault(position, problem)
    return FileSource(
        location, folder, names, labels, rule.classes,
        [split for _, _, split in rows] if splits else None,
        "folder", tally, "sort the images into class sub-folders", tuple(notes), bad,
    )  # fmt: skip


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
            header, lines = read_csv(path) if path.suffix == ".csv" else _json_lines(path)
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
        records = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
        header = list(dict.fromkeys(key for record in records for key in dict(record)))
    except (ValueError, TypeError, RecursionError) as error:
        raise AugSelfError(f"{path} is no JSON lines of objects: {error}") from error
    values = ([record.get(key) for key in header] for record in records)
    return header, (["" if v is None else str(v) for v in line] for line in values)
