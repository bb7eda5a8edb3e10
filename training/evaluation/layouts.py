"""Readers of labelled data sets: official layouts, and any source of `augself_hub.images`.

torchvision reads those it knows. Of sets that are image files only the paths are taken from it, so
that extraction sees the original bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images import AS_FOUND, Options, open_source, split_of
from augself_hub.images.inventory import Tally
from augself_hub.images.listed import read_csv
from augself_hub.images.source import class_name
from augself_hub.images.words import refuse_twice
from training.data.sources import lines_of
from training.evaluation.listing import (
    TEST,
    TRAIN,
    VALIDATION,
    LabelledImages,
    keyed_share,
    png,
    with_validation,
)

log = logging.getLogger(__name__)
BOXES = "boxes.csv"
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of data that comes without splits of its own
CALTECH_TRAIN, CALTECH_VALIDATION = 25, 5  # images a class
FC100_TEST = (
    *("beaver", "dolphin", "otter", "seal", "whale"),  # aquatic mammals
    *("bee", "beetle", "butterfly", "caterpillar", "cockroach"),  # insects
    *("fox", "porcupine", "possum", "raccoon", "skunk"),  # medium-sized mammals
    *("baby", "boy", "girl", "man", "woman"),  # people
)
_SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
SHARD_ROWS = 2048
Row = tuple[Path, str, str]
Reader = Callable[[Path, bool], LabelledImages]


def of_files(name: str, root: Path, rows: Iterable[Row]) -> LabelledImages:
    """(path, class, split) of image files below a root -> the list, sorted by path.

    Raises:
        FileNotFoundError: there are none.
    """
    listed = sorted((p.relative_to(root).as_posix(), label, split) for p, label, split in rows)
    if not listed:
        raise FileNotFoundError(f"{root} holds no images of {name}")
    ids, classes, splits = map(list, zip(*listed, strict=True))
    paths = [root / i for i in ids]
    return LabelledImages(name, ids, classes, splits, paths.__getitem__, paths)


def of_arrays(
    name: str, parts: Sequence[tuple[str, np.ndarray, Sequence[str]]], files: Sequence[Path]
) -> LabelledImages:
    """(split, (N, H, W, 3) uint8, N classes) of each part -> the list, in their order."""
    pixels = [image for _, images, _ in parts for image in images]
    ids = [f"{split}/{i}" for split, images, _ in parts for i in range(len(images))]
    classes = [label for _, _, labels in parts for label in labels]
    splits = [split for split, images, _ in parts for _ in images]
    return LabelledImages(name, ids, classes, splits, lambda i: png(pixels[i]), files)


def torchvision_files(
    name: str,
    attributes: tuple[str, str] | str,
    parts: dict[str, dict[str, Any]],
    validation: float | None = None,
) -> Reader:
    """A data set of image files that torchvision reads.

    Args:
        name: of torchvision's class.
        attributes: where it keeps its paths and its labels, or its pairs of them.
        parts: our split -> the options that ask for it.
        validation: share of the training images; None: there is an official split.
    """

    def read(data: Path, download: bool) -> LabelledImages:
        from torchvision import datasets

        rows: list[Row] = []
        for split, options in parts.items():
            part = getattr(datasets, name)(data, **options, download=download)
            rows += [(Path(p), part.classes[int(n)], split) for p, n in _pairs(part, attributes)]
        images = of_files(name, data, rows)
        return images if validation is None else with_validation(images, validation)

    return read


def _pairs(part: Any, attributes: tuple[str, str] | str) -> Iterable[tuple[Any, Any]]:
    if isinstance(attributes, str):
        pairs: Iterable[tuple[Any, Any]] = getattr(part, attributes)
        return pairs
    return zip(*(getattr(part, attribute) for attribute in attributes), strict=True)


def cifar(name: str, folder: str) -> Reader:
    """CIFAR-10 and CIFAR-100 in their python version; 45,000 / 5,000 / 10,000 images."""

    def read(data: Path, download: bool) -> LabelledImages:
        return with_validation(_cifar(name, folder, data, download), 0.1)

    return read


def _cifar(name: str, folder: str, data: Path, download: bool) -> LabelledImages:
    from torchvision import datasets

    parts = []
    for split in (TRAIN, TEST):
        part = getattr(datasets, name)(data, train=split == TRAIN, download=download)
        parts.append((split, part.data, [part.classes[n] for n in part.targets]))
    return of_arrays(name, parts, sorted((data / folder).iterdir()))


def fc100(data: Path, download: bool) -> LabelledImages:
    """FC100's test classes: four superclasses of CIFAR-100, its training and test images of them.

    Source: Oreshkin et al., TADAM, NeurIPS 2018.
    """
    images = _cifar("CIFAR100", "cifar-100-python", data, download)
    kept = [i for i, label in enumerate(images.classes) if label in FC100_TEST]
    return dataclasses.replace(
        images,
        name="FC100",
        ids=[images.ids[i] for i in kept],
        classes=[images.classes[i] for i in kept],
        splits=[TEST] * len(kept),
        read=lambda i: images.read(kept[i]),
    )


def stl10(data: Path, download: bool) -> LabelledImages:
    """The labelled images: 4,500 / 500 / 8,000."""
    from torchvision import datasets

    parts = []
    for split in (TRAIN, TEST):
        part = datasets.STL10(data, split=split, download=download)
        names = [part.classes[n] for n in part.labels]
        parts.append((split, part.data.transpose(0, 2, 3, 1), names))
    files = sorted((data / "stl10_binary").glob("t*_[Xy].bin"))
    return with_validation(of_arrays("STL10", parts, files), 0.1)


def caltech101(data: Path, download: bool) -> LabelledImages:
    """25 and 5 keyed images a class for training and validation, the rest is the test."""
    from torchvision import datasets

    found = datasets.Caltech101(data, download=download)
    names = [found.categories[n] for n in found.y]
    folder = data / "caltech101" / "101_ObjectCategories"
    paths = [
        folder / name / f"image_{i:04d}.jpg" for name, i in zip(names, found.index, strict=True)
    ]
    images = of_files("Caltech101", data, zip(paths, names, [TEST] * len(names), strict=True))
    splits = np.array(images.splits, dtype=object)
    classes = np.asarray(images.classes)
    for split, count in ((TRAIN, CALTECH_TRAIN), (VALIDATION, CALTECH_VALIDATION)):
        for name in np.unique(classes):
            rows = np.flatnonzero((classes == name) & (splits == TEST))
            ids = [images.ids[i] for i in rows.tolist()]
            splits[rows[keyed_share(ids, [name] * len(rows), min(count, len(rows) - 1))]] = split
    return dataclasses.replace(images, splits=splits.tolist())


def sun397(data: Path, download: bool) -> LabelledImages:
    """Partition 01: 50 and 50 images of each of 397 classes; 10 of the first are validation."""
    from torchvision import datasets

    folder = data / "SUN397"
    if download:
        datasets.SUN397(data, download=True)
    rows: list[Row] = []
    for split, name in ((TRAIN, "Training_01.txt"), (TEST, "Testing_01.txt")):
        for line in lines_of(folder / name):
            letter_class = line.lstrip("/").rpartition("/")[0]
            rows.append((folder / line.lstrip("/"), letter_class.partition("/")[2], split))
    return with_validation(of_files("SUN397", data, rows), 0.2)


def mit67(data: Path, download: bool) -> LabelledImages:
    """MIT indoor scenes: 4,690 / 670 / 1,340."""
    folder = data / "mit67"
    rows = [
        (folder / "Images" / line, line.partition("/")[0], split)
        for split, name in ((TRAIN, "TrainImages.txt"), (TEST, "TestImages.txt"))
        for line in lines_of(folder / name)
    ]
    return with_validation(of_files("MIT67", data, rows), 1 / 8)


def cub200(data: Path, download: bool) -> LabelledImages:
    """Caltech-UCSD Birds 200-2011, with boxes."""
    folder = data / "CUB_200_2011"
    paths, labels, train, boxes = (
        dict(line.split(maxsplit=1) for line in lines_of(folder / f"{name}.txt"))
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    )
    names = dict(line.split(maxsplit=1) for line in lines_of(folder / "classes.txt"))
    split = {"1": TRAIN, "0": TEST}
    rows = [(folder / "images" / paths[i], names[labels[i]], split[train[i]]) for i in paths]
    images = with_validation(of_files("CUB-200", folder / "images", rows), VALIDATION_SHARE)
    at = {path: [float(v) for v in boxes[i].split()] for i, path in paths.items()}
    return dataclasses.replace(images, boxes=np.array([at[name] for name in images.ids]))


def plant_disease(data: Path, download: bool) -> LabelledImages:
    if not (data / "plant-disease").is_dir():
        raise FileNotFoundError(data / "plant-disease")
    images = of_source(str(data / "plant-disease"))
    return dataclasses.replace(images, name="Plant Disease")


def of_source(text: str, options: Options = AS_FOUND) -> LabelledImages:
    """Any source of `augself_hub.images` whose images have labels; of a folder perhaps boxes.csv.

    What has no test images gets a keyed 20% of each class as such, what has no validation images
    10% of the training images. boxes.csv has the columns path, left, top, width and height.

    Args:
        options: how it is read; of one split that is chosen all images are as those of train.

    Raises:
        AugSelfError: nothing is there, an image without a label, a box missing.
    """
    source = open_source(text, options)
    log.info("%s", source.inventory.text())
    listing = source.listing()
    said = listing.splits or []
    if options.split is not None or not said:
        said = ["train"] * len(listing.names)
    splits = [_SPLITS.get(split_of(split or "") or "") for split in said]
    kept = [row for row, split in enumerate(splits) if split is not None]
    if not kept:
        there = ", ".join(source.inventory.splits)
        raise AugSelfError(f"{text} has no split train or test, only {there}")
    if len(kept) < len(splits):
        other = dict.fromkeys(str(said[row]) for row, split in enumerate(splits) if split is None)
        log.info("%s: left out: %d images of %s", text, len(splits) - len(kept), ", ".join(other))
    tally = Tally.of(source.inventory)
    for row, split in enumerate(splits):
        if split is None:
            tally.leave_out(f"split {said[row]}", listing.names[row])
    root = Path(text.removeprefix("folder:"))
    images = LabelledImages(
        name=root.resolve().name if root.is_dir() and not text.startswith("hf:") else text,
        ids=[listing.names[row] for row in kept],
        classes=[class_name(source, listing.labels[row]) or "" for row in kept],
        splits=[split for split in splits if split is not None],
        read=lambda index: listing.read(kept[index]),
        files=(),
        version=json.dumps([shard.digest for shard in source.shards(SHARD_ROWS)]),
        advice=source.advice,
        tally=tally,
    )
    images, path = completed(images), root / BOXES
    if not path.is_file():
        return images
    boxes = boxes_of(path)
    if missing := [i for i in images.ids if i not in boxes]:
        raise AugSelfError(f"{path} has no box for {missing[0]}: give one for every image")
    if others := len(boxes) - len(images):
        log.info("%s: %d boxes of images that are not evaluated are left out", path, others)
    found = np.array([boxes[i] for i in images.ids])
    return dataclasses.replace(images, boxes=found, files=[*images.files, path])


def boxes_of(path: Path) -> dict[str, list[float]]:
    """boxes.csv -> path -> left, top, width, height in pixels.

    Raises:
        AugSelfError: a column is missing, an image is there twice, a number is none; says which.
    """
    header, rows = read_csv(path)
    columns = ("path", "left", "top", "width", "height")
    if lacking := [name for name in columns if name not in header]:
        raise AugSelfError(f"{path} has no column {lacking[0]}, only {', '.join(header)}")
    refuse_twice(columns, header, str(path))
    place = [header.index(name) for name in columns]
    boxes: dict[str, list[float]] = {}
    for row in rows:
        name, *texts = (row[column] for column in place)
        if name in boxes:
            raise AugSelfError(f"{path} has two boxes of {name}: leave one out")
        try:
            boxes[name] = [float(text) for text in texts]
        except ValueError:
            boxes[name] = [np.nan]
        if not np.isfinite(boxes[name]).all() or min(boxes[name][2:]) <= 0:
            raise AugSelfError(
                f"{path}: {name} has the box {', '.join(texts)}: give left, top, width and height "
                "in pixels"
            )
    return boxes


def completed(images: LabelledImages) -> LabelledImages:
    """Keyed test and validation images for what has none of its own."""
    if TEST not in images.splits and VALIDATION not in images.splits:
        chosen = keyed_share(images.ids, images.classes, round(TEST_SHARE * len(images)))
        splits = np.where(chosen, TEST, images.splits).tolist()
        images = dataclasses.replace(images, splits=splits)
    elif TEST not in images.splits:  # what is there to choose by is there to be tested on
        splits = [TEST if split == VALIDATION else split for split in images.splits]
        images = dataclasses.replace(images, splits=splits)
    if VALIDATION not in images.splits and TRAIN in images.splits:
        images = with_validation(images, VALIDATION_SHARE)
    return images


def boxes_in_view(images: LabelledImages) -> np.ndarray:
    """(N, 4) centre y, centre x, height, width of the boxes, as fractions of the square seen.

    The encoder sees the middle square of an image. A box may reach beyond it and is not clipped.

    Raises:
        AugSelfError: an image that cannot be read.
    """
    assert images.boxes is not None
    seen = np.empty_like(images.boxes)
    for index, (left, top, width, height) in enumerate(images.boxes):
        try:
            size = images.size(index)
        except (ImageError, OSError) as error:
            raise AugSelfError(f"{images.name}: {images.ids[index]}: {error}") from error
        side = min(size)
        x, y = left - (size[0] - side) / 2, top - (size[1] - side) / 2
        seen[index] = np.array([y + height / 2, x + width / 2, height, width]) / side
    return seen
