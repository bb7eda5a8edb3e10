"""Folders: held against torchvision's ImageFolder and Hugging Face's imagefolder on any tree."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import datasets
import places
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import SUFFIXES, open_source

WORDS = ["cat", "dog", "Ä b", "日本", "a.b", "1", "10", "2", "-", "É"]
SPLITS = ["train", "Train", "TRAINING", "val", "valid", "Validation", "dev", "test", "eval"]
JUNK = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"]
FILES = ["0.png", "1.JPG", "b.jpeg", "ü.webp", "x.jfif", "x.y.bmp", "notes.txt", "c.tif", "none",
         "._0.png", "Thumbs.db", "日.png"]  # fmt: skip
PNG = places.png(0, (2, 2))
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def trees(tops: list[str]) -> st.SearchStrategy[set[str]]:
    """Paths of files: in one of these folders, perhaps deeper, or at the root."""
    below = st.lists(st.sampled_from([*WORDS, *SPLITS[:2], *JUNK]), max_size=2).map(tuple)
    inside = st.tuples(st.sampled_from(tops), below, st.sampled_from(FILES))
    path = inside.map(lambda p: "/".join((p[0], *p[1], p[2])))
    return st.sets(st.one_of(path, path, path, st.sampled_from(FILES)), min_size=1, max_size=12)


def made(paths: set[str]) -> Path:
    top = Path(tempfile.mkdtemp()).resolve()
    for path in sorted(paths):
        with suppress(OSError):  # a file stands where a folder should be
            places.write(top / path, PNG)
    return top


def on_disk(top: Path) -> list[str]:
    return [p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file()]


def is_junk(path: str) -> bool:
    parts = path.split("/")
    junk = ("__MACOSX", "@eaDir", "Thumbs.db")
    return any(part.startswith(".") or part in junk for part in parts)


def is_image(path: str) -> bool:
    return not is_junk(path) and any(path.lower().endswith(suffix) for suffix in SUFFIXES)


def seen(source) -> dict[str, tuple[str | None, str | None]]:
    items = [item for shard in source.shards(3) for item in shard.items()]
    return {i.id: (None if i.label is None else source.classes[i.label], i.split) for i in items}


@SETTINGS
@given(trees(WORDS))
def test_classes_are_those_of_image_folder(paths):
    """But that what systems leave behind is no class, and a loose image is one without a class."""
    top = made(paths)
    wanted = {path for path in on_disk(top) if is_image(path)}
    if not wanted:
        with pytest.raises(AugSelfError, match="holds no image"):
            open_source(top)
        return
    theirs: dict[str, str | None] = {path: None for path in wanted if "/" not in path}
    classes = []
    if any("/" in path for path in wanted):
        theirs_all = ImageFolder(
            str(top), allow_empty=True,
            is_valid_file=lambda p: is_image(os.path.relpath(p, top)),
        )  # fmt: skip
        found = {Path(p).relative_to(top).as_posix(): theirs_all.classes[n]
                 for p, n in theirs_all.samples}  # fmt: skip
        classes = [name for name in theirs_all.classes if name in found.values()]
        theirs |= found
    ours = open_source(top)
    assert {name: label for name, (label, _) in seen(ours).items()} == theirs
    assert ours.classes == classes
    assert list(seen(ours)) == sorted(theirs)
    shutil.rmtree(top)


@SETTINGS
@given(trees(SPLITS))
def test_splits_are_those_of_hugging_face(paths):
    """On folders whose names are a split's in any case; theirs only knows small letters."""
    top = made(paths)
    wanted = {path for path in on_disk(top) if is_image(path)}
    small = {path.partition("/")[0].lower() + path.partition("/")[2] for path in wanted}
    if not any("/" in path for path in wanted) or len(small) < len(wanted):
        return  # theirs would find two files of one name
    lower = Path(tempfile.mkdtemp()).resolve()
    for path in wanted:
        first, slash, rest = path.partition("/")
        if slash:
            places.write(lower / first.lower() / rest.replace("train", "x").replace("Train", "y"),
                         path)  # fmt: skip
    patterns = get_data_patterns(str(lower))
    theirs = {}
    for split, files in DataFilesDict.from_patterns(patterns, base_path=str(lower)).items():
        theirs |= {Path(file).read_text(): str(split) for file in files}
    ours = open_source(top)
    words = {
        "train": "train training",
        "validation": "validation valid dev val",
        "test": "test eval",
    }
    same = {word: split for split, line in words.items() for word in line.split()}
    assert {name: same[split] for name, (_, split) in seen(ours).items()} == theirs
    assert sum(n for r, n in ours.inventory.left_out.items() if r == "beside the splits") == len(
        [path for path in wanted if "/" not in path]
    )
    for folder in (top, lower):
        shutil.rmtree(folder)


@SETTINGS
@given(trees([*WORDS, *JUNK, "train"]))
def test_every_file_is_used_or_left_out_for_a_reason(paths):
    top = made(paths)
    for kind in ("classes", "splits"):
        try:
            inventory = open_source(top, kind=kind).inventory
        except AugSelfError:
            continue
        # a hidden folder is one thing that was found, whatever is in it
        things = set()
        for path in on_disk(top):
            parts = path.split("/")
            cut = next((i for i in range(len(parts)) if is_junk("/".join(parts[: i + 1]))), None)
            things.add("/".join(parts if cut is None else parts[: cut + 1]))
        assert inventory.found == len(things)
        assert inventory.images + sum(inventory.left_out.values()) == inventory.found
    shutil.rmtree(top)


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    store = places.write(tmp_path / "store/cat/1.png", PNG).parents[1]
    top = tmp_path / "photos"
    places.write(top / "dog/2.png", PNG)
    (top / "cat").symlink_to(store / "cat", target_is_directory=True)
    (top / "dog/again").symlink_to(top, target_is_directory=True)
    (top / "dog/broken.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(top)
    assert list(seen(source)) == ["cat/1.png", "dog/2.png", "dog/broken.png"]
    assert source.inventory.left_out == {"links that lead back to a folder they are in": 1}
    theirs = ImageFolder(str(top / ".."), allow_empty=True).classes
    assert "store" in theirs  # the oracle sees the same tree
    (top / "dog/again").unlink()
    assert [c for _, c in ImageFolder(str(top)).samples] == [0, 1, 1]
    items = [item for shard in source.shards(9) for item in shard.items()]
    with pytest.raises(OSError, match="No such file"):
        items[2].read()


def test_many_links_cost_no_more_than_a_few_steps(tmp_path):
    """Folders that all link to one another: a walk of every path would grow as a factorial."""
    folders = [tmp_path / f"f{n}" for n in range(6)]
    for folder in folders:
        places.write(folder / "x.png", PNG)
    for a in folders:
        for b in folders:
            if a != b:
                (a / b.name).symlink_to(b, target_is_directory=True)
    inventory = open_source(tmp_path).inventory
    assert inventory.left_out.keys() <= {
        "links that lead back to a folder they are in", "more than 4 linked folders deep"
    }  # fmt: skip
    assert inventory.images == 6 + 6 * 5 + 6 * 5 * 4 + 6 * 5 * 4 * 3 + 6 * 5 * 4 * 3 * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    places.write(tmp_path / "cat/1.png", PNG)
    places.write(tmp_path / "dog/1.png", PNG).parent.chmod(0)
    check_locked(open_source(tmp_path))


def test_a_folder_that_cannot_be_listed_is_an_error_also_for_root(tmp_path, monkeypatch):
    places.write(tmp_path / "cat/1.png", PNG)
    places.write(tmp_path / "dog/1.png", PNG)
    scandir = os.scandir

    def denied(path):
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    check_locked(open_source(tmp_path))


def check_locked(source):
    items = [item for shard in source.shards(9) for item in shard.items()]
    assert [item.id for item in items] == ["cat/1.png", "dog/"]
    with pytest.raises(ImageError, match="the folder cannot be listed: Permission denied"):
        items[1].read()
    assert "1 cannot be read, the first is dog/" in source.inventory.text()


@pytest.mark.parametrize(
    ("files", "kind", "splits"),
    [
        (["train/a/1.png", "other/a/1.png"], "splits", {"train": 1}),
        (["train/a/1.png", "other/a/1.png"], "classes", {}),
        (["dog/1.png", "test/1.png"], None, {}),  # a class may be called test
        (["Train/1.png", "stray.png"], None, {"train": 1}),
    ],
)
def test_what_is_ambiguous_is_chosen_by_an_option(tmp_path, files, kind, splits):
    for file in files:
        places.write(tmp_path / file, PNG)
    source = open_source(tmp_path, kind=kind)
    assert source.inventory.splits == splits
    assert source.inventory.images == (sum(splits.values()) or len(files))


def test_a_training_split_beside_something_else_is_not_guessed_at(tmp_path):
    for file in ("train/a/1.png", "other/a/1.png"):
        places.write(tmp_path / file, PNG)
    with pytest.raises(AugSelfError, match="train beside other: say --read-as splits"):
        open_source(tmp_path)


def test_one_split_by_any_of_its_names(tmp_path):
    for file in ("Train/a/1.png", "Val/b/1.png", "test/b/1.png", "test/b/2.png"):
        places.write(tmp_path / file, PNG)
    source = open_source(tmp_path, split="validation")
    assert seen(source) == {"Val/b/1.png": ("b", "val")}
    assert source.classes == ["a", "b"]  # a label means the same in every split
    assert source.inventory.left_out == {"split test": 2, "split train": 1}
    with pytest.raises(UsageError, match="has no split extra, only train, val, test"):
        open_source(tmp_path, split="extra")


def test_photographs_are_read_and_not_the_tar_beside_them(tmp_path):
    places.write(tmp_path / "a/1.png", PNG)
    places.tar(tmp_path / "backup.tar", {"x.png": PNG})
    places.write(tmp_path / "metadata.parquet", b"PAR1")
    source = open_source(tmp_path)
    assert list(seen(source)) == ["a/1.png"]
    assert source.inventory.left_out == {".tar files": 1, ".parquet files": 1}
    assert "--read-as tars" in source.inventory.text()
    assert [i.id for s in open_source(tmp_path, kind="tars").shards(9) for i in s.items()] == [
        "backup.tar/x"
    ]


def test_what_img2dataset_writes_is_its_tars(tmp_path):
    for n in (0, 1):
        places.tar(tmp_path / f"0000{n}.tar", {f"{n}.jpg": PNG, f"{n}.json": b"{}"})
        places.write(tmp_path / f"0000{n}.parquet", b"PAR1")
        places.write(tmp_path / f"0000{n}_stats.json", b"{}")
    inventory = open_source(tmp_path).inventory
    assert (inventory.kind, inventory.images) == ("tars", 2)
    assert ".parquet files 2" in inventory.text()


def test_an_empty_folder_and_one_of_other_things_say_what_is_there(tmp_path):
    with pytest.raises(AugSelfError, match=r"holds no image .*; it is empty"):
        open_source(tmp_path)
    for name in ("a.tif", "b.tif", "c.heic", ".d.png", "plain"):
        places.write(tmp_path / name, PNG)
    with pytest.raises(AugSelfError, match=r"\.tif files 2.*\.heic files 1") as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)


def test_jpegs_by_any_suffix_are_read(tmp_path):
    names = ["a.jpe", "b.JFIF", "c.pjpeg", "d.jpg", "e.tif", "f"]
    for name in names:
        places.write(tmp_path / name, PNG)
    source = open_source(tmp_path)
    assert list(seen(source)) == names[:4]
    assert source.inventory.left_out == {".tif files": 1, "files without a suffix": 1}


def test_the_inventory_as_a_record_has_everything(tmp_path):
    for n in range(9):
        places.write(tmp_path / f"class{n}/x.png", PNG)
    inventory = open_source(tmp_path).inventory
    assert Counter(inventory.record()["classes"]) == Counter({f"class{n}": 1 for n in range(9)})
    assert "3 more" in inventory.text() and len(inventory.text().splitlines()) == 2


def test_nothing_may_vanish_between_found_and_used():
    from augself_hub.images import Inventory

    with pytest.raises(RuntimeError, match="5 found are not 3 used and 1 left out"):
        Inventory("x", "folder", found=5, images=3, left_out={"hidden": 1})


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_files_are_those_of_hugging_face(tmp_path, kind, monkeypatch):
    """Their label column takes the place of the folders' names, as in imagefolder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = {"a/0.png": "cat", "a/1.png": "dog", "b/2.png": "cat"}
    top = tmp_path / "d"
    for number, name in enumerate(lines):
        places.write(top / name, places.png(number, (2, 2)))
    if kind == "csv":
        rows = [f"{name},{label}" for name, label in lines.items()]
        places.write(top / "metadata.csv", "\n".join(["file_name,label", *rows]))
    else:
        rows = [json.dumps({"file_name": name, "label": label}) for name, label in lines.items()]
        places.write(top / "metadata.jsonl", "\n".join(rows))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(top), split="train")
    source = open_source(top)
    assert {name: label for name, (label, _) in seen(source).items()} == lines
    assert sorted(lines.values()) == sorted(theirs["label"])
    assert "labels are those of column label of metadata." in source.inventory.text()
    assert open_source(top, kind="classes").classes == ["a", "b"]


def test_folders_called_as_numbers_are_classes_by_name(tmp_path):
    for name in ("10", "9", "-1", "007"):
        places.write(tmp_path / name / "x.png", PNG)
    assert open_source(tmp_path).classes == sorted(["10", "9", "-1", "007"])
    assert ImageFolder(str(tmp_path)).classes == sorted(["10", "9", "-1", "007"])
