"""WebDataset tars: a sample is neighbouring members with one key, `dog/7.jpg`, `dog/7.cls`.

The key of a member is its path up to the first dot of its last part, as WebDataset has it. The
image is the first member with the suffix of one; a label is what .cls holds, or "label", "cls" or
"class" of .json: a number or a name. Everything else that looks like an image is counted.

A tar is a shard. Of an uncompressed one, a pass over the headers notes where each image lies, which
makes a listing; others can only be read in order.
"""

from __future__ import annotations

import json
import logging
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any, NamedTuple, Self

from augself_hub.errors import ImageError, UsageError
from augself_hub.images.files import (
    DAMAGE,
    MAX_BYTES,
    SUFFIXES,
    file_digest,
    file_system,
    name_of,
    one_line,
    open_file,
    shard_names,
    suffix_of,
    unreachable,
)
from augself_hub.images.inventory import Inventory, Tally
from augself_hub.images.source import Item, Listing, ShardError, no_split
from augself_hub.images.words import MAX_NAME, Labels, same_split, splits_in_names, written_label

log = logging.getLogger(__name__)
MAX_HEADER = 2**16  # bytes of a long name or a pax header
MAX_JSON = 2**24
MAX_SPARSE = 1000  # blocks of a sparse member's map
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
FOREIGN = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".ppm", ".pgm")
PEEK = 64  # samples of the first tar that say whether labels are names
_LABELS = ("label", "cls", "class")


class Sample(NamedTuple):
    """One sample of a tar.

    Args:
        name: shard/key. start, size: where the image's bytes are in the (decompressed) tar.
        data: the image's bytes, where they were asked for. label: as it is written.
        problem: why there is no image.
    """

    name: str
    start: int
    size: int
    data: bytes
    label: str | None
    problem: str | None


class StrictHeader(tarfile.TarInfo):
    """tarfile's headers, but damage is no end of the archive, and nothing unbounded is read."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error

    def _block(self, count: int) -> int:
        if count < 0:  # which older Pythons follow backwards, for ever
            raise tarfile.InvalidHeaderError("a negative size")  # type: ignore[attr-defined]
        rounded: int = super()._block(count)  # type: ignore[misc]
        return rounded

    def _proc_member(self, tar: Any) -> Any:
        if self.type in _EXTENDED and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes at byte {tar.offset}")
        if self.type == tarfile.XGLTYPE:  # these are kept, and copied for every member
            tar.global_bytes = getattr(tar, "global_bytes", 0) + self.size
            if tar.global_bytes > MAX_HEADER:
                raise tarfile.ReadError(f"more than {MAX_HEADER} bytes of global headers")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_sparse(self, tar: Any) -> Any:
        """The map is passed over: sparse members are not read."""
        _, more, whole = self._sparse_structs  # type: ignore[attr-defined]
        for _ in range(MAX_SPARSE):
            if not more:
                break
            more = any(tar.fileobj.read(tarfile.BLOCKSIZE)[504:505])
        else:
            raise tarfile.ReadError(f"a sparse member's map is too long at byte {tar.offset}")
        self.sparse = []  # type: ignore[assignment]
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)
        self.size = whole
        return self

    def _proc_gnusparse_10(self, following: Any, headers: Any, tar: Any) -> None:
        following.sparse = []


_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def key_and_suffix(path: str) -> tuple[str, str]:
    """a/b.seg.png -> a/b, .seg.png: WebDataset's sample and its part; a hidden file has no key."""
    folder, slash, base = path.rpartition("/")
    stem, dot, kind = base.partition(".")
    return (folder + slash + stem if stem and dot else ""), f".{kind.casefold()}"


def tar_samples(
    url: str, shard: str, left_out: Callable[[str, str], None], packed: bool, load: bool
) -> Iterator[Sample]:
    """The samples of one tar, in order.

    A sample is whole when the next one begins, so damage takes the one before it along.

    Args:
        shard: what its samples' names begin with. left_out: called with (reason, name).
        packed: it can only be read in order. load: whether to read the images' bytes too, in order.

    Raises:
        ShardError: the tar is damaged from here on. AugSelfError: it cannot be reached.
    """
    mode = "r|*" if packed or (load and "://" in url) else "r:"
    try:
        with (
            open_file(url) as file,
            tarfile.open(fileobj=file, mode=mode, tarinfo=StrictHeader) as tar,  # type: ignore[call-overload]
        ):
            for key, members in groupby(_members(tar, shard, left_out), lambda member: member[0]):
                if (sample := _sample(tar, f"{shard}/{key}", members, left_out, load)) is not None:
                    yield sample
    except DAMAGE as error:
        raise (
            unreachable(url, error)
            or ShardError(f"the rest of the shard is damaged: {one_line(error)}")
        ) from error


def _members(
    tar: tarfile.TarFile, shard: str, left_out: Callable[[str, str], None]
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, suffix, header) of every regular member that has a key; of the others it is said."""
    for header in tar:
        key, suffix = key_and_suffix(header.name)
        hidden = header.name.rpartition("/")[2].startswith(".")
        if key and header.isreg() and not header.name.startswith("__MACOSX/"):
            yield key, suffix, header
        elif not header.isdir():
            reason = "hidden" if hidden or key else "files without a suffix"
            if not header.isreg():
                reason = "links and devices"
            left_out(reason, f"{shard}/{name_of(header.name)[0]}")
        tar.members = []  # type: ignore[attr-defined] # else it remembers every member it has passed


def _sample(
    tar: tarfile.TarFile,
    name: str,
    members: Iterator[tuple[str, str, tarfile.TarInfo]],
    left_out: Callable[[str, str], None],
    load: bool,
) -> Sample | None:
    """None where there is neither an image nor what should have one: a text, a note.

    Every image of another sort, and every sample without any, is counted.
    """
    name, problem = name_of(name)
    image: tuple[str, tarfile.TarInfo, bytes] | None = None
    foreign, first, labelled, label = list[str](), "", False, None
    for _, suffix, header in members:
        first = first or suffix
        last = suffix_of(header.name)
        if last in SUFFIXES:
            if image is None or (suffix == last and image[0] not in SUFFIXES):
                # .jpg is the sample's image; .seg.png is one only where there is no other
                if image is not None:
                    left_out("further images of a sample", name + image[0])
                problem = problem or _too_much(header, MAX_BYTES)
                data = _content(tar, header) if load and not problem else b""
                image = (suffix, header, data)
            elif suffix == image[0]:
                left_out("same key and suffix as the image before", name + suffix)
            else:
                left_out("further images of a sample", name + suffix)
        elif suffix in _SIDECARS:
            labelled = labelled or suffix == ".cls"
            if found := _too_much(header, _SIDECARS[suffix]):
                problem = problem or f"its {suffix}: {found}"
            elif suffix == ".cls" or label is None:
                try:
                    label = _SIDECAR_LABEL[suffix](_content(tar, header)) or label
                except ValueError as error:
                    problem = problem or str(error)
        elif last in FOREIGN:
            foreign.append(suffix)
    for suffix in foreign if image is not None else foreign[1:]:
        left_out(f"{suffix_of(name + suffix)} files beside the image of a sample", name + suffix)
    if image is not None:
        _, header, data = image
        return Sample(name, header.offset_data, header.size, data, label, problem)
    if not (labelled or foreign):
        left_out(f"no image: {suffix_of(name + first)}", name + first)
        return None
    problem = (
        f"{suffix_of(name + foreign[0])} is not read" if foreign else "the sample has no image"
    )
    return Sample(name, 0, 0, b"", None, problem)


_SIDECARS = {".cls": MAX_NAME, ".json": MAX_JSON}


def _too_much(header: tarfile.TarInfo, most: int) -> str | None:
    """Why a member's content is not read."""
    if header.issparse():
        return "it is a sparse file"
    return f"it has {header.size} bytes, more than {most}" if header.size > most else None


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(header)
    return file.read() if file else b""


def _json_label(data: bytes) -> str | None:
    try:
        record = json.loads(data)
        values = (record.get(name) for name in _LABELS) if isinstance(record, dict) else ()
        return next((text for value in values if (text := written_label(value))), None)
    except (ValueError, RecursionError):
        return None


_SIDECAR_LABEL: dict[str, Callable[[bytes], str | None]] = {
    ".cls": written_label,
    ".json": _json_label,
}


# -- The source ------------------------------------------------------------------------------------


class Scan:
    """What one pass over the headers of tars has found: columns of N samples, in order."""

    def __init__(self, urls: Sequence[str], shards: Sequence[str], packed: Sequence[bool]) -> None:
        self.names: list[str] = []
        self.number, self.start, self.size = array("i"), array("q"), array("q")
        self.written: list[str | None] = []
        self.problems: dict[int, str] = {}
        self.damaged: dict[str, str] = {}
        self.tally = Tally()
        for number, (url, shard) in enumerate(zip(urls, shards, strict=True)):
            try:
                for sample in tar_samples(url, shard, self._left_out, packed[number], load=False):
                    self.tally.found += 1
                    if sample.problem:
                        self.problems[len(self.names)] = sample.problem
                    self.names.append(sample.name)
                    self.number.append(number)
                    self.start.append(sample.start)
                    self.size.append(sample.size)
                    self.written.append(sample.label)
            except ShardError as error:
                self.damaged[shard] = str(error)
        self.rule = Labels.of_values(set(self.written))
        for position, text in enumerate(self.written):
            try:
                self.rule.number(text)
            except ValueError as error:
                self.problems.setdefault(position, str(error))

    def _left_out(self, reason: str, name: str) -> None:
        self.tally.found += 1
        self.tally.leave_out(reason, name)


@dataclass(frozen=True)
class TarSource:
    """Tars, each one a shard.

    Args:
        urls: of the tars. names: what they are called below the folder they share.
        splits: of each, by its name; None where names do not say.
        rule: how labels are read; None: not known before all is read.
        notes: for the inventory.
    """

    location: str
    urls: Sequence[str]
    names: Sequence[str]
    splits: Sequence[str | None]
    rule: Labels
    seekable: bool
    notes: tuple[str, ...] = ()
    known: Scan | None = None
    advice = "put a .cls, or a .json with a label, beside each image of the tars"

    @classmethod
    def open(
        cls, location: str, urls: Sequence[str], notes: Sequence[str] = (), stream: bool = False
    ) -> TarSource:
        """Local tars that can be sought in are scanned; of others the first samples are looked at.

        Args:
            stream: nothing is scanned.
        """
        names = shard_names(urls)
        packed = [is_packed(url) for url in urls]
        source = cls(
            location, urls, names, splits_in_names(names), Labels([]), not any(packed), tuple(notes)
        )
        if stream:
            note = "labels that are names are not known before all is read"
            notes = (*notes, note) if source._has_names() else tuple(notes)
            return replace(source, rule=Labels([], strict=False), notes=notes)
        if not (any(packed) or any("://" in url for url in urls)):
            return replace(source, known=source.scan, rule=source.scan.rule)
        if not source._has_names():
            return source
        log.info("%s: reading %d tars once for the names of their classes", location, len(urls))
        return replace(source, known=source.scan, rule=source.scan.rule)

    @property
    def classes(self) -> list[str]:
        return self.rule.classes

    @cached_property
    def scan(self) -> Scan:
        if self.known is not None:
            return self.known
        return Scan(self.urls, self.names, [is_packed(url) for url in self.urls])

    def _has_names(self) -> bool:
        """Whether the first label that is met is a name."""
        first, packed = self.urls[0], is_packed(self.urls[0])
        try:
            samples = tar_samples(first, "", lambda *_: None, packed, load=False)
            for sample in islice(samples, PEEK + 1):
                if sample.label is not None:
                    return bool(Labels.of_values([sample.label]).named)
        except ShardError:  # the shard will say so
            return False
        return False

    @cached_property
    def inventory(self) -> Inventory:
        if self.known is None:
            ordered = f"{len(self.urls)} tars that are read in order"
            return Inventory(self.location, "tars", notes=(ordered, *self.notes))
        scan, labels = self.known, Counter[str]()
        for position, text in enumerate(scan.written):
            if text is not None and position not in scan.problems:
                number = self.rule.number(text)
                labels[self.classes[number or 0] if self.classes else str(number)] += 1
        splits = Counter(self.splits[number] for number in scan.number)
        notes = [f"{name}: {reason}" for name, reason in list(scan.damaged.items())[:3]]
        if scan.problems:
            position, problem = next(iter(scan.problems.items()))
            count, name = len(scan.problems), scan.names[position]
            notes.append(f"{count} cannot be read, the first is {name}: {problem}")
        classes = dict(labels.most_common())
        return scan.tally.inventory(
            self.location, "tars", len(scan.names), classes, splits, [*notes, *self.notes]
        )

    def chosen(self, split: str) -> TarSource:
        kept = [i for i, name in enumerate(self.splits) if same_split(name, split)]
        if not kept:
            there = dict.fromkeys(name for name in self.splits if name)
            raise no_split(self.location, split, list(there))
        urls, names = ([column[i] for i in kept] for column in (self.urls, self.names))
        part = replace(self, urls=urls, names=names, splits=[self.splits[i] for i in kept],
                       known=None)  # fmt: skip
        if self.known is None:
            return part
        # classes are those of all splits, so that a label means the same in each
        return replace(part, known=part.scan)

    def shards(self, rows: int) -> list[TarShard]:
        return [
            TarShard(url, name, split, self.rule)
            for url, name, split in zip(self.urls, self.names, self.splits, strict=True)
        ]

    def listing(self) -> Listing:
        if not self.seekable:
            packed = next(url for url in self.urls if is_packed(url))
            raise UsageError(
                f"{packed} is compressed: unpack it, or read it in order (--stream, stream:...)"
            )
        scan, rule = self.scan, self.rule if self.known else self.scan.rule
        labels, _ = rule.numbers(scan.written)
        splits = [self.splits[number] for number in scan.number] if any(self.splits) else None
        for name, reason in scan.damaged.items():
            log.warning("skipped the rest of %s, which is damaged: %s", name, reason)
        read = _Places(self.urls, scan.number, scan.start, scan.size, scan.problems)
        return Listing(scan.names, labels, splits, read, True, tuple(scan.damaged), len(self.urls))


def is_packed(url: str) -> bool:
    """Whether a tar can only be read in order: a local one by its first bytes."""
    if "://" in url:
        return url.casefold().endswith(COMPRESSED)
    try:
        with open_file(url) as file:
            return file.read(8).startswith(_MAGIC)
    except OSError:
        return False


@dataclass(frozen=True)
class TarShard:
    """One tar, read from its beginning to its end."""

    url: str
    name: str
    split: str | None
    rule: Labels

    @cached_property
    def digest(self) -> str:
        return file_digest(self.url, *([self.rule.classes] if self.rule.named else []))

    @property
    def images(self) -> None:
        return None

    def items(self, left_out: Callable[[str, str], None] | None = None) -> Iterator[Item]:
        noted = left_out or (lambda *_: None)
        for sample in tar_samples(self.url, self.name, noted, is_packed(self.url), load=True):
            problem, label = sample.problem, None
            try:
                label = self.rule.number(sample.label)
            except ValueError as error:
                problem = problem or str(error)
            images = () if problem else (sample.data,)
            yield Item((sample.name,), images, label, self.split, problem)


@dataclass(frozen=True)
class _Places:
    """Images by where their bytes are."""

    urls: Sequence[str]
    number: Sequence[int]
    start: Sequence[int]
    size: Sequence[int]
    problems: dict[int, str]

    def __call__(self, index: int) -> bytes:
        if (problem := self.problems.get(index)) is not None:
            raise ImageError(problem)
        url, start, size = self.urls[self.number[index]], self.start[index], self.size[index]
        if "://" not in url:
            with open_file(url) as file:
                file.seek(start)
                return file.read(size)
        files = file_system(url)  # fsspec keeps one for each process
        try:
            data: bytes = files.cat_file(url, start, start + size)
            return data
        except OSError as error:
            raise (unreachable(url, error) or error) from error
