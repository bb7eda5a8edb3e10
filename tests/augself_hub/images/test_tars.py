"""Tars: held against the webdataset package and Hugging Face's loader; damage and bombs."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tempfile
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import places
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from augself_hub.errors import ImageError, UsageError
from augself_hub.images import SUFFIXES, ShardError, open_source
from augself_hub.images.tars import tar_samples

PNG = places.png(0, (2, 2))
KEYS = ["0", "a/1", "a.b/2", "ü", "日本/x", "x y", "0"]
PARTS = [".png", ".jpg", ".PNG", ".seg.png", ".v1.jpg", ".cls", ".txt", ".json", ".tif", ""]


def items(place, **options):
    return [item for shard in open_source(place, **options).shards(9) for item in shard.items()]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(PARTS)), min_size=1, max_size=12))
def test_samples_are_those_of_webdataset(members):
    """But where it raises (the same key and suffix twice in a sample) ours takes the first."""
    with tempfile.TemporaryDirectory() as folder:
        contents = {".cls": b"7", ".json": b"{}", ".txt": b"a"}
        named = [(key + part, contents.get(part, places.png(n, (2, 2))))
                 for n, (key, part) in enumerate(members)]  # fmt: skip
        path = places.tar(Path(folder) / "x.tar", named)
        theirs = None
        with suppress(ValueError):  # duplicate file name in tar file
            theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
        ours, left_out = {}, []
        [shard] = open_source(path).shards(9)
        for item in shard.items(lambda reason, name: left_out.append(name)):
            ours.setdefault(item.id, []).append(item)
        if theirs is not None:
            wanted = {}
            for sample in theirs:
                images = {k: v for k, v in sample.items() if "." + k.rpartition(".")[2] in SUFFIXES}
                if images:
                    wanted.setdefault(f"x.tar/{sample['__key__']}", []).append(
                        (list(images.values()), b"7" if "cls" in sample else None)
                    )
            got = {name: [(i.images[0], i.label) for i in some if not i.problem]
                   for name, some in ours.items()}  # fmt: skip
            got = {name: some for name, some in got.items() if some}
            assert got.keys() == wanted.keys()
            for name, some in wanted.items():
                for (images, label), (image, number) in zip(some, got[name], strict=True):
                    assert image in images
                    assert number == (None if label is None else 7)
        # every picture is an item or was passed over for a reason
        pictures = [n for n, _ in named if Path(n.lower()).suffix in SUFFIXES and n[0] != "."]
        used = [i for some in ours.values() for i in some if i.images or i.problem is None]
        keyed = [n for n in pictures if not n.rpartition("/")[2].startswith(".")]
        passed = [n for n in left_out if Path(n.lower()).suffix in SUFFIXES]
        assert len(used) + len(passed) == len(keyed)


def test_a_listing_is_what_is_read_in_order(tmp_path):
    members = [
        ("b.seg.png", PNG),
        ("b.png", places.png(1)),
        ("a.v1.jpg", places.png(2)),
        ("c.txt", b""),
        ("d.cls", b"1"),
        ("e.tif", b"II*"),
    ]
    members += [("b.png", places.png(3))]  # fmt: skip
    source = open_source(places.tar(tmp_path / "x.tar", members))
    listing, read = source.listing(), items(tmp_path / "x.tar")
    assert list(listing.names) == [i.id for i in read] == [
        "x.tar/b", "x.tar/a", "x.tar/d", "x.tar/e", "x.tar/b"
    ]  # fmt: skip
    for number, item in enumerate(read):
        if item.problem is None:
            assert listing.read(number) == item.images[0]
        else:
            with pytest.raises(ImageError, match=item.problem):
                listing.read(number)
    assert source.inventory.left_out == {"further images of a sample": 1, "no image: .txt": 1}
    assert (source.inventory.found, source.inventory.images) == (7, 5)
    assert pickle.loads(pickle.dumps(listing)).read(1) == places.png(2)


def test_all_keys_dotted_are_counted(tmp_path):
    """img.0001.jpg and img.0002.jpg are one sample to WebDataset: what that costs is said."""
    members = {f"img.{n:04}.jpg": places.png(n) for n in range(5)}
    inventory = open_source(places.tar(tmp_path / "x.tar", members)).inventory
    assert (inventory.images, inventory.left_out) == (1, {"further images of a sample": 4})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_is_no_image_that_is_read_is_counted(tmp_path, mode):
    """Of a folder of the same files every one would be; no sidecar of an image is one."""
    members = {
        "a.jpg": PNG,
        "a.tif": b"II*",
        "a.cls": b"7",
        "a.txt": b"a",
        "a.v.heic": b"x",
        "b.tif": b"II*",
        "b.heic": b"x",
        "c.nef": b"x",
        "d.xmp": b"x",
        "d.npy": b"x",
        ".DS_Store": b"x",
        "README": b"x",
        "__MACOSX/a.jpg": b"x",
        "e.cls": b"7",
    }
    place = places.tar(tmp_path / "x.tar", members, mode)
    counted: Counter[str] = Counter()
    [shard] = open_source(place).shards(9)
    read = [(i.id, i.problem) for i in shard.items(lambda reason, _: counted.update([reason]))]
    assert read == [
        ("x.tar/a", None),
        ("x.tar/b", ".tif is not read"),
        ("x.tar/e", "the sample has no image"),
    ]
    assert counted == {
        ".tif files beside the image of a sample": 1,
        ".heic files beside the image of a sample": 2,
        "no image: .nef": 1,
        "no image: .xmp": 1,
        "hidden": 2,
        "files without a suffix": 1,
    }
    if mode == "w":
        inventory = open_source(place).inventory
        assert inventory.left_out == counted and inventory.found == 3 + counted.total()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([{".cls": b"cat"}, {".cls": b" dog\n"}, {}], ["cat", "dog", None]),
        ([{".json": b'{"label": "cat"}'}, {".json": b'{"cls": null}'}, {".json": b"[bad"}],
         ["cat", None, None]),
        ([{".cls": b"7"}, {".json": b'{"class": 12}'}, {}], [7, 12, None]),
    ],
)  # fmt: skip
def test_labels_are_names_or_numbers(tmp_path, parts, names, mode):
    members = {}
    for n, sidecars in enumerate(parts):
        members |= {f"{n}.png": PNG} | {f"{n}{suffix}": data for suffix, data in sidecars.items()}
    source = open_source(places.tar(tmp_path / f"x.tar{mode[1:].replace(':', '.')}", members, mode))
    read = [i for shard in source.shards(9) for i in shard.items()]
    assert [i.label if not source.classes or i.label is None else source.classes[i.label]
            for i in read] == names  # fmt: skip


def test_splits_are_in_the_names_of_tars(tmp_path):
    for name in ("data/train-000", "data/train-001", "data/val-000"):
        places.tar(tmp_path / f"{name}.tar", {"0.png": PNG})
    source = open_source(tmp_path)
    assert source.inventory.splits == {"train": 2, "val": 1}
    assert [i.id for i in items(tmp_path, split="train")] == ["train-000.tar/0", "train-001.tar/0"]


def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path):
    path = places.tar(tmp_path / "x.tar", {f"{n}.png": places.png(n) for n in range(4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"2.png") + 700])
    [shard] = open_source(path).shards(9)
    coming = shard.items()
    read = [next(coming).id, next(coming).id]
    with pytest.raises(ShardError, match="damaged"):
        next(coming)
    assert read == ["x.tar/0", "x.tar/1"] == list(open_source(path).listing().names)
    assert open_source(path).listing().damaged == ("x.tar",)


def header(name: str, size: int = 0, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def raw(*blocks: bytes) -> bytes:
    return b"".join(blocks) + bytes(1024)


def sparse(name: str, size: int) -> bytes:
    """An old GNU header of a sparse member of no bytes at all."""
    block = bytearray(header(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[483:495] = bytes([0x80]) + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes) -> bytes:
    return header(name, len(data)).tobuf() + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sparse("b.png", 2**40), "sparse"),
        (header("b.png", 0, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                "GNU.sparse.name": "b.png", "GNU.sparse.realsize": str(2**40)}).tobuf(), "sparse"),
        (member("b.png", PNG) + member("b.cls", b"9" * 100_000), "its .cls: it has 100000 bytes"),
        (member(b"caf\xe9.png".decode("utf-8", "surrogateescape"), PNG), "not UTF-8"),
    ],
)  # fmt: skip
def test_one_bad_member_is_one_error(tmp_path, bad, reason, packed):
    data = raw(member("a.png", PNG) + member("a.cls", b"3"), bad, member("c.png", PNG))
    path = tmp_path / ("x.tar.gz" if packed else "x.tar")
    path.write_bytes(gzip.compress(data) if packed else data)
    read = items(path)
    assert [item.problem is None for item in read] == [True, False, True]
    assert reason in read[1].problem
    read[1].id.encode()


def test_a_member_beyond_the_limit_behind_gzip_is_not_held_in_memory(tmp_path, monkeypatch):
    from augself_hub.images import tars

    monkeypatch.setattr(tars, "MAX_BYTES", 2**20)
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header("a.png", 2**28).tobuf())
        for _ in range(2**8):
            file.write(bytes(2**20))
        file.write(raw(member("b.png", PNG)))
    tracemalloc.start()
    read = items(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [i.problem for i in read] == [f"it has {2**28} bytes, more than {2**20}", None]
    assert peak < 2**24


@pytest.mark.parametrize(
    "bad",
    [
        header("x" * 70_000 + ".png").tobuf(tarfile.GNU_FORMAT),  # a long name
        header("b.png", pax_headers={"comment": "x" * 70_000}).tobuf(tarfile.PAX_FORMAT),
        header("p", 512, type=tarfile.XHDTYPE).tobuf()
        + b"18 size=-99999999\n".ljust(512, b"\0")
        + header("b.png").tobuf(),
        b"".join(header("p", 1, type=tarfile.XHDTYPE).tobuf() + bytes(512) for _ in range(5000)),
    ],
    ids=["long name", "long pax header", "negative size", "headers of headers"],
)
def test_headers_that_would_hang_or_fill_the_memory_are_damage(tmp_path, bad):
    path = places.write(tmp_path / "x.tar", raw(member("a.png", PNG), member("a.cls", b"1"), bad))
    [shard] = open_source(path).shards(9)
    with pytest.raises(ShardError, match="damaged"):
        list(shard.items())


def test_compressed_tars_are_read_in_order_alone(tmp_path):
    path = places.tar(tmp_path / "x.tar.gz", {"0.png": PNG, "0.cls": b"1"}, "w:gz")
    source = open_source(path)
    assert source.inventory.images is None and "read in order" in source.inventory.text()
    with pytest.raises(UsageError, match="is compressed: unpack it, or read it in order"):
        source.listing()


def test_tars_at_a_url(tmp_path):
    for n in (0, 1):
        data = places.tar(tmp_path / f"{n}.tar", {f"{n}.png": places.png(n)}).read_bytes()
        with fsspec.open(f"memory://{tmp_path.name}/{n}.tar", "wb") as file:
            file.write(data)
    for text in (f"memory://{tmp_path.name}/{{0..1}}.tar", f"memory://{tmp_path.name}/*.tar"):
        listing = open_source(text).listing()
        assert list(listing.names) == [i.id for i in items(text)] == ["0.tar/0", "1.tar/1"]
        assert listing.read(1) == places.png(1)


def test_shards_of_several_folders_are_told_apart(tmp_path):
    for folder in "ab":
        places.tar(tmp_path / folder / "0.tar", {"x.png": PNG})
    assert [i.id for i in items(tmp_path)] == ["a/0.tar/x", "b/0.tar/x"]


def test_a_network_that_fails_is_no_damage(tmp_path, monkeypatch):
    from augself_hub.errors import AugSelfError
    from augself_hub.images import tars

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(tars, "open_file", lambda _: Failing())
    with pytest.raises(AugSelfError, match="cannot be reached"):
        open_source("memory://x/y.tar")
    with pytest.raises(AugSelfError, match="cannot be reached"):
        [list(shard.items()) for shard in open_source("memory://x/y.tar", stream=True).shards(9)]


@pytest.mark.parametrize("packed", [False, True])
def test_global_headers_do_not_fill_the_memory(tmp_path, packed):
    """200 of 60 KB, each with names of its own, were kept and copied for every member."""
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    with tarfile.open(path, "w:gz" if packed else "w") as tar:
        for number in range(200):
            words = {f"K{number}.{n}": "x" * 50 for n in range(800)}
            data = tarfile.TarInfo.create_pax_global_header(words)
            tar.fileobj.write(data)
            tar.offset += len(data)
        header = tarfile.TarInfo("a.png")
        header.size = 3
        tar.addfile(header, io.BytesIO(b"png"))
    found = []
    with pytest.raises(ShardError, match="more than 65536 bytes of global headers"):
        found += tar_samples(str(path), "a", lambda *_: None, packed, load=True)
    assert found == []


def test_a_global_header_as_git_archive_writes_it_is_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        data = tarfile.TarInfo.create_pax_global_header({"comment": "a" * 40})
        tar.fileobj.write(data)
        tar.offset += len(data)
        header = tarfile.TarInfo("a.png")
        header.size = 3
        tar.addfile(header, io.BytesIO(b"png"))
    (sample,) = tar_samples(str(tmp_path / "a.tar"), "a", lambda *_: None, False, load=True)
    assert (sample.name, sample.data) == ("a/a", b"png")


def test_a_label_that_is_no_text_is_an_error_of_its_image(tmp_path):
    """Two of them became one class, of replacement characters."""
    members = [
        ("a.png", PNG),
        ("a.cls", b"\xff\xfe"),
        ("b.png", PNG),
        ("b.cls", b"\xef\xbb\xbfcat"),
    ]
    path = places.tar(tmp_path / "x.tar", members)
    a, b = items(path)
    assert a.problem == r"its label b'\xff\xfe' is no UTF-8 text"
    assert (b.problem, open_source(path).classes, b.label) == (None, ["cat"], 0)
