"""Tiny copies of the data sets, in the directory structure and formats their authors publish.

Every picture is 10 x 12 pixels of one colour, so that a test can say which one was read.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 0, 0)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def pickled(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


def cifar10(data: Path) -> None:
    place = data / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.repeat(np.arange(4, dtype=np.uint8)[:, None] + 10 * number, 3072, axis=1)
        pickled(place / name, {"data": pixels, "labels": [0, 1, 0, 1]})
    pickled(place / "batches.meta", {"label_names": ["airplane", "automobile"]})


FINE = ["apple", "baby", "beaver", "bed"]


def cifar100(data: Path) -> None:
    place = data / "cifar-100-python"
    for number, name in enumerate(("train", "test")):
        pixels = np.repeat(np.arange(20, dtype=np.uint8)[:, None] + 100 * number, 3072, axis=1)
        labels = {"fine_labels": [0, 1, 2, 3] * 5, "coarse_labels": [4, 14, 0, 6] * 5}
        pickled(place / name, {"data": pixels, **labels})
    pickled(place / "meta", {"fine_label_names": FINE, "coarse_label_names": list("abcd")})


def food101(data: Path) -> None:
    meta = {"train": {}, "test": {}}
    for number, name in enumerate(("apple_pie", "waffles")):
        for split, count in (("train", 10), ("test", 2)):
            keys = [f"{name}/{1000 * number + 100 * (split == 'test') + i}" for i in range(count)]
            meta[split][name] = keys
            for key in keys:
                picture(data / f"food-101/images/{key}.jpg", 100 * number)
    for split, keys in meta.items():
        text(data / f"food-101/meta/{split}.json", json.dumps(keys))


def mit67(data: Path) -> None:
    for split, count in (("Train", 8), ("Test", 2)):
        names = [f"{c}/{split}_{i}.jpg" for c in ("airport_inside", "bar") for i in range(count)]
        text(data / f"mit67/{split}Images.txt", *names)
        for name in names:
            picture(data / "mit67/Images" / name)


def pets(data: Path) -> None:
    place = data / "oxford-iiit-pet"
    for split, count in (("trainval", 10), ("test", 3)):
        lines = []
        for label, name in enumerate(("Abyssinian", "american_bulldog"), 1):
            for i in range(count):
                stem = f"{name}_{i + 100 * (split == 'test')}"
                picture(place / f"images/{stem}.jpg", 100 * label)
                lines.append(f"{stem} {label} {label} {label}")
        text(place / f"annotations/{split}.txt", *lines)


def flowers(data: Path) -> None:
    place = data / "flowers-102"
    for i in range(1, 9):
        picture(place / f"jpg/image_{i:05d}.jpg", i)
    scipy.io.savemat(place / "imagelabels.mat", {"labels": np.array([1, 1, 1, 1, 2, 2, 2, 2])})
    sets = {"trnid": [1, 5], "valid": [2, 6], "tstid": [3, 4, 7, 8]}
    scipy.io.savemat(place / "setid.mat", {k: np.array(v) for k, v in sets.items()})


def caltech101(data: Path) -> None:
    place = data / "caltech101/101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 3), ("accordion", 34), ("yin_yang", 40)):
        for i in range(1, count + 1):
            picture(place / name / f"image_{i:04d}.jpg", i)


def cars(data: Path) -> None:
    place = data / "stanford_cars"
    names = np.array(["AM General Hummer SUV 2000", "smart fortwo Convertible 2012"], object)
    (place / "devkit").mkdir(parents=True)
    scipy.io.savemat(place / "devkit/cars_meta.mat", {"class_names": names})
    kind = [(f"bbox_{c}", object) for c in ("x1", "y1", "x2", "y2")]
    kind += [("class", object), ("fname", object)]
    for split, count in (("train", 10), ("test", 4)):
        rows = np.array(
            [(1, 1, 9, 9, i % 2 + 1, f"{i:05d}.jpg") for i in range(1, count + 1)], kind
        )
        for i in range(1, count + 1):
            picture(place / f"cars_{split}/{i:05d}.jpg", i)
        name = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
        scipy.io.savemat(place / name[split], {"annotations": rows})


def aircraft(data: Path) -> None:
    place = data / "fgvc-aircraft-2013b/data"
    text(place / "variants.txt", "707-320", "A310")
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{number}{i:06d}" for i in range(4)]
        labels = ("707-320", "A310", "707-320", "A310")
        for name in names:
            picture(place / f"images/{name}.jpg", number)
        lines = [f"{name} {label}" for name, label in zip(names, labels, strict=True)]
        text(place / f"images_variant_{split}.txt", *lines)


def dtd(data: Path) -> None:
    place = data / "dtd/dtd"
    for number, split in enumerate(("train", "val", "test")):
        for partition in (1, 2):
            names = [f"{c}/{c}_{partition}{number}.jpg" for c in ("banded", "zigzagged")]
            text(place / f"labels/{split}{partition}.txt", *names)
            for name in names:
                picture(place / "images" / name, number)


def sun397(data: Path) -> None:
    place = data / "SUN397"
    text(place / "ClassName.txt", "/a/abbey", "/c/church/outdoor")
    for name, count in (("Training_01", 5), ("Testing_01", 2)):
        stems = [
            f"{c}/sun_{name}{i}.jpg" for c in ("a/abbey", "c/church/outdoor") for i in range(count)
        ]
        text(place / f"{name}.txt", *(f"/{stem}" for stem in stems))
        for stem in stems:
            picture(place / stem)
    picture(place / "a/abbey/sun_in_no_list.jpg")


def stl10(data: Path) -> None:
    place = data / "stl10_binary"
    place.mkdir()
    for number, (split, count) in enumerate((("train", 20), ("test", 6))):
        pixels = np.zeros((count, 3, 96, 96), np.uint8)
        pixels[:, 0] = 50 + number
        pixels.tofile(place / f"{split}_X.bin")
        (np.arange(count, dtype=np.uint8) % 2 + 1).tofile(place / f"{split}_y.bin")
    text(place / "class_names.txt", "airplane", "bird")


def cub200(data: Path) -> None:
    place = data / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    paths = [f"{name}/{name[4:]}_{i:04d}_{i}.jpg" for name in names for i in range(12)]
    for number, path in enumerate(paths):
        picture(place / "images" / path, number)
    text(place / "classes.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    text(place / "images.txt", *(f"{i} {path}" for i, path in enumerate(paths, 1)))
    columns: dict[str, Callable[[int], str]] = {
        "image_class_labels": lambda i: str(1 + (i > 12)),
        "train_test_split": lambda i: str(i % 6 and 1),
        "bounding_boxes": lambda i: f"{i / 10:.1f} 2.0 6.0 4.0",
    }
    for name, column in columns.items():
        text(place / f"{name}.txt", *(f"{i} {column(i)}" for i in range(1, len(paths) + 1)))


def plant_disease(data: Path) -> None:
    for split, count in (("train", 10), ("test", 3)):
        for name in ("Apple___Apple_scab", "Tomato___healthy"):
            for i in range(count):
                picture(data / f"plant-disease/{split}/{name}/{i}.JPG", i)


COPIES: dict[str, Callable[[Path], None]] = {
    one.__name__: one
    for one in (
        *(cifar10, cifar100, food101, mit67, pets, flowers, caltech101, cars, aircraft, dtd),
        *(sun397, stl10, cub200, plant_disease),
    )
}


@pytest.fixture
def copy_of() -> Callable[[str, Path], None]:
    """Name of a data set, folder -> its tiny copy there. FC100 lies in CIFAR-100's folder."""
    return lambda name, data: COPIES["cifar100" if name == "fc100" else name](data)


@pytest.fixture
def paint() -> Callable[..., None]:
    return picture
