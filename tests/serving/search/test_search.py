"""A search finds what comparing with every row would find, and says what it cannot do."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from augself_hub import FeatureTable
from augself_hub.errors import AugSelfError
from augself_hub.features import MODEL_KEY
from serving.extraction.pipeline import TableSettings, extract
from serving.inference.engine import load

usearch = pytest.importorskip("usearch", reason="pip install 'augself-hub[search]'")

from serving.search import index as indexing  # noqa: E402
from serving.search import sheet  # noqa: E402
from serving.search.index import FeatureIndex, build  # noqa: E402

IMAGES, ROWS = 30, 7  # images, rows of a part


@pytest.fixture(scope="module")
def engine(tiny_model):
    return load(str(tiny_model), "cpu", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """30 pictures of two classes: one colour each, so that what is found can be seen."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(IMAGES):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), color(number)).save(path)
    return folder


def color(number: int) -> tuple[int, int, int]:
    return number * 8, 255 - number * 8, number * 37 % 256


@pytest.fixture(scope="module")
def table(source, engine, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("table") / "features"
    extract(source, output, engine, shard_rows=ROWS)
    return output


@pytest.fixture
def own(table, tmp_path) -> Path:
    """A copy of the table that a test may spoil."""
    return shutil.copytree(table, tmp_path / "features")


def by_hand(table: FeatureTable, query: np.ndarray) -> list[int]:
    """All rows by their cosine to the query, best first."""
    lengths = np.linalg.norm(table.features, axis=1) * np.linalg.norm(query)
    return np.argsort(-(table.features @ query) / lengths, kind="stable").tolist()


def test_a_search_finds_what_brute_force_finds(table, tmp_path):
    """The same rows in the same order with their cosines, across the borders of parts."""
    told = build(table, tmp_path / "index")
    rows = FeatureTable.read(table)
    opened = FeatureIndex(tmp_path / "index")
    assert told["parts"] == [7, 7, 7, 7, 2] and opened.rows == IMAGES
    for number in (0, 6, 7, 29):
        found = opened.search(rows.features[number], 10)
        assert [match.id for match in found] == [
            rows.ids[row] for row in by_hand(rows, rows.features[number])[:10]
        ]
        assert found[0].cosine == pytest.approx(1, abs=1e-5)
        assert all(match.label == match.id[0] for match in found)
        assert [match.part for match in found] == [rows.ids.index(m.id) // ROWS for m in found]
    assert told["recall_at_10"] == 1


def test_the_recall_counts_what_brute_force_would_have_found(table, tmp_path, monkeypatch):
    """An index that answers with the wrong rows has a recall that says so."""
    add = indexing.Index.add

    def shifted(graph, keys, features, **options):
        wrong = np.roll(features, 1, axis=0)[::-1].copy() if len(graph) else features
        return add(graph, keys, wrong, **options)

    assert build(table, tmp_path / "good")["recall_at_10"] == 1
    monkeypatch.setattr(indexing.Index, "add", shifted)
    assert build(table, tmp_path / "bad")["recall_at_10"] < 0.8


def test_a_graph_of_many_rows_misses_few(tmp_path, engine):
    """Where the graph is larger than what a search looks at: 4000 drawn rows in 16 clusters."""
    draws = np.random.default_rng(0)
    centres = draws.normal(size=(16, engine.spec.features))
    features = centres[draws.integers(16, size=4000)] + draws.normal(size=(4000, len(centres[0])))
    folder = drawn_table(tmp_path / "features", features.astype(np.float32))
    assert build(folder, tmp_path / "index")["recall_at_10"] > 0.9


def drawn_table(folder: Path, features: np.ndarray) -> Path:
    """A table of two parts with these features, as extraction writes it."""
    (folder / "data").mkdir(parents=True)
    model = "0" * 64
    for number, part in enumerate(np.array_split(features, 2)):
        column = pa.FixedSizeListArray.from_arrays(part.ravel(), part.shape[1])
        ids = pa.array([f"{number}-{row}" for row in range(len(part))])
        rows = pa.table({"id": ids, "features": column}).replace_schema_metadata({MODEL_KEY: model})
        parquet.write_table(rows, folder / f"data/part-{number:05}.parquet")
    manifest = {"format": 1, "table": "features", "layout": "parquet", "dtype": "float32"}
    manifest |= {"model": {"name": "m", "sha256": model, "features": features.shape[1]}}
    manifest |= {"normalized": False, "shard_rows": len(features), "label_names": []}
    manifest |= {"source": {"location": "drawn"}}
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"counts": {"rows": len(features)}})
    )
    return folder


def test_half_precision_and_lost_shards(source, engine, tmp_path):
    """A part without a row, and rows of two bytes a number."""
    hurt = shutil.copytree(source, tmp_path / "hurt")
    for path in sorted(hurt.rglob("*.png"))[ROWS : 2 * ROWS]:
        path.write_bytes(b"")
    extract(hurt, tmp_path / "t", engine, TableSettings(dtype="float16"), shard_rows=ROWS)
    assert build(tmp_path / "t", tmp_path / "index")["parts"] == [7, 0, 7, 7, 2]
    rows = FeatureTable.read(tmp_path / "t")
    found = FeatureIndex(tmp_path / "index").search(rows.features[12].astype(np.float32), 1)
    assert found[0].id == rows.ids[12]


def test_the_commands_list_and_show(table, source, tiny_model, tmp_path, augself):
    """The sheet has the query, then the matches: each tile has its picture's colour."""
    done = augself("index", table, "--output", tmp_path / "index")
    assert (done.status, done.err) == (0, "")
    assert done.out.strip() == f"{tmp_path / 'index'}: 30 rows of 128 features, recall@10 1.000"
    query, png = source / "a/04.png", tmp_path / "sheet.png"
    command = ("search", tmp_path / "index", query, "--output", png, "--model", tiny_model)
    done = augself(*command, "-k", 7, "--device", "cpu")
    lines = done.out.splitlines()
    assert (done.status, done.err, len(lines)) == (0, "", 7)
    assert lines[0] == "1   1.000  a/04.png  (a)"
    with Image.open(png) as shown:
        assert shown.format == "PNG"
        assert tile(shown, 0) == tile(shown, 1) == color(4)
        assert tile(shown, 6) == color(int(lines[5].split()[2][2:4]))
        assert tile(shown, 7) == color(int(lines[6].split()[2][2:4]))
    printed = json.loads(augself(*command, "-k", 2, "--json").out)
    assert [match["id"] for match in printed] == [line.split()[2] for line in lines[:2]]
    assert list(printed[0]) == ["id", "label", "part", "cosine"]


def test_without_output_it_is_a_list(table, source, tiny_model, tmp_path, augself):
    index = tmp_path / "index"
    augself("index", table, "--output", index)
    command = ("search", index, source / "a/04.png", "--model", tiny_model, "-k", 7)
    done = augself(*command)
    shown = augself(*command, "--output", tmp_path / "sheet.png")
    assert (done.status, done.err, done.out) == (0, "", shown.out)
    before = set(tmp_path.rglob("*"))
    refused = augself(*command, "--source", source)
    assert refused.status == 2 and "--output" in refused.err
    assert set(tmp_path.rglob("*")) == before


def tile(shown: Image.Image, number: int) -> tuple[int, ...]:
    """The colour in the middle of a tile."""
    row, column = divmod(number, sheet.COLUMNS)
    width, height = sheet.SIDE + sheet.GAP, sheet.SIDE + 2 * sheet._LINE + sheet.GAP
    half = sheet.GAP + sheet.SIDE // 2
    return shown.getpixel((half + column * width, half + row * height))


@pytest.fixture
def index(own, tmp_path) -> Path:
    build(own, tmp_path / "index")
    return tmp_path / "index"


def test_pictures_that_moved_are_shown_by_name_or_found(
    table, source, tiny_model, tmp_path, augself
):
    moved = shutil.copytree(source, tmp_path / "now")
    extract(moved, tmp_path / "t", load(str(tiny_model), "cpu", 1), shard_rows=ROWS)
    build(tmp_path / "t", tmp_path / "index")
    moved = moved.rename(tmp_path / "later")
    query, png = moved / "a/04.png", tmp_path / "sheet.png"
    command = ("search", tmp_path / "index", query, "--output", png, "--model", tiny_model, "-k", 3)
    done = augself(*command)
    assert done.status == 0 and "3 of the pictures are not where they were" in done.err
    with Image.open(png) as shown:
        assert tile(shown, 0) == color(4) and tile(shown, 1) == (221, 221, 221)
    done = augself(*command, "--source", moved)
    assert (done.status, done.err) == (0, "")
    with Image.open(png) as shown:
        assert tile(shown, 1) == color(4)
    assert augself(*command, "--source", tmp_path / "nowhere").status == 1


def test_pictures_in_tars_are_found(source, engine, tmp_path):
    """Only the shard that holds a match is read."""
    import tarfile

    for number, letter in enumerate("ab"):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for path in sorted((source / letter).iterdir()):
                tar.add(path, path.name)
    extract(tmp_path / "{0..1}.tar", tmp_path / "t", engine)
    build(tmp_path / "t", tmp_path / "index")
    opened, rows = FeatureIndex(tmp_path / "index"), FeatureTable.read(tmp_path / "t")
    matches = opened.search(rows.features[20], 1)
    assert matches[0].id == "1.tar/11" and matches[0].part == 1
    (tmp_path / "0.tar").write_bytes(b"not read")
    found = sheet.pictures(opened.table_manifest, matches, None)
    assert found["1.tar/11"].getpixel((5, 5)) == color(11)


def refused(done: SimpleNamespace, status: int, message: str) -> None:
    assert done.status == status and message in done.err, done.err
    assert len(done.err.splitlines()) == 1 and "Traceback" not in done.err


def test_another_model_is_refused(index, source, tmp_path, augself):
    done = augself("search", index, source / "a/04.png", "--output", tmp_path / "s.png")
    refused(done, 2, "is of model tiny (")
    assert "give --model tiny" in done.err and not (tmp_path / "s.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: (table / "manifest.json").write_text("{}"), "features has changed since"),
        (lambda table: table.rename(table.with_name("gone")), "is not at"),
    ],
)
def test_a_table_that_changed_is_refused(change, message, own, index, source, tmp_path, augself):
    change(own)
    done = augself("search", index, source / "a/04.png", "--output", tmp_path / "s.png")
    refused(done, 1, message)
    assert "augself index" in done.err


def test_more_than_there_are_is_refused(index, source, tiny_model, tmp_path, augself):
    query, png = source / "a/04.png", tmp_path / "s.png"
    done = augself("search", index, query, "--output", png, "--model", tiny_model, "-k", 31)
    refused(done, 2, "-k 31")
    assert "has 30 rows" in done.err and not png.exists()


def test_an_image_that_cannot_be_read_is_refused(index, tiny_model, tmp_path, augself):
    (tmp_path / "x.png").write_bytes(b"no image")
    command = ("search", index, tmp_path / "x.png", "--model", tiny_model, "--output")
    refused(
        augself(*command, tmp_path / "s.png"), 1, f"{tmp_path / 'x.png'}: the data is not an image"
    )
    refused(augself(*command, tmp_path / "s.jpg"), 2, "the contact sheet is a PNG")


def test_what_is_no_index_is_refused(index, source, tmp_path, augself):
    command = (source / "a/04.png", "--output", tmp_path / "s.png")
    refused(augself("search", source, *command), 1, "is no index: make one with augself index")
    graph = index / "index.usearch"
    graph.write_bytes(graph.read_bytes()[:-10])
    refused(augself("search", index, *command), 1, "index.usearch is damaged")


def test_tables_that_cannot_be_indexed_are_refused(own, source, engine, tmp_path, augself):
    """And nothing is left of what was begun."""
    extract(source, tmp_path / "npy", engine, layout="npy")
    (tmp_path / "one").mkdir()
    shutil.copy(source / "a/00.png", tmp_path / "one")
    extract(tmp_path / "one", tmp_path / "few", engine)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"a,b\n{source}/a/00.png,{source}/a/02.png\n")
    extract(pairs, tmp_path / "pairs", engine, TableSettings(pairs=True))
    output = tmp_path / "index"
    for name, status, message in (
        ("npy", 2, "is of --format npy"),
        ("few", 2, "has one row"),
        ("pairs", 2, "holds differences"),
        ("one", 1, "not a finished extraction"),
    ):
        refused(augself("index", tmp_path / name, "--output", output), status, message)
    damage(own / "data/part-00002.parquet")
    refused(augself("index", own, "--output", output), 1, "part-00002.parquet is damaged")
    (own / "data/part-00002.parquet").unlink()
    refused(augself("index", own, "--output", output), 1, "has 23 rows, not 30")
    assert not output.exists() and not (tmp_path / ".index.new").exists()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_parts_of_two_models_are_refused(own, source, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "sha256", "f" * 64)
    extract(source, tmp_path / "other", engine, shard_rows=ROWS)
    shutil.copy(tmp_path / "other/data/part-00001.parquet", own / "data/part-00001.parquet")
    with pytest.raises(AugSelfError, match="comes from model ffffffffffff"):
        build(own, tmp_path / "index")


def test_an_index_and_a_sheet_are_whole_or_not_there(own, index, source, tmp_path):
    """A limit on the size of files, as on a full disk: an older sheet is kept, too."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # noqa: E731
    png = tmp_path / "sheet.png"
    png.write_bytes(b"the older one")
    base = [sys.executable, "-m", "augself_hub.cli"]
    done = subprocess.run(
        [*base, "index", own, "--output", tmp_path / "new"],
        capture_output=True, text=True, preexec_fn=limit, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot be written" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists() and not (tmp_path / ".new.new").exists()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(AugSelfError, match=r"sheet.png cannot be written: File too large"):
            sheet.save(Image.effect_noise((400, 400), 50), png)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert png.read_bytes() == b"the older one" and not list(tmp_path.glob(".sheet*"))


def test_searching_needs_no_torch(index, source, tiny_model, tmp_path):
    code = (
        "import sys; from augself_hub.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "search", index, source / "a/04.png", "--model"]
    command += [tiny_model, "--output", tmp_path / "s.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_pipe_is_not_waited_for(index, tiny_model, tmp_path, augself):
    os.mkfifo(tmp_path / "pipe.jpg")
    told = augself("search", index, tmp_path / "pipe.jpg", "--model", tiny_model)
    refused(told, 1, f"{tmp_path}/pipe.jpg: it is no regular file")
