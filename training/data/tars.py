"""WebDataset tars: samples are neighbouring members with one key, `dog/7.jpg`, `dog/7.cls`.

`tar_images` reads the headers once and then any image by its place, so that order, views and resume
are those of any list of images. What cannot be read out of order is a stream (see `streams`). Both
call a sample shard/key, and views are keyed by that name: they see the same views.

A label is the content of .cls, or "label", "cls" or "class" of .json: a number or a name.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from PIL import Image

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.preprocess import SUFFIXES, decode
from augself_hub.tars import StrictHeader, key_and_suffix
from training.data.sources import UNLABELED, Images

log = logging.getLogger(__name__)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_LABELS = ("label", "cls", "class")


class Member(NamedTuple):
    """One sample of a tar.

    Args:
        key: path of its members without their suffixes.
        start, size: where the image's bytes are in the (decompressed) tar.
        data: the image's bytes, where they were asked for.
        label: as it is written; "" where there is none.
    """

    key: str
    start: int
    size: int
    data: bytes
    label: str


def tar_images(pattern: str) -> Images:
    """The images of uncompressed tars, by one pass over the headers.

    The labels' distinct values, numbers by size and names by the alphabet, are the classes. Of a
    damaged tar what lies before the damage is used; the rest is named in the log.

    Raises:
        UsageError: a compressed tar, which can only be read in order.
        AugSelfError: no tar, or no image in any.
    """
    urls = expanded(pattern)
    if packed := [url for url in urls if url.lower().endswith(_COMPRESSED)]:
        raise UsageError(
            f"{packed[0]} is compressed: unpack it, or read it as stream:wds:{pattern}"
        )
    names, places, written, damaged = [], [], [], []
    for number, (url, shard) in enumerate(zip(urls, shard_names(urls), strict=True)):
        try:
            for member in tar_members(url, "r:", load=False):
                names.append(f"{shard}/{member.key}")
                places.append((number, member.start, member.size))
                written.append(member.label)
        except tarfile.TarError as error:
            damaged.append(shard)
            log.warning("skipped the rest of %s, which is damaged: %s", shard, error)
    if not names:
        raise AugSelfError(f"no images in {pattern}: it needs tars with {', '.join(SUFFIXES)}")
    labels, classes = _numbered(written)
    keys = [key_of(name) for name in names]
    return Images(names, labels, classes, _Places(urls, places), keys, tuple(damaged), len(urls))


def key_of(name: str) -> int:
    """64 bits of a sample's name, shard/key: what its views are keyed by."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def expanded(pattern: str) -> list[str]:
    """`x-{000..002}.tar` -> three names; a glob -> what matches, sorted; paths or URLs.

    Raises:
        AugSelfError: nothing matches.
    """
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
        return [name for n in numbers for name in expanded(_RANGE.sub(n, pattern, count=1))]
    if "://" not in pattern:
        found_here = sorted(path for path in glob.glob(pattern) if Path(path).is_file())  # noqa: PTH207
    elif "*" in pattern:
        files, _ = fsspec.url_to_fs(pattern)
        found_here = sorted(files.unstrip_protocol(path) for path in files.glob(pattern))
    else:
        found_here = [pattern]
    if not found_here:
        raise AugSelfError(f"nothing matches {pattern}: give tars, as in x-{{000..099}}.tar")
    return found_here


def shard_names(urls: Sequence[str]) -> list[str]:
    """Names below the folder they share: where the tars lie must not change the views."""
    top = os.path.commonprefix(urls).rpartition("/")[0]  # noqa: RUF071 (commonpath spoils URLs)
    return [url[len(top) :].lstrip("/") for url in urls]


def tar_members(url: str, mode: str, load: bool) -> Iterator[Member]:
    """The samples of one tar that have an image, in order.

    A sample is whole when the next one begins, so damage takes the one before it along.

    Args:
        mode: "r:" to jump from header to header, "r|*" to read in order, compressed or not.
        load: whether to read the images' bytes too.

    Raises:
        tarfile.TarError: the tar is damaged from here on.
        AugSelfError: it cannot be reached.
    """
    try:
        with (
            fsspec.open(url, "rb") as file,
            tarfile.open(fileobj=file, mode=mode, tarinfo=StrictHeader) as tar,
        ):
            for key, members in groupby(_files(tar, load), lambda member: member[0]):
                if sample := _sample(key, {suffix: rest for _, suffix, *rest in members}):
                    yield sample
    except EOFError as error:
        raise tarfile.ReadError(str(error)) from error
    except OSError as error:
        raise AugSelfError(f"{url} cannot be read: {error}") from error


def _files(tar: tarfile.TarFile, load: bool) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """(key, suffix, header, content) of images and labels; images' content only if asked for."""
    for header in tar:
        key, suffix = key_and_suffix(header.name)
        wanted = load or suffix not in SUFFIXES
        if header.isfile() and key and suffix in (*SUFFIXES, ".cls", ".json"):
            yield key, suffix, header, _content(tar, header) if wanted else b""
        tar.members = []  # else it remembers every member it has passed


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = tar.extractfile(header)
    return file.read() if file else b""


def _sample(key: str, files: dict[str, list[Any]]) -> Member | None:
    image = next((suffix for suffix in files if suffix in SUFFIXES), None)
    if image is None:
        return None
    header, data = files[image]
    return Member(key, header.offset_data, header.size, data, _label(files))


def _label(files: dict[str, list[Any]]) -> str:
    if ".cls" in files:
        return files[".cls"][1].decode(errors="replace").strip()
    try:
        record = json.loads(files[".json"][1]) if ".json" in files else {}
    except ValueError:
        return ""
    values = (record.get(name) for name in _LABELS) if isinstance(record, dict) else ()
    return next((str(value) for value in values if value is not None), "")


def _numbered(written: list[str]) -> tuple[list[int], list[str]]:
    """Labels as they are written -> indices into their distinct values, and those."""
    distinct = {label for label in written if label}
    numbers = all(label.isdecimal() for label in distinct)
    classes = sorted(distinct, key=int if numbers else None)
    index = {label: number for number, label in enumerate(classes)} | {"": UNLABELED}
    return [index[label] for label in written], classes


@dataclass(frozen=True)
class _Places:
    """Images by where their bytes are: (number of the url, start, size)."""

    urls: list[str]
    places: list[tuple[int, int, int]]

    def __call__(self, index: int) -> Image.Image:
        number, start, size = self.places[index]
        files, path = fsspec.url_to_fs(self.urls[number])  # fsspec keeps one for each process
        return decode(files.cat_file(path, start, start + size))
