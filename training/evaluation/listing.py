"""A labelled data set as a list: what each image is called, its class, its split, where it is.

Extraction reads the list as a CSV of paths or, where a data set keeps its images in arrays, as a
parquet file of PNGs.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError
from augself_hub.images.structure import structure
from augself_hub.preprocess import decode

TRAIN, VALIDATION, TEST = "train", "val", "test"
SPLIT_SEED = 0  # fixed: a split is part of the protocol, not of a run
_ROWS = 512  # of a parquet file's row group


@dataclass(frozen=True)
class LabelledImages:
    """N labelled images in a fixed order.

    Args:
        name: of the data set.
        ids: N names, unique and the same on every machine; keyed splits depend on them.
        classes: N class names.
        splits: N of train, val and test.
        read: position -> the image's file, or its bytes.
        files: those whose size and time of change say whether the images changed.
        version: what else does.
        boxes: (N, 4) left, top, width, height in pixels of the image; None: not known.
    """

    name: str
    ids: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    read: Callable[[int], Path | bytes]
    files: Sequence[Path]
    version: str = ""
    boxes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if missing := [i for i, name in zip(self.ids, self.classes, strict=True) if not name]:
            raise AugSelfError(
                f"{self.name}: {len(missing)} images have no label, the first is {missing[0]}: "
                "sort the images into class sub-folders"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """RGB, upright. Raises ImageError or OSError for a damaged one."""
        found = self.read(index)
        return decode(found if isinstance(found, bytes) else found.read_bytes())

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the upright image, not decoded. Raises ImageError or OSError."""
        found = self.read(index)
        image = structure(found if isinstance(found, bytes) else found.read_bytes())
        turned = image.orientation >= 5
        return (image.height, image.width) if turned else (image.width, image.height)

    def rows(self, *splits: str) -> np.ndarray:
        """The positions of the images in these splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def fingerprint(self) -> str:
        """sha256 of names, classes, splits and of every file's size and time of change."""
        seen = hashlib.sha256(repr((self.name, self.version)).encode())
        for row in zip(self.ids, self.classes, self.splits, strict=True):
            seen.update(repr(row).encode())
        for path in self.files:
            status = path.stat()
            seen.update(repr((status.st_size, status.st_mtime_ns)).encode())
        return seen.hexdigest()

    def write(self, stem: Path) -> Path:
        """Write the list as stem.csv or stem.parquet, unless it is there already."""
        files = isinstance(self.read(0), Path)
        path = stem.with_name(f"{stem.name}.{'csv' if files else 'parquet'}")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            (self._write_csv if files else self._write_parquet)(new)
            new.rename(path)
        return path

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label", "split"))
            for index, (label, split) in enumerate(zip(self.classes, self.splits, strict=True)):
                rows.writerow((str(Path(self.read(index)).resolve()), label, split))  # type: ignore[arg-type]

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = [("image", pa.binary()), ("label", pa.string()), ("split", pa.string())]
        with parquet.ParquetWriter(path, pa.schema(types)) as file:
            for rows in self._groups():
                file.write_table(pa.Table.from_pylist(rows, pa.schema(types)))

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(self), _ROWS):
            yield [
                {"image": self.read(i), "label": self.classes[i], "split": self.splits[i]}
                for i in range(start, min(start + _ROWS, len(self)))
            ]


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) or (H, W) uint8 -> a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def keyed_share(ids: Sequence[str], classes: Sequence[str], count: int) -> np.ndarray:
    """(N,) bool: `count` of N images, of each class as many as its share of them.

    Which ones depends on their names and SPLIT_SEED alone. What rounding leaves over goes to the
    classes that lost most by it, in the order of their names.
    """
    names, number = np.unique(np.asarray(classes), return_inverse=True)
    exact = np.bincount(number) * (count / len(number))
    wanted = np.floor(exact + 1e-9).astype(int)
    lost = np.argsort(-(exact - wanted), kind="stable")
    wanted[lost[: count - wanted.sum()]] += 1
    chosen = np.zeros(len(number), bool)
    order = np.array([_key(name) for name in ids]).argsort()
    for label in range(len(names)):
        chosen[order[number[order] == label][: wanted[label]]] = True
    return chosen


def _key(name: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED}/{name}".encode()).hexdigest()


def with_validation(images: LabelledImages, share: float) -> LabelledImages:
    """The same with this share of the training images as validation images."""
    train = images.rows(TRAIN)
    ids, classes = ([names[i] for i in train] for names in (images.ids, images.classes))
    splits = np.array(images.splits, dtype=object)
    splits[train[keyed_share(ids, classes, round(share * len(train)))]] = VALIDATION
    return dataclasses.replace(images, splits=splits.tolist())
