"""Extraction: every image has one row or one error, in one order, under one model."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from datasets import load_dataset
from handmade import DAMAGED_PALETTES
from pyarrow import parquet

from augself_hub import FeatureTable
from augself_hub.errors import AugSelfError
from augself_hub.folder import read_manifest as model_manifest
from augself_hub.images import Inventory, open_source
from serving.extraction.api import limit_of
from serving.extraction.pipeline import TableSettings, extract, extract_with
from serving.inference.engine import Engine, load


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return load(str(tiny_model), "cpu", 1)


@pytest.fixture
def source(tmp_path, pixels, encoded) -> Path:
    """Ten images: four of class a, four of class b, two without; and what is no image."""
    folder = tmp_path / "source"
    for number, place in enumerate(["a", "b"] * 4 + ["."] * 2):
        path = folder / place / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(number)))
    (folder / "notes.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    (folder / ".cache/hidden.png").write_bytes(encoded(pixels(99)))
    return folder


def test_every_row_is_its_image_s(source, tmp_path, engine, pixels, expected):
    counts = extract(source, tmp_path / "out", engine, shard_rows=3).counts
    table = FeatureTable.read(tmp_path / "out")
    numbers = [int(Path(name).stem) for name in table.ids]
    assert (counts.images, counts.rows, counts.errors) == (10, 10, 0)
    assert table.ids == sorted(table.ids) and sorted(numbers) == list(range(10))
    assert table.label_names == ["a", "b"] and table.model == engine.sha256
    assert table.labels.tolist() == [-1 if n > 7 else n % 2 for n in numbers]
    wanted = np.stack([expected(pixels(n)) for n in numbers])
    np.testing.assert_allclose(table.features, wanted, rtol=1e-4, atol=1e-5)


def test_the_parts_are_parquet_with_a_fixed_width(source, tmp_path, engine):
    extract(source, tmp_path / "out", engine, shard_rows=4)
    visible = (p for p in (tmp_path / "out").rglob("[!.]*") if p.is_file())
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in visible) == [
        "data/part-00000.parquet",
        "data/part-00001.parquet",
        "data/part-00002.parquet",
        "errors.jsonl",
        "manifest.json",
    ]
    schema = parquet.read_schema(tmp_path / "out/data/part-00000.parquet")
    assert schema.names == ["id", "label", "split", "features"]
    assert schema.field("features").type.list_size == engine.spec.features
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["sha256"] == engine.sha256
    assert manifest["provider"] == "CPUExecutionProvider"
    assert manifest["preprocessing"]["size"] == 32


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_others_read_the_table(source, tmp_path, engine, dtype):
    """pandas, polars, duckdb and datasets see the rows that FeatureTable sees."""
    extract(source, tmp_path / "out", engine, TableSettings(dtype), shard_rows=4)
    table, data = FeatureTable.read(tmp_path / "out"), str(tmp_path / "out/data")
    frame = pandas.read_parquet(data)
    lazy = polars.read_parquet(f"{data}/*.parquet")
    rows = duckdb.sql(f"select id, label, features from '{data}/*.parquet' order by id").fetchall()
    hugging = load_dataset(data, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features.dtype == dtype
    for ids, features in (
        (frame["id"].tolist(), np.stack(frame["features"].tolist())),
        (lazy["id"].to_list(), lazy["features"].to_numpy()),
        ([row[0] for row in rows], np.array([row[2] for row in rows])),
        (hugging["id"], np.array(hugging["features"])),
    ):
        assert list(ids) == table.ids
        np.testing.assert_array_equal(np.asarray(features, dtype), table.features)


def test_a_table_is_not_gone_on_with_under_other_names_of_classes(photographs, tmp_path, engine):
    """The rows' numbers would stay and mean something else."""
    source = tmp_path / "x.csv"
    for names in (("cat", "dog"), ("cow", "dog")):
        lines = [f"{path},{name}" for path, name in zip(photographs, names, strict=False)]
        source.write_text("\n".join(["path,label", *lines]))
        if names[0] == "cat":
            extract(source, tmp_path / "out", engine)
            continue
        with pytest.raises(AugSelfError, match=r"the classes \(cat then, cow now\)"):
            extract(source, tmp_path / "out", engine)


def test_float16_and_normalised(source, tmp_path, engine):
    plain, short, unit = (tmp_path / name for name in ("plain", "short", "unit"))
    extract(source, plain, engine)
    extract(source, short, engine, TableSettings(dtype="float16"))
    extract(source, unit, engine, TableSettings(normalize=True))
    wanted = FeatureTable.read(plain).features
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_array_equal(FeatureTable.read(short).features, wanted.astype(np.float16))
    np.testing.assert_allclose(FeatureTable.read(unit).features, wanted / lengths, rtol=1e-5)
    assert FeatureTable.read(unit).normalized and not FeatureTable.read(plain).normalized


def test_what_float16_cannot_hold_is_refused(source, tmp_path, engine, monkeypatch):
    large = np.full((10, engine.spec.features), 1e5, np.float32)
    monkeypatch.setattr(engine, "features", lambda images: large[: len(images)])
    with pytest.raises(AugSelfError, match="not all finite numbers in float16"):
        extract(source, tmp_path / "out", engine, TableSettings(dtype="float16"))


def test_an_npy_holds_the_same_table(source, tmp_path, engine):
    extract(source, tmp_path / "parts", engine, shard_rows=4)
    extract(source, tmp_path / "npy", engine, layout="npy", shard_rows=4)
    parts, npy = FeatureTable.read(tmp_path / "parts"), FeatureTable.read(tmp_path / "npy")
    visible = {path.name for path in (tmp_path / "npy").glob("[!.]*")}
    assert visible == {"errors.jsonl", "features.npy", "ids.parquet", "manifest.json"}
    assert npy.ids == parts.ids and npy.labels.tolist() == parts.labels.tolist()
    np.testing.assert_array_equal(np.load(tmp_path / "npy/features.npy"), parts.features)
    np.testing.assert_array_equal(npy.features, parts.features)


def test_features_are_those_of_the_stock_pipeline(photo_folder, tmp_path, engine, tiny_model):
    """AutoModel with AutoImageProcessor on the same files: cosine at least 0.9999."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    extract(photo_folder, tmp_path / "out", engine)
    table = FeatureTable.read(tmp_path / "out")
    model, processor = (cls.from_pretrained(tiny_model) for cls in (AutoModel, AutoImageProcessor))
    images = [Image.open(photo_folder / name).convert("RGB") for name in table.ids]
    with torch.no_grad():
        answer = model.eval()(**processor(images, return_tensors="pt"))
    wanted = answer.pooler_output.flatten(1).numpy()
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(table.features, axis=1)
    assert ((wanted * table.features).sum(1) / norms).min() >= 0.9999


def test_the_size_of_parts_changes_nothing_else(source, tmp_path, engine):
    for name, rows in (("one", 100), ("many", 1)):
        extract(source, tmp_path / name, engine, shard_rows=rows)
    one, many = (FeatureTable.read(tmp_path / name) for name in ("one", "many"))
    assert one.ids == many.ids
    np.testing.assert_allclose(one.features, many.features, rtol=1e-4, atol=1e-5)


def test_shards_smaller_than_a_batch_keep_every_core_at_work(source, tmp_path, engine, monkeypatch):
    """Three batches of three shards meet in the model, or nothing is computed."""
    meeting, features = threading.Barrier(3, timeout=20), engine.features

    def together(images):
        meeting.wait()
        return features(images)

    monkeypatch.setattr(engine, "features", together)
    paths = sorted(source.glob("[ab]/*.png"))[:6]
    extract(paths, tmp_path / "out", engine, shard_rows=1, workers=3)
    assert FeatureTable.read(tmp_path / "out").ids == [str(path) for path in paths]
    assert len(list((tmp_path / "out/data").iterdir())) == 6


def test_the_shards_before_one_that_cannot_be_had_are_kept(source, tmp_path, engine):
    """It is read ahead, and its error waits for its turn."""

    class Unreachable:
        name, digest, images = "far away", "0", None

        def items(self, left_out=None):
            raise AugSelfError("far away cannot be reached; try again to go on")

    class Mixed:
        location, classes = "here and far away", []
        inventory = Inventory("here and far away", "list")

        def shards(self, rows):
            return [*open_source(source).shards(4), Unreachable()]

    with pytest.raises(AugSelfError, match="cannot be reached"):
        extract(Mixed(), tmp_path / "out", engine, shard_rows=4)
    kept = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert kept == [f"part-0000{number}.parquet" for number in range(3)]


def test_bad_files_are_named_and_counted(source, tmp_path, engine):
    (source / "a/bad.jpg").write_bytes(b"\xff\xd8\xff truncated")
    (source / "b/empty.png").write_bytes(b"")
    (source / "gone.png").symlink_to(source / "nowhere.png")
    counts = extract(source, tmp_path / "out", engine, shard_rows=4).counts
    assert (counts.images, counts.rows, counts.errors) == (13, 10, 3)
    lines = (tmp_path / "out/errors.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    assert [error["id"] for error in errors] == ["a/bad.jpg", "b/empty.png", "gone.png"]
    assert all(error["reason"] and str(source) not in error["reason"] for error in errors)
    assert len(FeatureTable.read(tmp_path / "out").ids) == 10


def test_a_damaged_palette_is_an_error_and_no_end(source, tmp_path, engine):
    for number, data in enumerate(DAMAGED_PALETTES.values()):
        (source / f"b/palette-{number}.png").write_bytes(data)
    counts = extract(source, tmp_path / "out", engine, shard_rows=4).counts
    assert (counts.images, counts.rows, counts.errors) == (14, 10, 4)
    lines = (tmp_path / "out/errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"b/palette-{n}.png" for n in range(4)]
    assert all("palette" in json.loads(line)["reason"] for line in lines)


def test_a_folder_of_something_else_is_left_alone(source, tmp_path, engine):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(AugSelfError, match="exists and is no extraction"):
        extract(source, tmp_path / "out", engine)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


def test_tables_of_two_models_are_not_mixed(source, tmp_path, engine, monkeypatch):
    extract(source, tmp_path / "one", engine)
    monkeypatch.setattr(engine, "sha256", "f" * 64)
    extract(source, tmp_path / "two", engine)
    with pytest.raises(AugSelfError, match="cannot be mixed"):
        FeatureTable.concatenate([FeatureTable.read(tmp_path / n) for n in ("one", "two")])
    shutil.copy(tmp_path / "two/data/part-00000.parquet", tmp_path / "one/data/part-00001.parquet")
    with pytest.raises(AugSelfError, match="mixed"):
        FeatureTable.read(tmp_path / "one")


def test_splits_are_taken_apart_and_together(source, tmp_path, engine):
    (tmp_path / "whole/train").parent.mkdir()
    shutil.copytree(source, tmp_path / "whole/train", ignore=shutil.ignore_patterns("[89].png"))
    shutil.copytree(source / "a", tmp_path / "whole/test/a")
    extract(tmp_path / "whole", tmp_path / "out", engine)
    table = FeatureTable.read(tmp_path / "out")
    train, test = table.split("train"), table.split("test")
    assert (len(train.ids), len(test.ids), table.label_names) == (8, 4, ["a", "b"])
    assert set(test.labels.tolist()) == {0}
    together = FeatureTable.concatenate([test, train])
    assert together.ids == table.ids and together.splits == ["test"] * 4 + ["train"] * 8
    np.testing.assert_array_equal(together.features, table.features)
    with pytest.raises(AugSelfError, match=r"there are \['test', 'train'\]"):
        table.split("val")


def test_a_missing_part_is_noticed(source, tmp_path, engine):
    extract(source, tmp_path / "out", engine, shard_rows=4)
    (tmp_path / "out/data/part-00001.parquet").unlink()
    with pytest.raises(AugSelfError, match="has 6 rows, its manifest 10"):
        FeatureTable.read(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is damaged: extract again"),
        (lambda path: parquet.write_table(pa.table({"id": ["x"]}), path), "comes from model none"),
    ],
    ids=["cut", "foreign"],
)
def test_a_part_that_is_none_is_noticed(source, tmp_path, engine, spoil, told):
    extract(source, tmp_path / "out", engine, shard_rows=4)
    spoil(tmp_path / "out/data/part-00001.parquet")
    with pytest.raises(AugSelfError, match=f"part-00001.parquet {told}"):
        FeatureTable.read(tmp_path / "out")


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        *[("1", 0), ("0", 1), ("10%", 0), ("0.05", 1), ("5%", 1), ("many", 2), ("-1", 2)],
        *[("5e-2", 1), ("2.5", 2), ("101%", 2), ("1e3", 2)],
    ],
)
def test_max_errors_decides_the_exit_status(source, tmp_path, augself, allowed, status):
    (source / "a/bad.jpg").write_bytes(b"\xff\xd8\xff truncated")
    command = ("extract", source, "--output", tmp_path / "out", "--max-errors", allowed)
    done = augself(*command)
    assert done.status == status
    assert ("1 of 11 images cannot be read" in done.err) is (status == 1)
    if status < 2:
        assert len(FeatureTable.read(tmp_path / "out").ids) == 10


@pytest.mark.parametrize(
    ("allowed", "most"), [(0.00005, 50), ("5e-5", 50), (1e-2, 10_000), (1.0, 10**6), (50, 50)]
)
def test_small_shares_are_no_numbers_of_images(allowed, most):
    assert limit_of(allowed)(10**6) == pytest.approx(most)


def test_a_model_in_another_s_place_is_loaded(tiny_model, other_tiny_model, source, tmp_path):
    """An evaluation that trains a model again gets features of the new one."""
    folder, tables, wanted = tmp_path / "model", [], []
    for model in (tiny_model, other_tiny_model):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model, folder)
        extract_with(str(folder), "cpu", source, tmp_path / model.name)
        tables.append(FeatureTable.read(tmp_path / model.name).model)
        wanted.append(model_manifest(model)["files"]["onnx/features.onnx"])
    assert tables == wanted and wanted[0] != wanted[1]


def test_the_summary_as_json(source, tmp_path, augself):
    command = ("extract", source, "--output", tmp_path / "out", "--json", "--shard-rows", 4)
    summary, again = (json.loads(augself(*command).out) for _ in range(2))
    assert (summary["images"], summary["rows"], summary["errors"]) == (10, 10, 0)
    assert (summary["computed"], again["computed"]) == (10, 0)
    assert summary["images_per_second"] > 0 and again["rows"] == 10


def test_progress_is_told_in_lines_where_there_is_no_terminal(caplog, monkeypatch):
    from serving.extraction import progress

    monkeypatch.setattr(progress, "SECONDS", 0)
    with caplog.at_level("INFO", "serving"), progress.Progress(100) as told:
        told.keep(20, 1)
        told.add(30, 1)
    assert caplog.messages[0].startswith("50 of 100 images, ")
    assert "images/s, 00:0" in caplog.messages[0] and caplog.messages[0].endswith(", 2 errors")


def test_features_need_no_torch(source, tmp_path):
    """Nor does a Hugging Face dataset, though datasets knows torch."""
    import subprocess
    import sys

    code = (
        "import sys; from augself_hub.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    from datasets import Dataset

    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(source.glob("*/*.png"))]
    Dataset.from_dict({"image": images}).save_to_disk(str(tmp_path / "saved"))
    command = [sys.executable, "-c", code, "extract", tmp_path / "saved", "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
