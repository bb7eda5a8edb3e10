"""What training makes of sources: lists with labels, keys and the training split."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import places
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from handmade import DAMAGED_PALETTES, chunk, png
from PIL import Image as PillowImage
from torchvision import datasets

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, UndecodableImage, UsageError
from augself_hub.images import Columns, Options
from augself_hub.images.source import UNLABELED
from training.data.batches import ViewsDataset
from training.data.sources import key_of, lines_of, open_held_out, open_images


def picture(value: int) -> PillowImage.Image:
    return PillowImage.new("RGB", (12, 10), (value, 0, 0))


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(("b/1.png", "a/0.png", "a/2.png", "loose.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(10 * number).save(path)
    return tmp_path / "photos"


def test_a_folder_is_sorted_and_its_sub_folders_are_classes(folder):
    images = open_images(str(folder))
    assert list(images.names) == ["a/0.png", "a/2.png", "b/1.png", "loose.png"]
    assert list(images.classes) == ["a", "b"]
    assert list(images.labels) == [0, 0, 1, UNLABELED]
    assert images.read(2).getpixel((0, 0)) == (0, 0, 0)
    assert images.read(1).getpixel((0, 0)) == (20, 0, 0)


def test_a_class_list_keeps_its_classes_in_its_order(folder):
    images = open_images(str(folder)).only(["b", "a"])
    assert list(images.names) == ["a/0.png", "a/2.png", "b/1.png"]
    assert list(images.labels) == [1, 1, 0]
    assert images.read(2).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(UsageError, match="no class 'c'"):
        open_images(str(folder)).only(["a", "c"])


def test_sources_travel_to_worker_processes(folder):
    images = pickle.loads(pickle.dumps(open_images(str(folder)).at([3, 1])))
    assert images.read(0).getpixel((0, 0)) == (30, 0, 0)


def test_stl10_in_its_official_layout(tmp_path, monkeypatch):
    place = tmp_path / "stl10_binary"
    place.mkdir()
    pixels = np.zeros((2, 3, 96, 96), np.uint8)
    pixels[1, 0] = 50
    pixels.tofile(place / "train_X.bin")
    np.array([1, 10], np.uint8).tofile(place / "train_y.bin")
    pixels[:1].tofile(place / "unlabeled_X.bin")
    (place / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    images = open_images(f"stl10:{tmp_path}")
    assert list(images.labels) == [0, 9, UNLABELED]
    assert list(images.classes) == list("abcdefghij")
    assert images.read(1).size == (96, 96)
    assert images.read(1).getpixel((5, 5)) == (50, 0, 0)


def test_cifar10_in_its_official_layout(tmp_path, monkeypatch):
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for number in range(1, 6):
        batch = {"data": np.full((1, 3072), number, np.uint8), "labels": [number]}
        (place / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    images = open_images(f"cifar10:{tmp_path}")
    assert list(images.labels) == [1, 2, 3, 4, 5]
    assert images.read(4).getpixel((0, 0)) == (5, 5, 5)


def test_cifar100_in_its_official_layout(tmp_path, monkeypatch):
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    batch = {"data": np.full((2, 3072), 9, np.uint8), "fine_labels": [0, 1]}
    (place / "train").write_bytes(pickle.dumps(batch))
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))
    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    images = open_images(f"cifar100:{tmp_path}")
    assert list(images.classes) == ["apple", "bear"]
    assert list(images.labels) == [0, 1]
    assert images.read(1).getpixel((31, 31)) == (9, 9, 9)


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Three classes; two of them have the same name, as cranes and maillots have in ImageNet."""
    names = {"n01": ("crane",), "n02": ("drake",), "n03": ("crane", "hoist")}
    torch.save((names, []), tmp_path / "meta.bin")
    for number, wnid in enumerate(names):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for photograph in range(2):
            picture(10 * number + photograph).save(
                tmp_path / "train" / wnid / f"{wnid}_{photograph}.JPEG", quality=100
            )
    return tmp_path


def test_imagenet_in_its_official_layout(imagenet):
    images = open_images(f"imagenet:{imagenet}")
    assert list(images.classes) == ["n01", "n02", "n03"]
    assert list(images.labels) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("data", DAMAGED_PALETTES.values(), ids=DAMAGED_PALETTES)
def test_the_next_image_stands_in_for_a_damaged_palette(folder, data):
    (folder / "a/2.png").write_bytes(data)
    read = ViewsDataset(open_images(str(folder)), Policy(size=8), 0).read((0, 1))
    assert read.skipped == ["a/2.png"] and read.image.getpixel((0, 0)) == (0, 0, 0)


def test_a_damaged_image_of_imagenet_is_named_as_one(imagenet):
    """torchvision opens it, not we: Pillow's own errors come."""
    data = png((1, 1), [b"\0"], chunk(b"PLTE", bytes(3000)), color=3)
    (imagenet / "train/n02/n02_0.JPEG").write_bytes(data)
    images = open_images(f"imagenet:{imagenet}")
    with pytest.raises(UndecodableImage, match="palette size"):
        images.read(2)
    (imagenet / "train/n02/n02_0.JPEG").write_bytes(b"")
    with pytest.raises(UndecodableImage):
        images.read(2)


def test_a_class_list_makes_a_part_of_imagenet(imagenet):
    """As ImageNet-100 is made: synsets, one a line."""
    listed = imagenet / "classes.txt"
    listed.write_text("n03\nn01\n")
    images = open_images(f"imagenet:{imagenet}").only(lines_of(listed))
    assert list(images.classes) == ["n03", "n01"]
    assert list(images.labels) == [1, 1, 0, 0]
    assert images.read(2).getpixel((5, 5))[0] == pytest.approx(20, abs=2)


def test_a_hugging_face_folder(folder):
    (folder / "loose.png").unlink()
    images = open_images(f"hf:{folder}")
    assert list(images.classes) == ["a", "b"]
    assert sorted(images.labels) == [0, 0, 1]
    assert images.read(0).size == (12, 10)


def test_a_hugging_face_parquet_with_damaged_bytes(tmp_path, folder):
    good = (folder / "a/2.png").read_bytes()
    rows = {
        "image": [{"bytes": good, "path": None}, {"bytes": b"no", "path": None}],
        "label": [1, 0],
    }
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["x", "y"])})
    data = Dataset.from_dict(rows, features.copy()).cast_column("image", Image())
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data/train.parquet")
    images = open_images(f"hf:{tmp_path / 'data'}")
    assert list(images.labels) == [1, 0]
    assert images.read(0).getpixel((0, 0)) == (20, 0, 0)
    with pytest.raises(UndecodableImage):
        images.read(1)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere", AugSelfError, "nowhere does not exist"),
        ("mnist:there", UsageError, "unknown source mnist:there"),
        ("stl10:nowhere", AugSelfError, "no STL10 in nowhere"),
        ("hf:nowhere/at-all/really", AugSelfError, "nowhere/at-all/really cannot be opened"),
        ("nowhere-*.tar", AugSelfError, "nothing matches nowhere"),
        ("wds:nowhere.tar", AugSelfError, "nowhere.tar does not exist"),
        ("stream:x", UsageError, "can only be read in order|x does not exist"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((error, AugSelfError), match=message):
        open_images(source)


def test_the_training_split_is_read_and_said(tmp_path, caplog):
    for name in ("train/a/0.png", "train/b/1.png", "val/a/2.png"):
        places.write(tmp_path / name, places.png(0))
    with caplog.at_level(logging.INFO):
        images = open_images(tmp_path)
    assert list(images.names) == ["train/a/0.png", "train/b/1.png"]
    assert list(images.classes) == ["a", "b"]
    assert "of its splits, train is read: --split chooses" in caplog.text
    assert list(open_images(tmp_path, Options(split="val")).names) == ["val/a/2.png"]
    assert list(open_images(tmp_path, wanted=("validation",)).names) == ["val/a/2.png"]
    assert len(open_images(tmp_path, Options(kind="classes"))) == 3


@pytest.fixture
def table(tmp_path):
    """Name, header -> a CSV of two images, of classes a and b."""

    def make(name: str, header: str) -> str:
        for number in (0, 1):
            places.write(tmp_path / f"{name}-{number}.png", places.png(number))
        rows = "".join(f"{name}-{number}.png,{'ab'[number]}\n" for number in (0, 1))
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{rows}")
        return str(tmp_path / f"{name}.csv")

    return make


UNUSUAL = Options(Columns(image="view", label="kind"))


def test_held_out_images_are_read_by_the_columns_of_the_others(table):
    images = open_held_out(table("held", "view,kind"), UNUSUAL)
    assert list(images.classes) == ["a", "b"] and list(images.labels) == [0, 1]


def test_what_has_no_such_columns_is_read_as_it_is_found_and_said(table, tmp_path, caplog):
    """The usual columns; a folder, which has none; torchvision's sets, which take no option.

    The split is of those to train on.
    """
    caplog.set_level(logging.INFO)
    assert list(open_held_out(table("held", "path,label"), UNUSUAL).classes) == ["a", "b"]
    assert "held.csv has no column 'view', only path, label" in caplog.text
    for name in ("train/0.png", "test/1.png"):
        places.write(tmp_path / "folder" / name, places.png(0))
    options = Options(UNUSUAL.columns, "train", "classes")
    assert list(open_held_out(tmp_path / "folder", options).classes) == ["test", "train"]
    with pytest.raises(AugSelfError, match="no STL10 in nowhere"):
        open_held_out("stl10:nowhere", UNUSUAL)


def test_of_a_table_that_cannot_be_read_it_is_said_what_it_lacks(table):
    with pytest.raises(AugSelfError, match="has no column 'view', only sight, sort"):
        open_held_out(table("held", "sight,sort"), UNUSUAL)


# -- Tars ------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path) -> str:
    png = places.png
    places.tar(tmp_path / "a-000.tar", {"x/0.png": png(1), "x/0.cls": b"7\n", "x/1.png": png(2)})
    places.tar(tmp_path / "a-001.tar", {"y.cls": b"12", "y.png": png(3), "notes.txt": b"no image"})
    return str(tmp_path / "a-{000..001}.tar")


def test_class_numbers_that_occur_are_the_classes(shards):
    for text in (shards, f"wds:{shards}"):
        images = open_images(text)
        assert list(images.names) == ["a-000.tar/x/0", "a-000.tar/x/1", "a-001.tar/y"]
        assert list(images.classes) == ["7", "12"]  # by size, not by the alphabet
        assert list(images.labels) == [0, UNLABELED, 1]


def test_a_sample_is_keyed_by_its_name_wherever_the_tars_lie_and_whatever_else_is_there(shards):
    images = open_images(shards)
    assert list(images.keys) == [key_of(name) for name in images.names]
    alone = open_images(shards.replace("{000..001}", "001"))
    assert alone.keys[0] == images.keys[2]
    assert list(images.at([2, 0]).keys) == [images.keys[2], images.keys[0]]


def test_the_key_is_part_of_the_format():
    """Views of resumed runs depend on it: sha or blake of another kind would be other views."""
    assert key_of("a-000.tar/x/0") == 397818511506807622


def test_a_truncated_tar_gives_what_is_whole(tmp_path, caplog):
    whole = places.tar(tmp_path / "a-0.tar", {f"{n}.png": places.png(n) for n in range(10)})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    places.tar(tmp_path / "a-1.tar", {"z.png": places.png(99)})
    with caplog.at_level(logging.WARNING):
        images = open_images(f"wds:{tmp_path}/a-*.tar")
    assert "skipped the rest of a-0.tar, which is damaged" in caplog.text
    assert (images.damaged, images.shards) == (("a-0.tar",), 2)
    assert list(images.names)[-2:] != ["a-0.tar/9", "a-1.tar/z"] and images.read(0).mode == "RGB"


# -- What 0.1 gave ---------------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parents[2] / "augself_hub/images/golden.json").read_text())


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_order_and_views_are_those_of_before(kind, tmp_path):
    """So that runs of 0.1 resume: recorded with its readers on what places.py makes."""
    made = {"folder": places.folder, "tars": places.tars}[kind](tmp_path / kind)
    images = open_images(str(made) if kind == "folder" else f"wds:{made}/a-{{000..001}}.tar")
    dataset = ViewsDataset(images, Policy(size=16).with_kinds({"crop", "color"}), 3)
    order = list(dataset.sampler(3, 2, 2))
    items = dataset.__getitems__(order)

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:16]

    assert {
        "names": list(images.names),
        "classes": list(images.classes),
        "labels": list(images.labels),
        "order": [list(key) for key in order],
        "views": [digest(item["crops"].tobytes()) for item in items],
        "parameters": [
            # Whether the crop is gray is told beside what was drawn, since 0.2.
            digest(b"".join(item["w1"][n].tobytes() for n in sorted({*item["w1"]} - {"colorless"})))
            for item in items
        ],
    } == GOLDEN["train"][kind]
