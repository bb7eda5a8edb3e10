"""What the user wrote -> the source it means.

a folder                     of images; of tars; of parquet files; of save_to_disk
a glob                       of images, tars or parquet files
x.csv, x.tsv, x.txt          a table of paths and labels; a list of paths
x.tar, x.tar.gz, x.parquet   also as URLs; x-{000..099}.tar is a hundred of them
org/name, org/name@revision  a dataset of the Hugging Face Hub
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.hub import is_hub_id
from serving.extraction.files import file_system
from serving.extraction.hugging_face import DatasetSource
from serving.extraction.parquet_files import ParquetSource
from serving.extraction.sources import (
    USUAL,
    Columns,
    FileList,
    Source,
    csv_list,
    image_folder,
    matches,
    pair_list,
    path_list,
    text_list,
)
from serving.extraction.tars import TarSource

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PARQUET = (".parquet",)
_CSV = (".csv", ".tsv")
_DATASET_FILES = ("dataset_dict.json", "state.json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_source(
    source: str | Path | Sequence[str | Path] | Source,
    columns: Columns = USUAL,
    split: str | None = None,
    pairs: bool = False,
) -> Source:
    """Find out what a source is, and open it.

    Args:
        columns: of what has columns. split: of what has splits. pairs: a CSV of pairs.

    Raises:
        AugSelfError: there is nothing, or it cannot be read.
        UsageError: an option that would have no effect on such a source.
    """
    if pairs:
        opened: Source = _pairs(source)
    elif isinstance(source, (str, Path)):
        opened = _open(str(source), columns, split)
    elif isinstance(source, Sequence):
        opened = path_list([str(path) for path in source], f"{len(source)} paths")
    else:
        opened = source
    _refuse_unread(opened, columns, split)
    return opened


def _pairs(source: Any) -> FileList:
    if not isinstance(source, (str, Path)) or Path(source).suffix.lower() not in _CSV:
        raise UsageError("--pairs needs a CSV with columns a and b as its source")
    return pair_list(_existing(Path(source)))


def _open(text: str, columns: Columns, split: str | None) -> Source:
    path = Path(text)
    if path.is_dir():
        return _folder(path, columns, split)
    if "://" in text or _RANGE.search(text) or text.lower().endswith((*_TARS, *_PARQUET)):
        return _files(text, expanded(text), columns)
    if any(letter in text for letter in "*?["):
        return _files(text, matches(text), columns)
    if path.suffix.lower() in (*_CSV, ".txt"):
        path = _existing(path)
        return text_list(path) if path.suffix.lower() == ".txt" else csv_list(path, columns)
    if is_hub_id(text) and not path.exists():
        return DatasetSource.open(text, columns, split)
    _existing(path)
    raise AugSelfError(f"{text} is no source: give a folder, glob, CSV, list, tar or parquet file")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise AugSelfError(f"{path} does not exist: give a folder, a file, a glob or a Hub id")
    return path


def _folder(folder: Path, columns: Columns, split: str | None) -> Source:
    """What is in a folder says what it is."""
    if any((folder / name).is_file() for name in _DATASET_FILES):
        return DatasetSource.open(str(folder), columns, split)
    for suffixes in (_TARS, _PARQUET):
        found = sorted(p for p in folder.iterdir() if p.name.lower().endswith(suffixes))
        if found:
            return _files(str(folder), [str(path) for path in found], columns)
    return image_folder(folder)


def _files(location: str, urls: list[str], columns: Columns) -> Source:
    if all(url.lower().endswith(_TARS) for url in urls):
        return TarSource(location, urls)
    if all(url.lower().endswith(_PARQUET) for url in urls):
        return ParquetSource.open(location, urls, columns)
    if any(url.lower().endswith((*_TARS, *_PARQUET)) or "://" in url for url in urls):
        raise AugSelfError(f"{location}: all have to be tars, or parquet files, or local images")
    return path_list(urls, location)


def expanded(text: str) -> list[str]:
    """`x-{000..002}.tar` -> three names; a URL's glob -> what matches; else the text itself."""
    if found := _RANGE.search(text):
        first, last = found.groups()
        numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
        return [name for n in numbers for name in expanded(_RANGE.sub(n, text, count=1))]
    if "://" in text and "*" in text:
        return _remote_matches(text)
    return [text]


def _remote_matches(text: str) -> list[str]:
    files = file_system(text)
    found = sorted(files.unstrip_protocol(path) for path in files.glob(text))
    if not found:
        raise AugSelfError(f"nothing matches {text}")
    return found


def _refuse_unread(source: Source, columns: Columns, split: str | None) -> None:
    has_columns = isinstance(source, (ParquetSource, DatasetSource))
    has_columns = has_columns or source.location.lower().endswith(_CSV)
    if columns != USUAL and not has_columns:
        raise UsageError(f"--column has no effect: {source.location} has no columns")
    if split is not None and not isinstance(source, DatasetSource):
        raise UsageError(f"--split has no effect: {source.location} is no Hugging Face dataset")
