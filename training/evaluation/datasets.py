"""The data sets of the paper's transfer evaluation, and any others by folder or Hub id.

    cifar10, food101 ...    below --data, in the layout their authors or torchvision give them
    anything else           a source of labelled images, as every command takes it

Splits, sizes and metrics: AugSelf (arXiv:2111.09613), appendix on transfer evaluation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images import AS_FOUND, Options
from training.evaluation.layouts import (
    Reader,
    caltech101,
    cifar,
    cub200,
    fc100,
    mit67,
    of_source,
    plant_disease,
    stl10,
    sun397,
    torchvision_files,
)
from training.evaluation.listing import TEST, TRAIN, VALIDATION, LabelledImages

log = logging.getLogger(__name__)
TOP_1, MEAN_PER_CLASS = "top-1", "mean per class"


@dataclass(frozen=True)
class DataSet:
    """One of the paper's data sets.

    Args:
        title: for people.
        layout: what has to be below --data.
        source: where to get it.
        read: (data, download) -> its images.
        metric: of its classification.
        downloads: torchvision can fetch it.
    """

    title: str
    layout: str
    source: str
    read: Reader
    metric: str = TOP_1
    downloads: bool = True


_IMAGE_FILES = ("_image_files", "_labels")
_TRAIN_TEST = {TRAIN: {"split": "train"}, TEST: {"split": "test"}}
_THREE = {**_TRAIN_TEST, VALIDATION: {"split": "val"}}

DATASETS: dict[str, DataSet] = {
    "cifar10": DataSet(
        "CIFAR-10",
        "cifar-10-batches-py/ (python version, unpacked)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        cifar("CIFAR10", "cifar-10-batches-py"),
    ),
    "cifar100": DataSet(
        "CIFAR-100",
        "cifar-100-python/ (python version, unpacked)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        cifar("CIFAR100", "cifar-100-python"),
    ),
    "food101": DataSet(
        "Food-101",
        "food-101/images/ and food-101/meta/",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        torchvision_files("Food101", _IMAGE_FILES, _TRAIN_TEST, 7575 / 75750),
    ),
    "mit67": DataSet(
        "MIT67",
        "mit67/Images/CLASS/*.jpg, mit67/TrainImages.txt and mit67/TestImages.txt",
        "https://web.mit.edu/torralba/www/indoor.html",
        mit67,
        downloads=False,
    ),
    "pets": DataSet(
        "Oxford-IIIT Pets",
        "oxford-iiit-pet/images/ and oxford-iiit-pet/annotations/",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        torchvision_files(
            "OxfordIIITPet",
            ("_images", "_labels"),
            {TRAIN: {"split": "trainval"}, TEST: {"split": "test"}},
            740 / 3680,
        ),
        MEAN_PER_CLASS,
    ),
    "flowers": DataSet(
        "Flowers-102",
        "flowers-102/jpg/, flowers-102/imagelabels.mat and flowers-102/setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        torchvision_files("Flowers102", _IMAGE_FILES, _THREE),
        MEAN_PER_CLASS,
    ),
    "caltech101": DataSet(
        "Caltech-101",
        "caltech101/101_ObjectCategories/CLASS/image_0001.jpg ...",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        caltech101,
        MEAN_PER_CLASS,
    ),
    "cars": DataSet(
        "Stanford Cars",
        "stanford_cars/ with cars_train/, cars_test/, cars_test_annos_withlabels.mat and devkit/",
        "the archive its authors named (their own page is gone)",
        torchvision_files("StanfordCars", "_samples", _TRAIN_TEST, 1650 / 8144),
        downloads=False,
    ),
    "aircraft": DataSet(
        "FGVC-Aircraft",
        "fgvc-aircraft-2013b/data/",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        torchvision_files("FGVCAircraft", _IMAGE_FILES, _THREE),
        MEAN_PER_CLASS,
    ),
    "dtd": DataSet(
        "DTD",
        "dtd/dtd/images/ and dtd/dtd/labels/",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        torchvision_files(
            "DTD", _IMAGE_FILES, {s: {**o, "partition": 1} for s, o in _THREE.items()}
        ),
    ),
    "sun397": DataSet(
        "SUN397",
        "SUN397/a/abbey/*.jpg ..., SUN397/Training_01.txt and SUN397/Testing_01.txt",
        "https://vision.princeton.edu/projects/2010/SUN/ (images and Partitions.zip)",
        sun397,
    ),
    "stl10": DataSet(
        "STL-10",
        "stl10_binary/",
        "https://cs.stanford.edu/~acoates/stl10/",
        stl10,
    ),
    "cub200": DataSet(
        "CUB-200",
        "CUB_200_2011/ with images/, images.txt, classes.txt, bounding_boxes.txt ...",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        cub200,
        downloads=False,
    ),
    "fc100": DataSet(
        "FC100",
        "cifar-100-python/ (FC100 is a choice of CIFAR-100's classes)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        fc100,
    ),
    "plant_disease": DataSet(
        "Plant Disease",
        "plant-disease/train/CLASS/*.jpg and plant-disease/test/CLASS/*.jpg",
        "https://www.kaggle.com/datasets/saroz014/plant-disease",
        plant_disease,
        downloads=False,
    ),
}


def open_dataset(
    name: str, data: Path | None, download: bool = False, options: Options = AS_FOUND
) -> LabelledImages:
    """One data set: a key of DATASETS below `data`, or a source, read as `options` say.

    Raises:
        UsageError: there is no such data set, no --data, or nothing can download it.
        AugSelfError: it is not there; says where to get it and how to lay it out.
    """
    check_name(name)
    if name not in DATASETS:
        return of_source(name, options)
    if data is None:
        raise UsageError(f"{name} needs --data, the folder that holds {DATASETS[name].layout}")
    if download and not DATASETS[name].downloads:
        raise UsageError(f"--download cannot fetch {name}: {_advice(name, data)}")
    images = _read(name, data, download)
    log.info("%s", images.inventory.text())
    return images


def check_name(name: str) -> None:
    """Raise UsageError for a name that can be no data set: a mere word that is no file either."""
    if name not in DATASETS and not (set(name) & set("/.:*?[{") or Path(name).exists()):
        raise UsageError(
            f"unknown data set {name!r}: use {', '.join(DATASETS)}, or a source such as a folder, "
            "tars, parquet files or org/name"
        )


def metric_of(name: str) -> str:
    """How the paper counts this data set; top-1 for others."""
    return DATASETS[name].metric if name in DATASETS else TOP_1


def _read(name: str, data: Path, download: bool) -> LabelledImages:
    try:
        return DATASETS[name].read(data, download)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise AugSelfError(
            f"no {DATASETS[name].title} in {data} ({reason}): {_advice(name, data)}"
        ) from error


def _advice(name: str, data: Path) -> str:
    found = DATASETS[name]
    download = ", or give --download" if found.downloads else ""
    return f"get it from {found.source} and lay it out as {data}/{found.layout}{download}"
