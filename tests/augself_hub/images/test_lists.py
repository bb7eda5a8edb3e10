"""Lists: .txt, CSVs as people write them, globs, pairs, files that must not be opened blindly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import places
import pytest

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images import Columns, Options, ShardError, files, open_source, read_file

PNG = places.png(0, (2, 2))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    for name in ("a.png", "b.png", "c.png", "d/e.png"):
        places.write(tmp_path / name, PNG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(source) -> list[tuple[str, str | int | None, str | None]]:
    items = [item for shard in source.shards(2) for item in shard.items()]
    return [
        (i.id, source.classes[i.label] if source.classes and i.label is not None else i.label,
         i.split) for i in items
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,cat\nb.png,dog\n",
        "path, label\na.png, cat\nb.png , dog \n",
        "path;label\na.png;cat\nb.png;dog\n",
        "path\tlabel\na.png\tcat\nb.png\tdog\n",
        "\ufeffPath,Label\r\na.png,cat\r\n\r\nb.png,dog\r\n",
        "image,category\na.png,cat\nb.png,dog",
        "id,file_name,target\n1,a.png,cat\n2,b.png,dog\n",
        "fine_label,filename\ncat,a.png\ndog,b.png\n",
        'path,label\n"a.png","cat"\n"b.png","dog",\n',
    ],
)
def test_the_usual_ways_to_write_a_table(text):
    places.write(Path("t.csv"), text)
    assert rows(open_source("t.csv")) == [("a.png", "cat", None), ("b.png", "dog", None)]


def test_numbers_stay_numbers():
    places.write(Path("t.csv"), "path,label\na.png,10\nb.png,2\nc.png,\nd/e.png,-1\n")
    source = open_source("t.csv")
    assert rows(source) == [
        ("a.png", 10, None), ("b.png", 2, None), ("c.png", None, None), ("d/e.png", None, None)
    ]  # fmt: skip
    assert source.inventory.classes == {"10": 1, "2": 1}
    assert source.inventory.unlabelled == 2


def test_large_numbers_are_names_by_size():
    places.write(Path("t.csv"), "path,label\na.png,30000000000\nb.png,4000000000\n")
    assert open_source("t.csv").classes == ["4000000000", "30000000000"]


def test_splits_of_a_column():
    places.write(Path("t.csv"), "path,label,Split\na.png,x,Train\nb.png,y,test\nc.png,x,\n")
    source = open_source("t.csv")
    assert source.inventory.splits == {"Train": 1, "test": 1}
    chosen = open_source("t.csv", split="training")
    assert rows(chosen) == [("a.png", "x", "Train")]
    assert chosen.inventory.left_out == {"split test": 1, "in no split": 1}
    assert chosen.classes == ["x", "y"]


@pytest.mark.parametrize(
    ("header", "others"),
    [
        ("path,width,label,height", "width, height"),
        ("path,a,b,c,d,e,f,g", "a, b, c, d, e and 2 more"),
        ("path,,x", "one without a name, x"),
        ("path,label", None),
    ],
)
def test_columns_that_are_not_read_are_named(header, others):
    Path("x.csv").write_text(f"{header}\na.png{',' * header.count(',')}\n")
    notes = open_source("x.csv").inventory.notes
    assert notes == (() if others is None else (f"other columns are not read: {others}",))


def test_a_line_with_too_many_fields_is_not_cut():
    places.write(Path("t.csv"), "path,label\na,b.png,x\n")
    with pytest.raises(AugSelfError, match="line 2 has 3 fields, its header 2"):
        open_source("t.csv")


def test_an_existing_file_is_never_a_pattern():
    places.write(Path("list[1].csv"), "path,label\na.png,cat\n")
    places.write(Path("x{0..1}.txt"), "a.png\n")
    assert rows(open_source("list[1].csv")) == [("a.png", "cat", None)]
    assert rows(open_source("x{0..1}.txt")) == [("a.png", None, None)]


def test_globs_work_for_every_kind():
    for n in (0, 1):
        places.tar(Path(f"p{n}.tar"), {f"{n}.png": PNG})
        places.write(Path(f"t{n}/l.csv"), f"path,label\n../{'ab'[n]}.png,{n}\n")
    assert [i for i, *_ in rows(open_source("p*.tar"))] == ["p0.tar/0", "p1.tar/1"]
    assert [i for i, *_ in rows(open_source("p{0..1}.tar"))] == ["p0.tar/0", "p1.tar/1"]
    assert rows(open_source("t*/l.csv")) == [("t0/../a.png", 0, None), ("t1/../b.png", 1, None)]
    assert [i for i, *_ in rows(open_source("**/*.png"))] == ["a.png", "b.png", "c.png", "d/e.png"]
    for shard in open_source("t*/l.csv").shards(1):
        assert next(shard.items()).read() == [PNG]


def test_pairs():
    places.write(Path("p.csv"), "a;b\na.png;b.png\n")
    [item] = next(iter(open_source("p.csv", pairs=True).shards(9))).items()
    assert (item.names, item.read()) == (("a.png", "b.png"), [PNG, PNG])


def test_what_is_no_regular_file_is_an_error_and_not_waited_for():
    os.mkfifo("fifo.png")
    Path("zero.png").symlink_to("/dev/zero")
    Path("folder.png").symlink_to(".")
    places.write(Path("t.csv"), "path\nfifo.png\n/dev/zero\nd\n")
    for name in ("fifo.png", "zero.png", "/dev/zero", "d"):
        with pytest.raises((ImageError, IsADirectoryError), match=r"no regular file|directory"):
            read_file(Path(name))
    assert len(rows(open_source("t.csv"))) == 3
    listing = open_source(".").listing()
    assert {"fifo.png", "zero.png"} <= set(listing.names)
    with pytest.raises(ImageError, match="no regular file"):
        listing.read(list(listing.names).index("fifo.png"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fifos", "place", "told"),
    [
        (["t/y.tar"], "t", "damaged: it is no regular file"),
        (["x-0.tar", "x-1.tar"], "x-{0..1}.tar", "damaged: it is no regular file"),
        (["t/y.parquet"], "t", "not one parquet file can be read: it is no regular file"),
        (["x.tar"], "x.tar", "x.tar is no file"),
        (["x.parquet"], "*.parquet", "nothing matches"),
    ],
)
def test_a_fifo_called_a_tar_or_a_table_is_not_waited_for_either(fifos, place, told, stream):
    for name in fifos:
        Path(name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)
    with pytest.raises((ShardError, AugSelfError), match=told):
        rows(open_source(place, Options(stream=stream)))


def test_a_system_without_flags_for_fifos_reads_files_too():
    """As Windows is; there is no such machine here."""
    code = (
        "import os; del os.O_NONBLOCK, os.O_CLOEXEC\n"
        "from pathlib import Path; from augself_hub.images.files import read_file\n"
        "print(read_file(Path('a.bin')))"
    )
    places.write(Path("a.bin"), b"abc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "b'abc'\n", done.stderr


def test_a_file_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    places.write(Path("big.png"), bytes(1001))
    with pytest.raises(ImageError, match="more than 1000 bytes"):
        read_file(Path("big.png"))
    with Path("sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match="more than 1000 bytes"):
        read_file(Path("sparse.png"))


def test_names_that_are_not_utf_8_are_errors():
    places.write(Path(os.fsdecode(b"caf\xe9.png")), PNG)
    source = open_source(".")
    [bad] = [i for shard in source.shards(9) for i in shard.items() if i.problem]
    assert (bad.id, bad.problem) == (r"caf\xe9.png", "its name is not UTF-8")


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nowhere", {}, AugSelfError, "does not exist"),
        ("nowhere/at/all", {}, AugSelfError, "does not exist"),
        ("*.nothing", {}, AugSelfError, "nothing matches"),
        ("a.png", {}, AugSelfError, "is no source"),
        ("empty.csv", {}, AugSelfError, "no rows"),
        ("latin.csv", {}, AugSelfError, "not UTF-8"),
        ("empty.txt", {}, AugSelfError, "names no image"),
        ("two.csv", {"columns": Columns(image="y")}, AugSelfError, "no column 'y', only u, v"),
        ("two.csv", {}, AugSelfError, "has the columns u, v: name the images'"),
        ("d", {"split": "train"}, UsageError, "--split has no effect: .*d has no splits"),
        ("d", {"columns": Columns("x")}, UsageError, "--column has no effect"),
        ("d", {"image_root": Path()}, UsageError, "--image-root has no effect"),
        ("d", {"pairs": True}, UsageError, "--pairs needs a CSV"),
        ("d", {"kind": "films"}, UsageError, "unknown --read-as films"),
        ("d", {"kind": "tars"}, AugSelfError, "holds no tars; what is there: images 1"),
        ("two.csv", {"pairs": True}, AugSelfError, "pairs need a and b"),
        ("mnist:there", {}, UsageError, "unknown source mnist:there"),
        ("x{0..9999999}.tar", {}, AugSelfError, "more than 1000000 names"),
        ("nosuch://x/y.tar", {}, AugSelfError, "cannot be opened"),
    ],
)
def test_what_is_no_source_is_refused(source, options, error, message):
    places.write(Path("empty.csv"), "path,label\n")
    places.write(Path("latin.csv"), b"path\n\xe9.png\n")
    places.write(Path("empty.txt"), "\n")
    places.write(Path("two.csv"), "u,v\n1,2\n")
    with pytest.raises(error, match=message) as refused:
        [list(shard.items()) for shard in open_source(source, **options).shards(4)]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.tsv", "folder/metadata.csv"])
def test_a_list_that_no_memory_holds_is_refused(name, tmp_path, monkeypatch):
    """A sparse file of a terabyte takes no room on the disk."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/a.png").write_bytes(places.png(0, (2, 2)))
    with Path(name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(AugSelfError, match=r"has 1099511627776 bytes, a list at most"):
        open_source("folder" if "/" in name else name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # The first row would end at the end of the file, or where the next quote stands.
        ('path,label\n"a.png,cat\nb.png,dog\n', "t.csv, line 3: unexpected end of data"),
        ('path,label\n"a.png,cat\n"b.png",dog\n', "t.csv, line 3: ',' expected after '\"'"),
        ("path,path,label\na.png,b.png,cat\n", "2 columns path: rename one"),
        ("path,label,label\na.png,cat,dog\n", "2 columns label: rename one"),
        ("path,label,split,split\na.png,cat,train,test\n", "2 columns split: rename one"),
        ("", "is empty: its first line has to name the columns"),
        ("\n\n", "is empty"),
        ("a,b\na.png,b.png\n", "read a and b with --pairs"),
    ],
)
def test_tables_of_which_rows_or_columns_would_be_lost(text, words):
    places.write(Path("t.csv"), text)
    with pytest.raises(AugSelfError, match=words):
        open_source("t.csv")


def test_columns_that_nobody_reads_may_have_one_name():
    places.write(Path("t.csv"), "path,note,note\na.png,1,2\n")
    assert rows(open_source("t.csv")) == [("a.png", None, None)]


def test_pairs_with_two_columns_of_a_name():
    places.write(Path("t.csv"), "a,b,b\na.png,b.png,c.png\n")
    with pytest.raises(AugSelfError, match="2 columns b"):
        open_source("t.csv", pairs=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"columns": Columns(label="b")}, "--column has no effect on --pairs"),
        ({"split": "train"}, "--split has no effect on --pairs"),
        ({"kind": "classes"}, "--read-as has no effect on --pairs"),
        ({"image_root": Path()}, "--image-root has no effect on --pairs"),
    ],
)
def test_pairs_leave_nothing_to_choose(given, words):
    places.write(Path("t.csv"), "a,b\na.png,b.png\n")
    with pytest.raises(UsageError, match=words):
        open_source("t.csv", pairs=True, **given)


@pytest.mark.parametrize("kind", ["images", "splits", "classes", "dataset"])
@pytest.mark.parametrize("source", ["t.csv", "t.txt", "*.png", ["a.png"]])
def test_what_is_no_folder_is_read_in_one_way(source, kind):
    places.write(Path("t.csv"), "path,label\na.png,cat\n")
    places.write(Path("t.txt"), "a.png\n")
    assert rows(open_source(source))
    with pytest.raises(UsageError, match=f"--read-as {kind} has no effect: .* is a (list|glob)"):
        open_source(source, kind=kind)


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_names_may_hold_what_only_python_takes_for_a_line_s_end(letter):
    name = f"a{letter}b.png"
    places.write(Path(name), PNG)
    places.write(Path("t.txt"), f"{name}\r\nc.png\n")
    assert rows(open_source("t.txt")) == [(name, None, None), ("c.png", None, None)]
    places.write(Path("f/c.png"), PNG)
    record = {"file_name": "c.png", "label": f"cat{letter}"}
    places.write(Path("f/metadata.jsonl"), json.dumps(record, ensure_ascii=False) + "\n")
    assert open_source("f").inventory.classes == {f"cat{letter}".strip(): 1}
