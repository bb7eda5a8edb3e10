"""A data set as a list that extraction reads."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from augself_hub.errors import AugSelfError
from training.evaluation.layouts import of_arrays, of_files


@pytest.fixture
def files(tmp_path, paint):
    names = ("b/2.png", "a/0.png", 'a/with, "comma".png')
    for number, name in enumerate(names):
        paint(tmp_path / "set" / name, 10 * number)
    rows = [(tmp_path / "set" / name, name[0], ("test", "train", "val")[i])
            for i, name in enumerate(names)]  # fmt: skip
    return of_files("set", tmp_path / "set", rows)


@pytest.fixture
def arrays(tmp_path):
    pixels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    (tmp_path / "raw.bin").write_bytes(b"raw")
    parts = [("train", pixels[:3], ["x", "y", "x"]), ("test", pixels[3:], ["y", "x"])]
    return of_arrays("arrays", parts, [tmp_path / "raw.bin"])


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_extraction_reads_the_list_in_its_order(kind, request):
    """Labels, splits and bytes come out as they went in."""
    images = request.getfixturevalue(kind)
    source = images.source()
    items = [item for shard in source.shards(2) for item in shard.items()]
    assert [item.id for item in items] == list(images.ids)
    assert [source.classes[item.label] for item in items] == list(images.classes)
    assert [item.split for item in items] == list(images.splits)
    for index, item in enumerate(items):
        own = images.read(index)
        assert item.read() == [own if isinstance(own, bytes) else own.read_bytes()]
    digests = [shard.digest for shard in source.shards(2)]
    assert len(set(digests)) == len(digests)
    assert digests == [shard.digest for shard in images.source().shards(2)]


def test_the_size_of_an_image_is_that_of_the_upright_one(files):
    picture = Image.new("RGB", (30, 20))
    exif = picture.getexif()
    for orientation in (1, 3, 6, 8):
        exif[0x0112] = orientation
        picture.save(files.files[0], "JPEG", exif=exif)
        assert files.size(0) == files.image(0).size


def test_pixels_survive_the_list(arrays):
    expected = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    assert all((np.asarray(arrays.image(i)) == expected[i]).all() for i in range(5))


def test_the_fingerprint_changes_with_all_that_matters(files):
    before = files.fingerprint()
    assert files.fingerprint() == before
    changed = [
        dataclasses.replace(files, splits=["train"] * 3),
        dataclasses.replace(files, classes=["c"] * 3),
        dataclasses.replace(files, ids=["1", "2", "3"]),
        dataclasses.replace(files, version="2"),
    ]
    assert before not in {images.fingerprint() for images in changed}
    os.utime(files.files[0], ns=(0, 0))
    assert files.fingerprint() != before


def test_a_missing_label_is_refused_by_name(files):
    with pytest.raises(AugSelfError, match="set: 1 images have no label, the first is b/2"):
        dataclasses.replace(files, classes=["a", "a", ""])
