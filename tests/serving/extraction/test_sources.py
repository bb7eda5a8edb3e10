"""Every kind of source gives the same rows, and its damage is named, counted and passed over."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from handmade import png, saved
from PIL import Image
from pyarrow import parquet

from augself_hub.errors import AugSelfError, MissingExtra, UsageError
from augself_hub.features import DifferenceTable, FeatureTable, read_manifest
from augself_hub.images import Columns, Options, open_source
from serving.extraction.pipeline import TableSettings, extract, extract_shards
from serving.inference.engine import Engine, load

IMAGES = 6
CLASSES = ["a", "b"]


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return load(str(tiny_model), "cpu", 1)


@pytest.fixture
def files(tmp_path, pixels, encoded) -> list[Path]:
    """Six images, 0.png ... 5.png, in one folder: even ones are of class a, odd ones of b."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(IMAGES)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(pixels(number)))
    return paths


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(files: list[Path]) -> dict[str, bytes]:
    """A WebDataset's members: key.png, key.cls and something else."""
    members = {}
    for number, path in enumerate(files):
        members |= {f"{number}.png": path.read_bytes(), f"{number}.json": b"{}"}
        members[f"{number}.cls"] = str(number % 2).encode()
    return members


def a_list(files, folder):
    (folder / "list.txt").write_text("\n".join(f"images/{path.name}" for path in files))
    return folder / "list.txt"


def a_glob(files, folder):
    return f"{files[0].parent}/*.png"


def a_csv(files, folder):
    lines = [f"images/{path.name},{CLASSES[n % 2]},train" for n, path in enumerate(files)]
    (folder / "table.csv").write_text("\n".join(["path,label,split", *lines]))
    return folder / "table.csv"


def two_tars(files, folder):
    (folder / "tars").mkdir()
    for number, some in enumerate((files[:4], files[4:])):
        members = {f"{4 * number + i}{Path(n).suffix}": c for n, c in samples(some).items()
                   for i in [int(Path(n).stem)]}  # fmt: skip
        tarred(folder / f"tars/{number}.tar", members)
    return folder / "tars"


def a_tar_gz(files, folder):
    return tarred(folder / "all.tar.gz", samples(files))


def a_url(files, folder):
    tar = tarred(folder / "all.tar", samples(files))
    with fsspec.open(f"memory://{folder.name}/all.tar", "wb") as file:
        file.write(tar.read_bytes())
    return f"memory://{folder.name}/all.tar"


def rows(files):
    return [{"bytes": path.read_bytes(), "path": path.name} for path in files]


def parquet_structs(files, folder):
    labels = [CLASSES[number % 2] for number in range(IMAGES)]
    table = pa.table({"image": rows(files), "label": labels, "split": ["train"] * IMAGES})
    parquet.write_table(table, folder / "table.parquet", row_group_size=2)
    return folder / "table.parquet"


def parquet_bytes(files, folder):
    (folder / "tables").mkdir()
    labels = [number % 2 for number in range(IMAGES)]
    table = pa.table({"image": [path.read_bytes() for path in files], "label": labels})
    for number in (0, 1):
        parquet.write_table(table.slice(3 * number, 3), folder / f"tables/{number}.parquet")
    return folder / "tables"


def a_dataset(files, folder):
    labels = [number % 2 for number in range(IMAGES)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    one = datasets.Dataset.from_dict({"image": rows(files), "label": labels}, features=features)
    datasets.DatasetDict({"train": one}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize(
    ("make", "classes", "split"),
    [
        (a_list, None, None),
        (a_glob, None, None),
        (a_csv, CLASSES, "train"),
        (two_tars, ["0", "1"], None),
        (a_tar_gz, ["0", "1"], None),
        (a_url, ["0", "1"], None),
        (parquet_structs, CLASSES, "train"),
        (parquet_bytes, ["0", "1"], None),
        (a_dataset, CLASSES, "train"),
    ],
)
def test_a_source_gives_every_image_its_row(
    make, classes, split, files, tmp_path, engine, pixels, expected
):
    source = make(files, tmp_path)
    counts = extract(source, tmp_path / "out", engine, shard_rows=4).counts
    table = FeatureTable.read(tmp_path / "out")
    assert (counts.images, counts.rows) == (IMAGES, IMAGES) and len(set(table.ids)) == IMAGES
    assert table.label_names == (classes or [])
    assert table.labels.tolist() == [n % 2 if classes else -1 for n in range(IMAGES)]
    assert table.splits == [split] * IMAGES
    wanted = np.stack([expected(pixels(number)) for number in range(IMAGES)])
    np.testing.assert_allclose(table.features, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [a_csv, two_tars, parquet_structs, a_dataset])
def test_a_pickled_shard_gives_the_same_part(make, files, tmp_path, engine):
    """So a cluster engine may compute it elsewhere."""
    shards = open_source(make(files, tmp_path)).shards(2)
    with ThreadPoolExecutor(1) as pool:
        for shard in shards:
            copy = pickle.loads(pickle.dumps(shard))
            here, there = extract_shards([shard, copy], engine, TableSettings(), pool, workers=1)
            assert here.table.num_rows and here.table.equals(there.table)
            assert here.errors == there.errors and copy.digest == shard.digest


def test_paths_from_python(files, tmp_path, engine):
    extract(files[::-1], tmp_path / "out", engine)
    assert FeatureTable.read(tmp_path / "out").ids == [str(path) for path in files[::-1]]


def test_columns_by_other_names(files, tmp_path, engine):
    lines = [f"x,{path},{n}" for n, path in enumerate(files)]
    (tmp_path / "t.tsv").write_text("\n".join(["id,file_x,species", *lines]).replace(",", "\t"))
    with pytest.raises(AugSelfError, match="--column image=NAME"):
        open_source(tmp_path / "t.tsv")
    with pytest.raises(UsageError, match="name one column for each role"):
        Columns.parse(("image=a", "image=b"))
    columns = Columns.parse(("image=file_x", "label=species"))
    extract(tmp_path / "t.tsv", tmp_path / "out", engine, options=Options(columns))
    table = FeatureTable.read(tmp_path / "out")
    assert (table.label_names, table.labels.tolist()) == (list("012345"), list(range(6)))
    with pytest.raises(AugSelfError, match="has no column 'y', only id, file_x, species"):
        open_source(tmp_path / "t.tsv", columns=Columns(image="y"))


def test_one_split_of_a_dataset(files, tmp_path, engine):
    source = a_dataset(files, tmp_path)
    assert len(open_source(source, split="train").shards(2)) == 3
    with pytest.raises(UsageError, match="no split test, only train"):
        open_source(source, split="test")


def test_a_missing_datasets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"augself-hub\[extract\]"):
        open_source("org/name")


def read(folder: Path) -> tuple[FeatureTable, list[dict[str, str]]]:
    lines = (folder / "errors.jsonl").read_text().splitlines()
    return FeatureTable.read(folder), [json.loads(line) for line in lines]


BAD = {
    "truncated.jpg": lambda jpeg: jpeg[: len(jpeg) // 2],
    "empty.png": lambda _: b"",
    "noise.png": lambda _: bytes(range(256)) * 8,
    "page.jpg": lambda _: b"<html></html>",
    "tiff.jpg": lambda _: b"II*\0" + bytes(100),
    "bomb.png": lambda _: png((30_000, 30_000), []),
    "nothing.png": lambda _: png((0, 5), []),
}


def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return saved(Image.fromarray(noise), "JPEG")


@pytest.mark.parametrize("kind", ["folder", "csv", "tar", "parquet", "dataset"])
def test_bad_images_are_named_and_the_others_kept(kind, files, tmp_path, engine):
    """The corrupt-input table, in every kind of source."""
    contents = {name: spoil(jpeg()) for name, spoil in BAD.items()}
    good = {path.name: path.read_bytes() for path in files}
    everything = {**good, **contents}
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, content in everything.items():
        (folder / name).write_bytes(content)
    images = [{"bytes": content, "path": name} for name, content in everything.items()]
    source = folder
    if kind == "csv":
        (tmp_path / "m.csv").write_text("\n".join(["path", *(f"mixed/{n}" for n in everything)]))
        source = tmp_path / "m.csv"
    elif kind == "tar":
        source = tarred(tmp_path / "m.tar", everything)
    elif kind == "parquet":
        source = tmp_path / "m.parquet"
        parquet.write_table(pa.table({"image": images}), source)
    elif kind == "dataset":
        source = tmp_path / "saved"
        data = datasets.Dataset.from_dict({"image": images})
        data.save_to_disk(str(source))
    counts = extract(source, tmp_path / "out", engine).counts
    table, errors = read(tmp_path / "out")
    assert (counts.images, counts.rows, counts.errors) == (len(everything), IMAGES, len(BAD))
    assert len(table.ids) == IMAGES and np.isfinite(table.features).all()
    assert all(any(Path(name).stem in e["id"] for e in errors) for name in BAD)
    assert all(error["reason"] and str(tmp_path) not in error["reason"] for error in errors)


@pytest.mark.parametrize("damage", ["cut at a member", "cut in an image", "header", "no tar"])
def test_a_damaged_tar_is_named_and_counted(damage, files, tmp_path, engine):
    """What comes before the damage is kept, but for a sample that is not known to be whole;
    other tars are not touched by it."""
    source = two_tars(files, tmp_path)
    tar = source / "0.tar"
    content = bytearray(tar.read_bytes())
    third = content.index(b"2.png")
    if damage == "cut at a member":
        content = content[:third]
    elif damage == "cut in an image":
        content = content[: third + 600]
    elif damage == "header":
        content[third + 148 : third + 156] = b"spoiled!"
    else:
        content = bytearray(b"this is no archive" * 100)
    tar.write_bytes(content)
    counts = extract(source, tmp_path / "out", engine).counts
    table, errors = read(tmp_path / "out")
    kept = {"no tar": [], "cut at a member": ["0.tar/0"], "header": ["0.tar/0"]}
    kept = kept.get(damage, ["0.tar/0", "0.tar/1"])
    assert table.ids == [*kept, "1.tar/4", "1.tar/5"]
    assert [error["id"] for error in errors] == ["0.tar"] and "damaged" in errors[0]["reason"]
    assert counts.images == counts.rows + counts.errors == len(table.ids) + 1


def test_odd_samples_of_a_tar(files, tmp_path, engine):
    """Each is a row, an error, or counted in the manifest: nothing vanishes."""
    members = {"x.cls": b"1", "y.png": files[0].read_bytes(), "y.cls": b"9" * 2000,
               "z/z.png": files[1].read_bytes(), "z/z.seg.png": files[1].read_bytes(),
               "z/._z.png": b"junk", "v.tif": b"II*"}  # fmt: skip
    for name in ("odd.tar", "odd.tar.gz"):
        out = tmp_path / f"out-{name}"
        counts = extract(tarred(tmp_path / name, members), out, engine).counts
        table, errors = read(out)
        assert table.ids == [f"{name}/z/z"] and table.labels.tolist() == [-1]
        assert [(e["id"], e["reason"]) for e in errors] == [
            (f"{name}/x", "the sample has no image"),
            (f"{name}/y", "its .cls: it has 2000 bytes, more than 1000"),
            (f"{name}/v", ".tif is not read"),
        ]
        inventory = read_manifest(out)["inventory"]
        assert inventory["left_out"] == {"further images of a sample": 1, "hidden": 1}
        assert inventory["found"] == counts.images + 2 == counts.rows + counts.errors + 2


def test_names_as_labels_of_a_tar(files, tmp_path, engine):
    members = {}
    for n, path in enumerate(files):
        members |= {f"{n}.png": path.read_bytes(), f"{n}.cls": CLASSES[n % 2].encode()}
    extract(tarred(tmp_path / "t.tar", members), tmp_path / "out", engine)
    table = FeatureTable.read(tmp_path / "out")
    assert (table.label_names, table.labels.tolist()) == (CLASSES, [n % 2 for n in range(IMAGES)])


def test_a_damaged_parquet_file_is_named_and_counted(files, tmp_path, engine):
    source = parquet_bytes(files, tmp_path)
    shutil.copy(source / "1.parquet", source / "2.parquet")
    (source / "1.parquet").write_bytes((source / "1.parquet").read_bytes()[:-100])
    counts = extract(source, tmp_path / "out", engine).counts
    table, errors = read(tmp_path / "out")
    assert [i.split("/")[0] for i in table.ids] == ["0.parquet"] * 3 + ["2.parquet"] * 3
    assert [error["id"] for error in errors] == ["1.parquet"]
    assert counts.images == counts.rows + counts.errors == 7


def test_rows_without_image_or_label(files, tmp_path, engine):
    images = [{"bytes": files[0].read_bytes(), "path": None}, None, {"bytes": None, "path": None}]
    table = pa.table({"image": images, "label": pa.array([None, 0, -1], pa.int64())})
    parquet.write_table(table, tmp_path / "t.parquet")
    extract(tmp_path / "t.parquet", tmp_path / "out", engine)
    table, errors = read(tmp_path / "out")
    assert table.ids == ["t.parquet/0"] and table.labels.tolist() == [-1]
    assert [error["id"] for error in errors] == ["t.parquet/1", "t.parquet/2"]


def test_a_network_that_fails_is_no_damage(files, tmp_path, engine, monkeypatch):
    """The run ends and can be gone on with; the shard is not written off."""
    from augself_hub.images import tars

    url = a_url(files, tmp_path)

    class Failing(io.BytesIO):
        def read(self, *_):
            raise ConnectionResetError(104, "Connection reset by peer")

    extract_again = lambda: extract(url, tmp_path / "out", engine)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(tars, "open_file", lambda _: Failing())
        with pytest.raises(AugSelfError, match="cannot be reached"):
            extract_again()
    assert extract_again().counts.rows == IMAGES


def test_pairs_give_differences(files, tmp_path, engine, pixels, expected, encoded):
    gray = np.repeat(pixels(7)[..., :1], 3, axis=2)
    (tmp_path / "images/gray.png").write_bytes(encoded(gray))
    names = [("0.png", "1.png"), ("2.png", "gray.png"), ("3.png", "gone.png"), ("1.png", "0.png")]
    lines = [f"images/{a},images/{b}" for a, b in names]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b", *lines]))
    counts = extract(
        tmp_path / "pairs.csv", tmp_path / "out", engine, TableSettings(pairs=True)
    ).counts
    table = DifferenceTable.read(tmp_path / "out")
    assert (counts.images, counts.rows, counts.errors) == (4, 3, 1)
    assert (table.a[1], table.b[1]) == ("images/2.png", "images/gray.png")
    y = [expected(image)[None] for image in (pixels(0), pixels(1))]
    wanted = engine.differences(*y)
    for kind, head in engine.spec.heads.items():
        for number, dimension in enumerate(head.dimensions):
            values = table.values[f"{kind}_{dimension.name}"]
            np.testing.assert_allclose(values[0], wanted[kind][0, number], rtol=1e-3, atol=1e-4)
            assert np.isnan(values[1]) == dimension.needs_color
            assert table.units[f"{kind}_{dimension.name}"] == dimension.unit
    brightness = table.values["color_brightness"]
    np.testing.assert_allclose(brightness[0], -brightness[2], rtol=1e-4)
    error = json.loads((tmp_path / "out/errors.jsonl").read_text())
    assert error["id"] == "images/3.png -> images/gone.png"
    with pytest.raises(AugSelfError, match=r"read it with DifferenceTable.read"):
        FeatureTable.read(tmp_path / "out")


def test_a_source_without_images_says_what_was_there(tmp_path, engine):
    """It said that errors.jsonl says why, and that was empty."""
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "t.parquet")
    with pytest.raises(AugSelfError, match=r"t.parquet holds no image$"):
        extract(tmp_path / "t.parquet", tmp_path / "out", engine)
    tarred(tmp_path / "t.tar", {".a.png": b"x", "b.txt": b"x"})
    with pytest.raises(
        AugSelfError, match=r"t.tar holds no image; left out: hidden 1, no image: .txt 1$"
    ):
        extract(tmp_path / "t.tar", tmp_path / "again", engine)
