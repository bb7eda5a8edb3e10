"""Extraction: every image has one row or one error, in one order, under one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.features import FeatureTable
from serving.engine import Engine, load
from serving.extract import extract


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return load(str(tiny_model), "cpu")


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
    counts = extract(source, tmp_path / "out", engine, shard_rows=3)
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
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "errors.jsonl",
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    schema = parquet.read_schema(tmp_path / "out/part-00000.parquet")
    assert schema.names == ["id", "label", "features"]
    assert schema.field("features").type.list_size == engine.spec.features
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["sha256"] == engine.sha256
    assert manifest["provider"] == "CPUExecutionProvider"
    assert manifest["preprocessing"]["size"] == 32


def test_the_size_of_parts_changes_nothing_else(source, tmp_path, engine):
    for name, rows in (("one", 100), ("many", 1)):
        extract(source, tmp_path / name, engine, shard_rows=rows)
    one, many = (FeatureTable.read(tmp_path / name) for name in ("one", "many"))
    assert one.ids == many.ids
    np.testing.assert_allclose(one.features, many.features, rtol=1e-4, atol=1e-5)


def test_bad_files_are_named_and_counted(source, tmp_path, engine):
    (source / "a/bad.jpg").write_bytes(b"\xff\xd8\xff truncated")
    (source / "b/empty.png").write_bytes(b"")
    (source / "gone.png").symlink_to(source / "nowhere.png")
    counts = extract(source, tmp_path / "out", engine, shard_rows=4)
    assert (counts.images, counts.rows, counts.errors) == (13, 10, 3)
    lines = (tmp_path / "out/errors.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    assert [error["id"] for error in errors] == ["a/bad.jpg", "b/empty.png", "gone.png"]
    assert all(error["reason"] and str(source) not in error["reason"] for error in errors)
    assert len(FeatureTable.read(tmp_path / "out").ids) == 10


def test_an_existing_destination_is_left_alone(source, tmp_path, engine):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(AugSelfError, match="exists"):
        extract(source, tmp_path / "out", engine)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


def test_no_image_and_no_readable_image(tmp_path, engine):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(AugSelfError, match="holds no image"):
        extract(empty, tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()
    (empty / "x.jpg").write_bytes(b"x")
    with pytest.raises(AugSelfError, match="none of the 1 images"):
        extract(empty, tmp_path / "out", engine)
    with pytest.raises(AugSelfError, match="not a finished extraction"):
        FeatureTable.read(tmp_path / "out")


def test_features_of_two_models_are_not_mixed(source, tmp_path, engine, tiny_model, monkeypatch):
    extract(source, tmp_path / "one", engine)
    monkeypatch.setattr(engine, "sha256", "f" * 64)
    extract(source, tmp_path / "two", engine)
    shutil.copy(tmp_path / "two/part-00000.parquet", tmp_path / "one/part-00001.parquet")
    with pytest.raises(AugSelfError, match="mixed"):
        FeatureTable.read(tmp_path / "one")


def test_a_missing_part_is_noticed(source, tmp_path, engine):
    extract(source, tmp_path / "out", engine, shard_rows=4)
    (tmp_path / "out/part-00001.parquet").unlink()
    with pytest.raises(AugSelfError, match="has 6 rows, its manifest 10"):
        FeatureTable.read(tmp_path / "out")
