"""WebDataset tars as a list: read by place, keyed by name, damage named."""

from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from augself_hub.errors import AugSelfError, UndecodableImage, UsageError
from training.data.sources import UNLABELED, open_images
from training.data.tars import expanded, key_of, shard_names


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def red(images, index) -> int:
    return images.read(index).getpixel((0, 0))[0]


@pytest.fixture
def shards(tmp_path) -> str:
    write(tmp_path / "a-000.tar", {"x/0.png": png(10), "x/0.cls": b"7\n", "x/1.png": png(20)})
    write(tmp_path / "a-001.tar", {"y.cls": b"12", "y.png": png(30), "notes.txt": b"no image"})
    return str(tmp_path / "a-{000..001}.tar")


def test_samples_are_found_with_their_labels(shards):
    images = open_images(f"wds:{shards}")
    assert list(images.names) == ["a-000.tar/x/0", "a-000.tar/x/1", "a-001.tar/y"]
    assert list(images.classes) == ["7", "12"]  # by size, not by the alphabet
    assert list(images.labels) == [0, UNLABELED, 1]
    assert [red(images, i) for i in range(3)] == [10, 20, 30]
    assert red(pickle.loads(pickle.dumps(images.at([2]))), 0) == 30


@pytest.mark.parametrize("name", ["label", "cls", "class"])
def test_a_label_may_be_in_json_and_be_a_name(tmp_path, name):
    members = {}
    for number, label in enumerate(("dog", "cat", "dog")):
        members |= {f"{number}.jpeg": png(number)}
        members |= {f"{number}.json": json.dumps({"width": 3, name: label}).encode()}
    members |= {"3.png": png(3), "3.json": b"[damaged"}
    images = open_images(f"wds:{write(tmp_path / 'a.tar', members)}")
    assert list(images.classes) == ["cat", "dog"]
    assert list(images.labels) == [1, 0, 1, UNLABELED]


def test_a_sample_is_keyed_by_its_name_wherever_the_tars_lie_and_whatever_else_is_there(shards):
    images = open_images(f"wds:{shards}")
    assert list(images.keys) == [key_of(name) for name in images.names]
    alone = open_images("wds:" + expanded(shards)[1])
    assert alone.keys[0] == images.keys[2]
    assert list(images.at([2, 0]).keys) == [images.keys[2], images.keys[0]]


def test_the_key_is_part_of_the_format():
    """Views of resumed runs depend on it: sha or blake of another kind would be other views."""
    assert key_of("a-000.tar/x/0") == 397818511506807622


def test_shards_of_several_folders_are_told_apart():
    assert shard_names(["/d/a/0.tar", "/d/b/0.tar"]) == ["a/0.tar", "b/0.tar"]
    assert shard_names(["s3://x/a/0.tar", "s3://x/b/0.tar"]) == ["a/0.tar", "b/0.tar"]


def test_tars_at_a_url(shards):
    files = fsspec.filesystem("memory")
    for path in expanded(shards):
        files.pipe(f"/tars/{Path(path).name}", Path(path).read_bytes())
    for pattern in ("memory://tars/a-{000..001}.tar", "memory://tars/*.tar"):
        images = open_images(f"wds:{pattern}")
        assert list(images.names) == list(open_images(f"wds:{shards}").names)
        assert red(images, 2) == 30


def test_a_corrupt_member_is_found_when_it_is_read(tmp_path):
    members = {"0.png": png(1), "1.png": b"no image", "2.png": png(3)}
    images = open_images(f"wds:{write(tmp_path / 'a.tar', members)}")
    assert len(images) == 3
    with pytest.raises(UndecodableImage):
        images.read(1)
    assert red(images, 2) == 3


@pytest.mark.parametrize(("cut", "left"), [(-10240, 9), (6000, 5), (5800, 5), (5220, 4)])
def test_a_truncated_tar_gives_what_is_whole(tmp_path, caplog, cut, left):
    whole = write(tmp_path / "a-0.tar", {f"{n}.png": png(n) for n in range(10)})
    data = whole.read_bytes()
    whole.write_bytes(data[:cut])
    write(tmp_path / "a-1.tar", {"z.png": png(99)})
    with caplog.at_level(logging.WARNING):
        images = open_images(f"wds:{tmp_path}/a-*.tar")
    assert "skipped the rest of a-0.tar, which is damaged" in caplog.text
    assert images.damaged == ("a-0.tar",)
    assert images.shards == 2
    assert [red(images, i) for i in range(len(images))] == [*range(left), 99]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 148] ^= 0xFF  # the second member's checksum
    path.write_bytes(data)
    with pytest.raises(AugSelfError, match="no images"):
        open_images(f"wds:{path}")


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("nowhere-*.tar", AugSelfError, "nothing matches nowhere"),
        ("nowhere.tar", AugSelfError, "nothing matches nowhere"),
        ("{here}.gz", UsageError, "is compressed: unpack it, or read it as stream:wds:"),
        ("memory://no/such.tar", AugSelfError, "such.tar cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, place, error, message):
    packed = write(tmp_path / "a.tar.gz", {"0.png": png(1)}, "w:gz")
    with pytest.raises(error, match=message):
        open_images("wds:" + place.replace("{here}.gz", str(packed)))
