"""WebDataset tars as a source."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from augself_hub.preprocess import SUFFIXES
from augself_hub.tars import StrictHeader, key_and_suffix
from serving.extraction.files import DAMAGE, damaged, file_digest, last_name, open_file
from serving.extraction.sources import Item


@dataclass(frozen=True)
class TarSource:
    """WebDataset shards: samples are neighbouring members with one key, `key.jpg`, `key.cls`.

    Each tar is one shard. Labels are the numbers in the .cls members.
    """

    location: str
    urls: Sequence[str]

    @property
    def label_names(self) -> list[str]:
        return []

    def shards(self, rows: int) -> list[TarShard]:
        return [TarShard(url) for url in self.urls]


@dataclass(frozen=True)
class TarShard:
    """One tar, read from its beginning to its end; compressed ones too.

    A sample is whole when the next one begins: damage takes the one before it along, which may have
    lost its label.
    """

    url: str

    @property
    def name(self) -> str:
        return last_name(self.url)

    @cached_property
    def digest(self) -> str:
        return file_digest(self.url)

    @property
    def images(self) -> None:
        return None

    def items(self) -> Iterator[Item]:
        try:
            with (
                open_file(self.url) as file,
                tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictHeader) as tar,
            ):
                for key, members in groupby(_members(tar), lambda member: member[0]):
                    yield _sample(f"{self.name}/{key}", {kind: data for _, kind, data in members})
        except DAMAGE as error:
            raise damaged(self.url, error) from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """(key, suffix, content) of the images and labels, in the archive's order."""
    for member in tar:
        key, suffix = key_and_suffix(member.name)
        if member.isfile() and key and (suffix in SUFFIXES or suffix == ".cls"):
            yield key, suffix, tar.extractfile(member).read()  # type: ignore[union-attr]
        tar.members = []  # else it remembers every member it has passed


def _sample(name: str, files: dict[str, bytes]) -> Item:
    image = next((data for suffix, data in files.items() if suffix in SUFFIXES), None)
    text = files.get(".cls", b"").strip()
    if image is None:
        return Item((name,), (), problem="the sample has no image")
    if text and not (text.isdigit() and int(text) < 2**31):
        return Item((name,), (), problem="the sample's .cls is not a class number")
    return Item((name,), (image,), int(text) if text else None)
