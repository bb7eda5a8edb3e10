"""What the user wrote -> the source it means.

a folder                     of images; of tars; of parquet files; of save_to_disk
a glob                       of images, lists, tars or parquet files
x.csv, x.tsv, x.txt          a table of paths and labels; a list of paths
x.tar, x.tar.gz, x.parquet   also as URLs; x-{000..099}.tar is a hundred of them
org/name, org/name@revision  a data set of the Hugging Face Hub

Prefixes of 0.1 go on working: wds:TARS, folder:DIR, hf:NAME[:SPLIT] (what datasets.load_dataset
reads), stream:ANY (read in order).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError, MissingExtra, UsageError
from augself_hub.hub import is_hub_id
from augself_hub.images import folders, listed
from augself_hub.images.files import (
    DATASET_FILES,
    SUFFIXES,
    expanded,
    file_system,
    suffix_of,
)
from augself_hub.images.inventory import Tally
from augself_hub.images.source import Source
from augself_hub.images.tars import COMPRESSED, TarSource
from augself_hub.images.words import LAYOUTS, USUAL, Columns
from augself_hub.paths import path_text

TARS = (".tar", *(f".tar{suffix}" for suffix in COMPRESSED if suffix != ".tgz"), ".tgz")
PARQUET = (".parquet",)
CSV = (".csv", ".tsv")
STREAM = "stream:"


@dataclass(frozen=True)
class Options:
    """What chooses where a place leaves a choice.

    Args:
        columns: of what has columns.
        split: the only one wanted, in any spelling.
        kind: of LAYOUTS: what a folder is to be read as; None: what is in it says so.
        pairs: a CSV of pairs.
        stream: nothing is listed or downloaded first; images come in order.
        image_root: another folder that paths in a table may lead into.
    """

    columns: Columns = USUAL
    split: str | None = None
    kind: str | None = None
    pairs: bool = False
    stream: bool = False
    image_root: Path | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in LAYOUTS:
            raise UsageError(f"unknown --read-as {self.kind}: use {', '.join(LAYOUTS)}")

    @classmethod
    def of_record(cls, source: dict[str, Any]) -> Options:
        """As the manifest of a table has them under `source`."""
        root, columns = source.get("image_root"), source.get("columns") or {}
        columns = columns if isinstance(columns, dict) else {"": columns}
        texts = (root, source.get("split"), source.get("read_as"), *columns.values())
        known = set(columns) <= set(Columns.__dataclass_fields__)
        if not known or not all(text is None or isinstance(text, str) for text in texts):
            raise UsageError("the manifest of the table does not say how its source is read")
        return cls(
            Columns(**columns),
            source.get("split"),
            source.get("read_as"),
            image_root=None if root is None else Path(root),
        )


AS_FOUND = Options()


def open_source(
    source: str | Path | Sequence[str | Path] | Source, options: Options = AS_FOUND, **given: Any
) -> Source:
    """Find out what a source is, and open it.

    Args:
        source: as above; a list of paths; any `Source`.
        options: what chooses; `given` are fields of it, by their names.

    Raises:
        AugSelfError: there is nothing, or it cannot be read; says what is there instead.
        UsageError: an option that would have no effect on such a source.
    """
    options = replace(options, **given)
    if options.pairs:
        _refuse_beside_pairs(options)
        if not isinstance(source, (str, Path)) or suffix_of(str(source)) not in CSV:
            raise UsageError("--pairs needs a CSV with columns a and b as its source")
        return listed.pair_source(_existing(Path(source)))
    if isinstance(source, (str, Path)):
        opened, options = _open(path_text("source", source, any_name=True), options)
    elif isinstance(source, Sequence):
        opened = listed.path_source([str(path) for path in source], f"{len(source)} paths")
    else:
        opened = source
    kind = opened.inventory.kind
    if options.kind is not None and kind != _WHAT_IS_READ.get(options.kind, "folder"):
        raise UsageError(f"--read-as {options.kind} has no effect: {opened.location} is a {kind}")
    tables = kind in ("parquet", "dataset")
    of_columns = tables or str(opened.location).casefold().endswith(CSV)
    if options.columns != USUAL and not of_columns:
        raise UsageError(f"--column has no effect: {opened.location} has no columns")
    if options.image_root is not None and not tables:
        raise UsageError(f"--image-root has no effect: {opened.location} is no table of paths")
    return opened if options.split is None else opened.chosen(options.split)


_WHAT_IS_READ = {"tars": "tars", "parquet": "parquet", "dataset": "dataset"}


def _refuse_beside_pairs(options: Options) -> None:
    """Raises UsageError where an option chooses among what a list of pairs does not have."""
    given = {
        "--column": options.columns != USUAL,
        "--split": options.split is not None,
        "--read-as": options.kind is not None,
        "--image-root": options.image_root is not None,
    }
    if names := [name for name, said in given.items() if said]:
        raise UsageError(f"{names[0]} has no effect on --pairs, a CSV with columns a and b")


def open_recorded(record: dict[str, Any]) -> Source:
    """The source that a table's manifest says it is of, where it is a file of this machine.

    Whoever wrote the manifest may be a stranger: nothing is fetched, and paths in the source lead
    no further than they would without options.

    Raises:
        AugSelfError: it is elsewhere, or gone.
    """
    location = str(record["location"])
    text = location.removeprefix(STREAM)
    prefix, _, place = text.partition(":")
    local = any(Path(name).exists() for name in (text, place, place.partition(":")[0]) if name)
    local = local or (_is_pattern(text) and prefix != "hf")
    if "://" in location or not local:
        raise AugSelfError(f"the table's images were at {location}, which is not on this machine")
    return open_source(location, replace(Options.of_record(record), image_root=None))


def _open(text: str, options: Options) -> tuple[Source, Options]:
    """The source, and the options that its own text has changed."""
    if text.startswith(STREAM) and not Path(text).exists():
        return _open(text.removeprefix(STREAM), replace(options, stream=True))
    prefix, colon, place = text.partition(":")
    if colon and not Path(text).exists() and not place.startswith("//"):
        if prefix == "hf":  # hf:NAME[:SPLIT]
            name, _, split = (place, "", "") if Path(place).exists() else place.partition(":")
            if split and options.split not in (None, split):
                raise UsageError(f"hf:{place} and --split {options.split} contradict each other")
            options = replace(options, split=split or options.split)
            return _data_set(name, options), options
        if prefix == "folder":
            return _folder(Path(place), place, options), options
        if prefix == "wds":
            return _files(text, _matches(place), replace(options, kind="tars")), options
        raise UsageError(
            f"unknown source {text}: give a folder, a glob, a list, tars, parquet files or "
            "org/name; torchvision's data sets (stl10:DIR ...) are read where models are trained, "
            "and by evaluate as --datasets stl10 --data DIR"
        )
    path = Path(text)
    if path.is_dir():
        return _folder(path, text, options), options
    if not path.exists() and is_hub_id(text) and not _is_pattern(text):
        return _data_set(text, options), options
    return _files(text, _matches(text), options), options


def _data_set(name: str, options: Options) -> Source:
    from augself_hub.images.hugging_face import dataset_source

    split, root = options.split, options.image_root
    return dataset_source(name, options.columns, split, root, options.stream)


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise AugSelfError(f"{path} {what}: give a folder, a file, a glob or a Hub id")
    return path


def _folder(folder: Path, location: str, options: Options) -> Source:
    """What is in a folder says what it is: images, else tars, else parquet files."""
    if not folder.is_dir():
        raise AugSelfError(f"no folder {folder}: give a folder of images")
    saved = any((folder / name).is_file() for name in DATASET_FILES)
    if options.kind == "dataset" or (saved and options.kind is None):
        return _data_set(str(folder), options)
    tally = Tally()
    found = folders.walk(folder, tally)
    names, problems, packed = found
    of_kind = {
        "tars": [path for path in packed if path.casefold().endswith(TARS)],
        "parquet": [path for path in packed if path.casefold().endswith(PARQUET)],
    }
    kind = options.kind
    if kind is None and len(names) == len(problems):
        kind = next((name for name, paths in of_kind.items() if paths), None)
    if kind in of_kind:
        if not of_kind[kind]:
            raise AugSelfError(f"{location} holds no {kind}; {_what_is_there(tally, names)}")
        urls = [str(folder / path) for path in of_kind[kind]]
        beside = {r: n for r, n in tally.left_out.items() if not r.startswith(f"{_SUFFIX[kind]} ")}
        if names:
            beside["images"] = len(names)
        notes = [f"beside the {kind}, not read: {', '.join(f'{r} {n}' for r, n in beside.items())}"]
        return _files(location, urls, replace(options, kind=kind), notes if beside else [])
    if len(names) == len(problems) and not problems:
        raise AugSelfError(
            f"{location} holds no image ({', '.join(SUFFIXES)}); {_what_is_there(tally, names)}"
        )
    chosen = kind if kind in ("splits", "classes") else None
    return folders.folder_source(folder, location, found, tally, chosen)


_SUFFIX = {"tars": ".tar", "parquet": ".parquet"}


def _what_is_there(tally: Tally, names: Sequence[str]) -> str:
    there = [*([f"images {len(names)}"] if names else []),
             *(f"{reason} {count}" for reason, count in tally.left_out.most_common(6))]  # fmt: skip
    return f"what is there: {', '.join(there)}" if there else "it is empty"


def _is_pattern(text: str) -> bool:
    return any(letter in text for letter in "*?[") or expanded(text) != [text]


def _matches(text: str) -> list[str]:
    """The files a text stands for: itself, x-{000..099}.tar, a glob here or at a URL; sorted.

    Raises:
        AugSelfError: none.
    """
    if "://" not in text and Path(text).exists():
        return [str(_existing(Path(text)))]
    found: list[str] = []
    for name in expanded(text):
        if "://" in name:
            files = file_system(name)
            here = [files.unstrip_protocol(path) for path in files.glob(name)] if "*" in name else [
                name
            ]  # fmt: skip
        elif any(letter in name for letter in "*?["):
            here = [p for p in glob.glob(name, recursive=True) if Path(p).is_file()]  # noqa: PTH207
        else:
            here = [name]
        found += sorted(here)
    if not found:
        raise AugSelfError(f"nothing matches {text}")
    return found


def _files(location: str, urls: list[str], options: Options, notes: Sequence[str] = ()) -> Source:
    """Files of one kind, by their suffixes or as `options.kind` says."""
    tars = all(url.casefold().endswith(TARS) for url in urls)
    if options.kind == "tars" or tars:
        _refuse_missing(urls)
        return TarSource.open(location, urls, notes, options.stream)
    if options.kind == "parquet" or all(url.casefold().endswith(PARQUET) for url in urls):
        _refuse_missing(urls)
        try:
            from augself_hub.images.parquet_files import parquet_source
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "pyarrow", "extract") from error
        return parquet_source(location, urls, options.columns, notes, options.image_root)
    if any(url.casefold().endswith((*TARS, *PARQUET)) or "://" in url for url in urls):
        raise AugSelfError(f"{location}: all have to be tars, or parquet files, or local images")
    if all(suffix_of(url) in CSV for url in urls):
        paths = [_existing(Path(url)) for url in urls]
        return listed.csv_source(paths, location, options.columns)
    if len(urls) == 1 and (Path(location).exists() or not _is_pattern(location)):
        path = _existing(Path(urls[0]))
        if suffix_of(urls[0]) == ".txt":
            return listed.text_source(path)
        raise AugSelfError(
            f"{location} is no source: give a folder, glob, CSV, list, tar or parquet file"
        )
    return listed.path_source(urls, location, kind="glob")


def _refuse_missing(urls: Sequence[str]) -> None:
    """Of many shards one that is missing is an error of its own; none at all is a wrong name."""
    local = [url for url in urls if "://" not in url]
    if len(local) == len(urls) and not any(Path(url).exists() for url in local):
        raise AugSelfError(f"{local[0]} does not exist: give a folder, a file, a glob or a Hub id")
