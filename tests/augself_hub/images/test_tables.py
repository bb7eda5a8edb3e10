"""Parquet files and Hugging Face data sets: held against datasets' own loaders; foreign tables."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from places import png, write
from pyarrow import parquet

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import Columns, open_source

PNG = png(0, (2, 2))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def table(path: str, **columns) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return Path(path)


def items(source):
    return [item for shard in source.shards(2) for item in shard.items()]


def names(source) -> list[str | int | None]:
    found = [item.label for item in items(source)]
    return [source.classes[n] if source.classes and n is not None else n for n in found]


def agree(source):
    """The listing is what the shards give."""
    listing, read = source.listing(), items(source)
    assert list(listing.names) == [item.id for item in read]
    assert list(listing.labels) == [-1 if i.label is None else i.label for i in read]
    assert list(listing.splits or [None] * len(read)) == [item.split for item in read]
    copy = pickle.loads(pickle.dumps(listing))
    for number, item in enumerate(read):
        if item.problem is None:
            assert listing.read(number) == copy.read(number) == item.read()[0]
        else:
            with pytest.raises(ImageError, match=item.problem[:20]):
                listing.read(number)
    return read


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([3, 0, None], pa.uint8()), [3, 0, None]),
        (pa.array([10**12, 5, None], pa.int64()), ["1000000000000", "5", None]),
        (pa.array([2**64 - 1, 5, None], pa.uint64()), [str(2**64 - 1), "5", None]),
        (pa.array([1.0, 0.0, float("nan")]), [1, 0, None]),
        (pa.array([True, False, None]), [1, 0, None]),
        (pa.array(["dog", "cat", ""]), ["dog", "cat", None]),
        (pa.array(["10", "2", "-1"]), [10, 2, None]),
        (pa.array(["dog", "cat", None]).cast(pa.string_view()), ["dog", "cat", None]),
        (pa.array(["dog", "cat", None]).cast(pa.large_string()), ["dog", "cat", None]),
        (pa.array(["dog", "cat", None]).dictionary_encode(), ["dog", "cat", None]),
        (pa.array([-1, 4, -1], pa.int64()), [None, 4, None]),
        (pa.nulls(3), [None, None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_labels_of_every_kind(column, wanted):
    images = [png(n, (2, 2)) for n in range(3)]
    source = open_source(table("t.parquet", image=images, label=column))
    assert names(source) == wanted
    agree(source)
    counted = {str(label): 1 for label in wanted if label is not None}
    assert source.inventory.classes == counted


@pytest.mark.parametrize(
    ("columns", "chosen", "message"),
    [
        ({"image": [[1]], "label": [1]}, {}, r"image of t.parquet holds list<.*> and no images"),
        ({"image": [PNG], "label": [[1]]}, {"label": "label"}, r"column label .* holds list<"),
        ({"image": [PNG], "label": [0.5]}, {}, r"column label .* holds numbers such as 0.5"),
        ({"image": [7]}, {}, "column image of t.parquet holds int64 and no images"),
        ({"x": [7], "y": ["a"]}, {}, "has the columns x, y: name the images'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_column_and_type(columns, chosen, message):
    with pytest.raises(AugSelfError, match=message) as refused:
        open_source(table("t.parquet", **columns), columns=Columns(**chosen))
    assert "\n" not in str(refused.value)


def test_a_multi_label_column_is_said_and_left():
    source = open_source(table("t.parquet", image=[PNG], label=[[1, 2]]))
    assert names(source) == [None]
    assert "column label holds list<" in source.inventory.text()


def test_paths_and_base64(here):
    write(here / "data/sub/a.png", PNG)
    code = base64.b64encode(png(1, (2, 2))).decode()
    cells = ["sub/a.png", code, f"data:image/png;base64,{code}", "https://example.org/x.png",
             str(here / "data/sub/a.png"), "gone.png", None]  # fmt: skip
    source = open_source(table("data/t.parquet", image=cells))
    read = items(source)
    assert [i.id for i in read][:3] == ["t.parquet/0/a.png", "t.parquet/1", "t.parquet/2"]
    assert read[0].read() == read[4].read() == [PNG]
    assert read[1].read() == read[2].read() == [png(1, (2, 2))]
    assert "URL: download it first" in read[3].problem
    with pytest.raises(OSError, match="No such file"):
        read[5].read()
    assert read[6].problem == "the row has no image"
    listing = source.listing()
    assert list(listing.names) == [i.id for i in read]
    assert listing.read(0) == PNG and listing.read(2) == png(1, (2, 2))


@pytest.mark.parametrize("cell", ["struct", "text"])
@pytest.mark.parametrize("path", ["../private.png", "{here}/private.png", "link.png", "/dev/zero"])
def test_a_foreign_table_cannot_name_files_outside_its_folder(here, path, cell):
    write(here / "private.png", PNG)
    (here / "data").mkdir()
    (here / "data/link.png").symlink_to(here / "private.png")
    path = path.format(here=here)
    cells = [path] if cell == "text" else [{"bytes": None, "path": path}]
    table("data/t.parquet", image=cells)
    [item] = items(open_source("data/t.parquet"))
    assert item.problem == (
        "its path leads out of the table's folder: --image-root DIR allows another"
    )
    with pytest.raises(ImageError, match="leads out of"):
        open_source("data/t.parquet").listing().read(0)
    if path != "/dev/zero":
        name = "data/" + path if path == "link.png" else path.replace("../", "")
        table("data/t.parquet", image=[name])
        [item] = items(open_source("data/t.parquet", image_root=here))
        assert item.read() == [PNG]


def test_a_saved_data_set_cannot_either(here):
    write(here / "private.png", PNG)
    fields = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": fields})  # save_to_disk would embed an Image's file
    cells = [{"bytes": None, "path": str(here / "private.png")}, {"bytes": PNG, "path": "x.png"}]
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk("saved")
    bad, good = items(open_source("saved"))
    assert "leads out of the table's folder" in bad.problem and good.read() == [PNG]


def test_parquet_is_what_datasets_reads(here):
    """With a ClassLabel: names, numbers, order and bytes of datasets' own parquet loader."""
    features = datasets.Features(
        {"img": datasets.Image(), "coarse": datasets.ClassLabel(names=["x", "y"])}
    )
    cells = [{"bytes": png(n, (2, 2)), "path": None} for n in range(6)]
    rows = {"img": cells, "coarse": [0, 1, 1, None, 0, 1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    for part, split in ((0, "train"), (1, "test")):
        path = here / f"data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        data.select(range(3 * part, 3 * part + 3)).to_parquet(path)
    theirs = datasets.load_dataset(str(here / "data"))
    source = open_source("data")
    read = agree(source)
    assert source.classes == theirs["train"].features["coarse"].names
    for split in ("test", "train"):
        ours = [item for item in read if item.split == split]
        raw = theirs[split].cast_column("img", datasets.Image(decode=False))
        assert [i.read()[0] for i in ours] == [cell["bytes"] for cell in raw["img"]]
        assert [i.label for i in ours] == list(raw["coarse"])


def test_a_saved_data_set_with_a_split_that_lacks_labels(here):
    cells = [{"bytes": png(n, (2, 2)), "path": f"{n}.png"} for n in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    train = datasets.Dataset.from_dict({"image": cells, "label": [1, None, 0]}, features=features)
    test = datasets.Dataset.from_dict(
        {"image": cells[:2]}, features=datasets.Features({"image": datasets.Image()})
    )
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk("saved")
    source = open_source("saved")
    assert [i.id for i in agree(source)][:2] == ["train/0/0.png", "train/1/1.png"]
    assert names(source) == ["b", None, "a", None, None]
    assert source.inventory.splits == {"train": 3, "test": 2}
    assert names(open_source("saved", split="training")) == ["b", None, "a"]
    with pytest.raises(UsageError, match="no split validation, only train, test"):
        open_source("saved", split="validation")


@pytest.mark.parametrize(
    ("feature", "values", "wanted"),
    [
        (datasets.Value("string"), ["dog", "cat", None], ["dog", "cat", None]),
        (datasets.Value("int64"), [7, 3, None], [7, 3, None]),
        (datasets.Value("bool"), [True, False, None], [1, 0, None]),
        (datasets.List(datasets.Value("int64")), [[1], [2], []], [None, None, None]),
    ],
)
def test_labels_of_a_data_set(feature, values, wanted):
    cells = [{"bytes": png(n, (2, 2)), "path": None} for n in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    data = datasets.Dataset.from_dict({"image": cells, "label": values}, features=features)
    data.save_to_disk("saved")
    source = open_source("saved")
    assert names(source) == wanted
    agree(source)
    assert ("is not read as labels" in source.inventory.text()) == (wanted == [None] * 3)


def test_where_a_data_set_lies_is_no_part_of_its_names(here):
    for name in ("a/0.png", "b/1.png", "b/2.png"):
        write(here / "one" / name, PNG)
    (here / "else").mkdir()
    first = list(open_source("hf:one").listing().names)
    (here / "one").rename(here / "else/two")
    assert list(open_source("hf:else/two").listing().names) == first
    assert first == ["train/0/0.png", "train/1/1.png", "train/2/2.png"]


def test_hf_is_read_by_datasets_and_says_the_same_as_the_folder(here):
    for name in ("train/a/0.png", "train/b/1.png", "test/b/2.png"):
        write(here / "d" / name, png(int(name[-5]), (2, 2)))
    theirs, ours = open_source("hf:d"), open_source("d")
    same = [(i.read(), i.label, i.split) for i in items(theirs)]
    assert sorted(same) == sorted((i.read(), i.label, i.split) for i in items(ours))
    assert theirs.classes == ours.classes == ["a", "b"]
    [only] = items(open_source("hf:d:test"))
    assert only.split == "test"
    with pytest.raises(UsageError, match="contradict"):
        open_source("hf:d:test", split="train")


@pytest.mark.parametrize("folder", ["d[1]", "d*", "d?", "[abc]"])
def test_a_file_below_a_folder_that_looks_like_a_pattern_is_listed(here, folder):
    """Training reads by way of datasets, which takes names for patterns."""
    table(f"{folder}/t.parquet", image=[png(n, (2, 2)) for n in range(3)])
    (here / "d1").mkdir()
    table("d1/t.parquet", image=[png(9, (2, 2))] * 2)
    listing = open_source(f"{folder}/t.parquet").listing()
    assert [listing.read(n) for n in range(3)] == [png(n, (2, 2)) for n in range(3)]


def test_a_split_column_of_parquet(here):
    table("t.parquet", image=[png(n, (2, 2)) for n in range(3)], split=["Train", "test", None])
    source = open_source("t.parquet", split="train")
    assert [i.id for i in agree(source)] == ["t.parquet/0"]
    assert source.inventory.left_out == {"split test": 1, "in no split": 1}


def test_a_damaged_file_is_named_and_the_rest_is_read(here):
    for n in (0, 1, 2):
        table(f"d/{n}.parquet", image=[PNG])
    Path("d/1.parquet").write_bytes(Path("d/1.parquet").read_bytes()[:-50])
    source = open_source("d")
    assert [shard.name for shard in source.shards(9)] == [
        "0.parquet, row groups (0,)", "1.parquet", "2.parquet, row groups (0,)"
    ]  # fmt: skip
    assert "1.parquet" in source.inventory.text()
    with pytest.raises(UsageError, match="read in order"):
        source.listing()
    with pytest.raises(AugSelfError, match="not one parquet file can be read"):
        open_source("d/1.parquet")


def test_a_stream_of_a_data_set(here):
    for name in ("a/0.png", "b/1.png"):
        write(here / "d" / name, png(int(name[-5]), (2, 2)))
    source = open_source("stream:hf:d")
    assert [(i.id, i.label, i.read()) for i in items(source)] == [
        ("shard 0/0", 0, [png(0, (2, 2))]), ("shard 0/1", 1, [png(1, (2, 2))])
    ]  # fmt: skip
    with pytest.raises(UsageError, match="only be read in order"):
        source.listing()


@pytest.mark.parametrize("first", ["a", "b"])
def test_labels_and_splits_may_be_missing_in_some_files(first):
    """Whichever comes first: its columns alone decided, and the others' labels were lost."""
    other = "b" if first == "a" else "a"
    table(f"t/{first}.parquet", image=[PNG, PNG], label=["cat", "dog"], split=["train", "test"])
    table(f"t/{other}.parquet", image=[PNG])
    source = open_source("t")
    read = {item.id: (item.label, item.split) for item in agree(source)}
    assert source.classes == ["cat", "dog"]
    assert read == {
        f"{first}.parquet/0": (0, "train"),
        f"{first}.parquet/1": (1, "test"),
        f"{other}.parquet/0": (None, None),
    }
    assert [item.id for item in items(source.chosen("test"))] == [f"{first}.parquet/1"]


def test_files_that_do_not_fit_together_are_refused():
    table("t/a.parquet", image=[PNG])
    table("t/b.parquet", photo=[PNG])
    with pytest.raises(
        AugSelfError, match=r"t/b\.parquet has no column image, as other files of t"
    ):
        open_source("t")
    table("u/a.parquet", image=[PNG], label=["cat"])
    table("u/b.parquet", image=[PNG], label=[["cat", "dog"]])
    notes = open_source("u").inventory.notes
    assert notes == ("column label holds list<element: string> and is not read as labels",)
    write(Path("v.parquet"), b"")
    parquet.write_table(pa.table([[PNG], [PNG]], names=["image", "image"]), "v.parquet")
    with pytest.raises(AugSelfError, match="2 columns image: rename one"):
        open_source("v.parquet")


def labelled(names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    rows = {"image": [{"bytes": PNG, "path": None}], "label": [0]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_class_number_means_one_class(here):
    """Two data sets that were put together: 0 is a cat in one, and a dog in the other."""
    one, other = labelled(["cat", "dog"]), labelled(["dog", "cat"])
    Path("t").mkdir()
    one.to_parquet("t/a.parquet")
    other.to_parquet("t/b.parquet")
    with pytest.raises(AugSelfError, match="names the classes of label otherwise"):
        open_source("t")
    datasets.DatasetDict(train=one, test=other).save_to_disk("both")
    with pytest.raises(AugSelfError, match="split test of both names the classes of label other"):
        open_source("both")
    assert names(open_source("both", split="test")) == ["dog"]
    assert names(open_source("both", split="train")) == ["cat"]


def test_every_split_has_the_column_of_images(here):
    one = labelled(["cat"])
    datasets.DatasetDict(train=one, test=one.rename_column("image", "photo")).save_to_disk("d")
    with pytest.raises(AugSelfError, match="split test of d has no column image"):
        open_source("d")
