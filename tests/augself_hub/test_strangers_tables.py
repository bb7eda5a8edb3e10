"""Feature tables of strangers: every field is what it says, nothing is fetched, nothing is run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from augself_hub import FeatureTable
from augself_hub.errors import AugSelfError
from augself_hub.features import MODEL_KEY
from augself_hub.images import open_recorded

MODEL = "0" * 64
MANIFEST = {
    "format": 1, "table": "features", "layout": "parquet", "dtype": "float32",
    "normalized": False, "shard_rows": 2048, "label_names": ["cat", "dog"],
    "model": {"name": "tiny", "sha256": MODEL, "features": 4},
    "counts": {"images": 3, "rows": 3, "errors": 0}, "source": {"location": "photos"},
}  # fmt: skip


def columns(**changes):
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(12, np.float32)), 4)
    good = {"id": ["a", "b", "c"], "label": pa.array([0, 1, None], pa.int32()),
            "split": pa.array([None] * 3, pa.string()), "features": features}  # fmt: skip
    return {**good, **changes}


def table(folder: Path, changes: dict | None = None, **changed) -> Path:
    (folder / "data").mkdir(parents=True)
    there = pa.table(columns(**changed)).replace_schema_metadata({MODEL_KEY: MODEL})
    parquet.write_table(there, folder / "data/part-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **(changes or {})}))
    (folder / "errors.jsonl").write_text("")
    return folder


def test_a_table_that_is_what_it_says_is_read(tmp_path):
    found = FeatureTable.read(table(tmp_path / "t"))
    assert found.ids == ["a", "b", "c"] and found.labels.tolist() == [0, 1, -1]
    assert found.features.shape == (3, 4)


FIELDS = {
    "model": (
        *[[], {"name": "x", "sha256": "short", "features": 4}],
        {"name": "a\x1b[2J", "sha256": MODEL, "features": 4},
        {"name": "x", "sha256": MODEL, "features": 10**12},
    ),
    "counts": [{}, {"rows": -1}, {"rows": "3"}, {"rows": True}],
    "label_names": [None, "cat", [1]],
    "normalized": ["no"],
    "dtype": ["object"],
    "layout": ["pickle"],
    "table": ["all", None],
    "source": [[], {}, {"location": 3}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values]
)
def test_a_manifest_s_field_is_named(tmp_path, field, value):
    folder = table(tmp_path / "t", {field: value})
    with pytest.raises(AugSelfError, match=rf"manifest\.json cannot be read: {field}[\w.]* is"):
        FeatureTable.read(folder)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", '{"format": NaN}'])
def test_a_manifest_that_is_none(tmp_path, text):
    folder = table(tmp_path / "t")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(AugSelfError, match=r"manifest\.json cannot be read"):
        FeatureTable.read(folder)


LISTS = pa.array([[1.0] * 4] * 3, pa.list_(pa.float32()))
COLUMNS = {
    "id": (pa.array([1, 2, 3]), "column id holds int64"),
    "label": (pa.array([0, 7, None], pa.int32()), "a label is none of the 2 names"),
    "split": (pa.array([1, 2, 3]), "column split holds int64"),
    "features": (LISTS, "column features holds list"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_what_the_manifest_says(tmp_path, name):
    column, message = COLUMNS[name]
    folder = table(tmp_path / "t", **{name: column})
    with pytest.raises(AugSelfError, match=message):
        FeatureTable.read(folder)


def test_a_part_that_unpacks_to_more_than_any(tmp_path):
    folder = table(tmp_path / "t", id=["a", "b", "c" * 300 * 2**20])
    path = folder / "data/part-00000.parquet"
    parquet.write_table(parquet.read_table(path), path, compression="zstd")
    with pytest.raises(AugSelfError, match=r"part-00000\.parquet is damaged"):
        FeatureTable.read(folder)


@pytest.mark.parametrize("kind", ["nothing", "zip", "objects", "shape", "header"])
def test_an_array_is_what_the_manifest_says(tmp_path, kind):
    folder = table(tmp_path / "t", {"layout": "npy"})
    parquet.write_table(
        parquet.read_table(folder / "data/part-00000.parquet").drop(["features"]),
        folder / "ids.parquet",
    )
    path = folder / "features.npy"
    if kind == "zip":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3))
    elif kind == "objects":
        np.save(path, np.array([{}, {}, {}], object), allow_pickle=True)
    elif kind == "shape":
        np.save(path, np.ones((3, 5), np.float32))
    elif kind == "header":
        path.write_bytes(
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'shape': (10**9, 10**9)" + b" " * 90
        )
    with pytest.raises(AugSelfError, match=r"features\.npy (is damaged|is no array)"):
        FeatureTable.read(folder)


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:9/x.tar", "org/name", "hf:org/name", "hf:org/name*", "stream:org/name",
     "ssh://host/x", "gone", "github://org:repo@/x.parquet"],
)  # fmt: skip
def test_what_a_manifest_names_elsewhere_is_not_fetched(tmp_path, location, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked somebody"))
    with pytest.raises(AugSelfError, match="which is not on this machine"):
        open_recorded({"location": location})


def test_a_manifest_cannot_let_paths_lead_out(tmp_path, photo_folder):
    """`--image-root /` is for whoever extracts to say, and not for the table."""
    photograph = next(photo_folder.rglob("*.jpg"))
    shutil.copy(photograph, tmp_path / "private.jpg")
    (tmp_path / "theirs").mkdir()
    rows = pa.table({"image": [str(tmp_path / "private.jpg")]})
    parquet.write_table(rows, tmp_path / "theirs/t.parquet")
    source = open_recorded({"location": str(tmp_path / "theirs/t.parquet"), "image_root": os.sep})
    (item,) = (item for shard in source.shards(9) for item in shard.items())
    assert "leads out of the table's folder" in str(item.problem)


@pytest.mark.parametrize("record", [{"columns": [1]}, {"columns": {"pickle": "x"}}, {"split": 3}])
def test_a_source_that_is_not_said(tmp_path, record):
    (tmp_path / "a.csv").write_text("image\na.jpg\n")
    with pytest.raises(AugSelfError, match="the manifest of the table"):
        open_recorded({"location": str(tmp_path / "a.csv"), **record})
