"""The paper's data sets in their official layout, any folder, any Hugging Face data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images import Columns, Options
from training.evaluation.datasets import DATASETS, metric_of, open_dataset
from training.evaluation.examples import METRICS
from training.evaluation.layouts import boxes_in_view
from training.evaluation.listing import keyed_share

COUNTS = {
    "cifar10": (18, 2, 4),
    "cifar100": (18, 2, 20),
    "food101": (18, 2, 4),
    "mit67": (14, 2, 4),
    "pets": (16, 4, 6),
    "flowers": (2, 2, 4),
    "caltech101": (50, 10, 14),
    "cars": (8, 2, 4),
    "aircraft": (4, 4, 4),
    "dtd": (2, 2, 2),
    "sun397": (8, 2, 4),
    "stl10": (18, 2, 6),
    "cub200": (18, 2, 4),
    "fc100": (0, 0, 20),
    "plant_disease": (18, 2, 6),
}


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch):
    """torchvision knows the checksums of the real files; the copies have others."""
    for name in ("CIFAR10", "CIFAR100", "STL10", "Flowers102"):
        monkeypatch.setattr(getattr(torchvision_datasets, name), "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_read_in_its_official_layout(name, tmp_path, copy_of):
    """Two classes, the splits the protocol names, every image readable, ids without the machine."""
    copy_of(name, tmp_path)
    images = open_dataset(name, tmp_path)
    found = Counter(images.splits)
    assert (found["train"], found["val"], found["test"]) == COUNTS[name]
    assert len(set(images.ids)) == len(images) == sum(COUNTS[name])
    assert len(set(images.classes)) == (4 if name == "cifar100" else 2)
    assert not any(str(tmp_path) in i for i in images.ids)
    assert all(images.image(i).mode == "RGB" for i in range(len(images)))
    assert metric_of(name) in METRICS


def test_an_image_keeps_its_own_label(tmp_path, copy_of):
    """Where the copies paint the class into the picture, it is the class that was read."""
    for name in ("food101", "pets"):
        copy_of(name, tmp_path)
        images = open_dataset(name, tmp_path)
        order = sorted(set(images.classes), key=str.lower)
        shown = [images.image(i).getpixel((0, 0))[0] for i in range(len(images))]
        least = min(shown)
        assert [order[(value - least) // 90] for value in shown] == list(images.classes)


def test_fc100_is_the_test_classes_of_both_halves_of_cifar100(tmp_path, copy_of):
    copy_of("fc100", tmp_path)
    images = open_dataset("fc100", tmp_path)
    assert Counter(images.classes) == {"baby": 10, "beaver": 10}
    shown = [images.image(i).getpixel((0, 0))[0] for i in range(len(images))]
    assert shown == [100 * half + i for half in (0, 1) for i in range(20) if i % 4 in (1, 2)]


def test_partition_01_of_sun397_decides(tmp_path, copy_of):
    copy_of("sun397", tmp_path)
    images = open_dataset("sun397", tmp_path)
    assert set(images.classes) == {"abbey", "church/outdoor"}
    assert not any("in_no_list" in i for i in images.ids)


def test_partition_1_of_dtd_decides(tmp_path, copy_of):
    copy_of("dtd", tmp_path)
    assert all("_1" in i for i in open_dataset("dtd", tmp_path).ids)


@pytest.mark.parametrize(
    ("name", "classes", "each", "validation"),
    [
        ("food101", 101, 750, 7575),
        ("cifar10", 10, 5000, 5000),
        ("cifar100", 100, 500, 5000),
        ("mit67", 67, 80, 670),
        ("stl10", 10, 500, 500),
        ("sun397", 397, 50, 3970),
    ],
)
def test_the_validation_images_are_as_many_as_the_protocol_says(name, classes, each, validation):
    labels = [f"{c:03d}" for c in range(classes) for _ in range(each)]
    ids = [str(i) for i in range(len(labels))]
    chosen = keyed_share(ids, labels, validation)
    counts = Counter(np.array(labels)[chosen].tolist())
    assert chosen.sum() == validation
    assert set(counts.values()) == {validation // classes}


def test_classes_of_unequal_size_give_exactly_the_wanted_number():
    """Pets: 740 of 3,680 where no share of a class is a whole number."""
    labels = [str(c) for c, n in enumerate([99] * 20 + [100] * 17) for _ in range(n)]
    ids = [str(i) for i in range(len(labels))]
    chosen = keyed_share(ids, labels, 740)
    assert chosen.sum() == 740
    assert set(Counter(np.array(labels)[chosen].tolist()).values()) == {20}


def test_a_split_depends_on_names_alone():
    """Another order of the images, or one image more, moves no other image much."""
    ids, labels = [str(i) for i in range(200)], ["a", "b"] * 100
    chosen = {i for i, c in zip(ids, keyed_share(ids, labels, 40), strict=True) if c}
    again = keyed_share(ids[::-1], labels[::-1], 40)
    assert {i for i, c in zip(ids[::-1], again, strict=True) if c} == chosen
    more = keyed_share([*ids, "new"], [*labels, "a"], 40)
    assert len({i for i, c in zip(ids, more, strict=False) if c} ^ chosen) <= 2


def test_metrics_are_the_protocols():
    per_class = {name for name in DATASETS if metric_of(name) == "mean per class"}
    assert per_class == {"pets", "flowers", "caltech101", "aircraft"}
    assert metric_of("folder:anything") == "top-1"


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_says_where_to_get_it_and_how_to_lay_it_out(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(AugSelfError) as refused:
        open_dataset(name, tmp_path)
    message = str(refused.value)
    assert f"no {DATASETS[name].title} in" in message
    assert f"{tmp_path}/{DATASETS[name].layout}" in message
    assert DATASETS[name].source in message


def test_download_is_refused_where_nothing_can(tmp_path):
    with pytest.raises(UsageError, match="--download cannot fetch cub200: get it from https"):
        open_dataset("cub200", tmp_path, download=True)


@pytest.mark.parametrize("name", ["mnist", "Food101"])
def test_an_unknown_data_set_is_refused(name):
    with pytest.raises(UsageError, match=r"unknown data set.*cifar10.*or a source such as"):
        open_dataset(name, Path())


def test_any_source_of_labelled_images_is_a_data_set(tmp_path, paint):
    lines = ["path,category,subset"]
    for n in range(8):
        paint(tmp_path / f"{n}.png", n)
        lines.append(f"{n}.png,{'ab'[n % 2]},{('train', 'Test', 'extra')[n % 3]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    images = open_dataset(str(tmp_path / "t.csv"), None)
    assert Counter(images.splits) == {"train": 3, "test": 3}
    assert set(images.classes) == {"a", "b"}


@pytest.fixture
def table(tmp_path, paint) -> str:
    """A CSV with two columns that may be labels, of 12 images in three splits."""
    lines = ["path,label,kind,subset"]
    for n in range(12):
        paint(tmp_path / f"{n}.png", n)
        split = ("train", "test", "extra")[n % 3]
        lines.append(f"{n}.png,{'ab'[n % 2]},{'xyz'[n % 3]},{split}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return str(tmp_path / "t.csv")


def test_a_source_is_read_by_what_was_chosen_and_is_another_one_then(table):
    usual = open_dataset(table, None)
    kinds = open_dataset(table, None, options=Options(Columns(label="kind")))
    assert set(usual.classes) == {"a", "b"} and set(kinds.classes) == {"x", "y"}
    assert usual.fingerprint() != kinds.fingerprint()  # its table in the cache is another one


def test_of_a_chosen_split_a_part_is_tested_on(table):
    images = open_dataset(table, None, options=Options(split="extra"))
    assert list(images.ids) == [f"{n}.png" for n in (2, 5, 8, 11)]
    assert set(images.splits) >= {"train", "test"}


def test_what_is_not_evaluated_is_counted(table):
    inventory = open_dataset(table, None).inventory
    assert (inventory.found, inventory.images) == (12, 8)
    assert inventory.left_out == {"split extra": 4}
    assert inventory.splits["test"] == 4 and sum(inventory.splits.values()) == 8


def test_a_data_set_needs_data():
    with pytest.raises(UsageError, match="pets needs --data, the folder that holds oxford"):
        open_dataset("pets", None)


def test_boxes_are_fractions_of_the_square_the_encoder_sees(tmp_path, copy_of):
    """12 x 10 pixels: the middle square begins at x = 1 and is 10 wide."""
    copy_of("cub200", tmp_path)
    images = open_dataset("cub200", tmp_path)
    first = images.ids.index("001.Black_footed_Albatross/Black_footed_Albatross_0000_0.jpg")
    assert images.boxes[first].tolist() == [0.1, 2, 6, 4]
    np.testing.assert_allclose(boxes_in_view(images)[first], [0.4, 0.21, 0.4, 0.6])


def test_a_plain_folder_gets_keyed_splits(tmp_path, paint):
    for c in "ab":
        for i in range(20):
            paint(tmp_path / c / f"{i}.png")
    images = open_dataset(f"folder:{tmp_path}", None)
    assert Counter(images.splits) == {"train": 29, "val": 3, "test": 8}
    assert set(images.classes) == {"a", "b"}


def test_a_folder_of_splits_keeps_them(tmp_path, paint):
    for split, count in (("train", 10), ("valid", 3), ("test", 4)):
        for c in "ab":
            for i in range(count):
                paint(tmp_path / split / c / f"{i}.png")
    images = open_dataset(f"folder:{tmp_path}", None)
    assert Counter(images.splits) == {"train": 20, "val": 6, "test": 8}
    assert images.classes[images.ids.index("valid/b/1.png")] == "b"


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(AugSelfError, match="holds no image"):
        open_dataset(f"folder:{tmp_path}", None)
    with pytest.raises(AugSelfError, match=r"no folder .*nowhere: give a folder of images"):
        open_dataset(f"folder:{tmp_path / 'nowhere'}", None)


def test_images_without_a_class_are_refused_by_name(tmp_path, paint):
    paint(tmp_path / "a/0.png")
    paint(tmp_path / "loose.png")
    with pytest.raises(AugSelfError, match=r"1 images have no label, the first is loose\.png"):
        open_dataset(f"folder:{tmp_path}", None)


def test_a_folder_may_have_boxes_but_for_every_image(tmp_path, paint):
    paint(tmp_path / "a/0.png")
    paint(tmp_path / "b/1.png")
    rows = "path,left,top,width,height\na/0.png,1,2,3,4\n"
    (tmp_path / "boxes.csv").write_text(rows)
    with pytest.raises(AugSelfError, match=r"no box for b/1\.png"):
        open_dataset(f"folder:{tmp_path}", None)
    (tmp_path / "boxes.csv").write_text(rows + "b/1.png,5,6,7,8\n")
    assert open_dataset(f"folder:{tmp_path}", None).boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_hugging_face_folder_keeps_its_splits_and_bytes(tmp_path, paint):
    for split, count in (("train", 10), ("test", 4)):
        for c in ("cat", "dog"):
            for i in range(count):
                path = tmp_path / split / c / f"{i}.png"
                paint(path, 100 * (c == "dog") + i)
    images = open_dataset(f"hf:{tmp_path}", None)
    assert Counter(images.splits) == {"train": 18, "val": 2, "test": 8}
    for i in (0, len(images) - 1):
        value = images.image(i).getpixel((0, 0))[0]
        assert images.classes[i] == ("dog" if value >= 100 else "cat")


def test_a_hugging_face_set_without_labels_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(AugSelfError, match=r"1 images have no label.*--column label=NAME"):
        open_dataset(f"hf:{tmp_path}", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,left,top,width,height\na/0.png,1,2,3,4\n", "has no column path, only file, left"),
        ("path,left,top,width\na/0.png,1,2,3\n", "has no column height"),
        ("path,left,left,top,width,height\na/0.png,1,1,2,3,4\n", "2 columns left"),
        ("path,left,top,width,height\na/0.png,1,2,3,4\na/0.png,1,2,3,5\n", "two boxes of a/0.png"),
        ("path,left,top,width,height\na/0.png,1,2,3,tall\n", "a/0.png has the box 1, 2, 3, tall: "),
        ("path,left,top,width,height\na/0.png,1,2,3\n", "a/0.png has the box 1, 2, 3, : give left"),
        ("path,left,top,width,height\na/0.png,nan,2,3,4\n", "has the box nan, "),
        ("path,left,top,width,height\na/0.png,1,2,0,4\n", "has the box 1, 2, 0, 4"),
    ],
)
def test_boxes_that_are_none_are_named(tmp_path, paint, text, words):
    paint(tmp_path / "a/0.png")
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(AugSelfError, match=words):
        open_dataset(f"folder:{tmp_path}", None)


def test_boxes_as_a_spreadsheet_writes_them_and_too_many(tmp_path, paint, caplog):
    paint(tmp_path / "a/0.png")
    rows = "\ufeffpath;left;top;width;height\r\na/0.png;1;2;3;4\r\na/9.png;1;2;3;4\r\n"
    (tmp_path / "boxes.csv").write_text(rows)
    with caplog.at_level("INFO"):
        assert open_dataset(f"folder:{tmp_path}", None).boxes.tolist() == [[1, 2, 3, 4]]
    assert "1 boxes of images that are not evaluated are left out" in caplog.text
