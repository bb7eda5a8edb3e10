"""extract, the public name: the table the command writes, read."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from augself_hub import DifferenceTable, Encoder, FeatureTable, extract
from augself_hub.errors import AugSelfError, UsageError
from serving.commands import extract as command


def test_a_folder_becomes_a_table_and_again_only_is_read(tiny_model, photo_folder, tmp_path):
    table = extract(photo_folder, tmp_path / "out", model=tiny_model, device="cpu")
    assert isinstance(table, FeatureTable) and len(table) == 40
    assert table.label_names == ["even", "odd"] and table.errors == ()
    files = [photo_folder / name for name in table.ids]
    expected = Encoder(tiny_model, device="cpu").features(files)
    np.testing.assert_allclose(table.features, expected, rtol=1e-4, atol=1e-5)
    written = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    again = extract(photo_folder, tmp_path / "out", model=tiny_model, device="cpu")
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == written
    assert np.array_equal(again.features, table.features)


def test_a_list_of_paths_with_a_broken_one(tiny_model, photo_folder, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    paths = [*sorted(photo_folder.rglob("*.jpg"))[:3], broken, tmp_path / "none.jpg"]
    given = {"model": tiny_model, "device": "cpu"}
    table = extract(paths, tmp_path / "out", **given)
    assert len(table) == 3 and {Path(name).name for name, _ in table.errors} == {
        "broken.jpg", "none.jpg",
    }  # fmt: skip
    assert "2 unreadable" in repr(table)
    with pytest.raises(AugSelfError, match="2 of 5 images cannot be read, more than"):
        extract(paths, tmp_path / "out", max_errors=1, **given)
    assert len(extract(paths, tmp_path / "out", max_errors="40%", **given)) == 3


def test_pairs_become_differences(tiny_model, photographs, tmp_path, caplog):
    """Those of which an image cannot be read are named; further columns are not kept, and said."""
    a, b, *_ = photographs
    (tmp_path / "pairs.csv").write_text(f"a,b,truth\n{a},none.jpg,1\n{a},{b},2\n")
    source = tmp_path / "pairs.csv"
    with caplog.at_level("INFO"):
        table = extract(source, tmp_path / "out", model=tiny_model, device="cpu", pairs=True)
    assert "note: other columns are not read: truth" in caplog.text
    assert isinstance(table, DifferenceTable) and len(table) == 1
    assert table.unreadable == ((f"{a} -> none.jpg", "No such file or directory"),)
    assert "1 pairs, 1 unreadable" in repr(table)
    expected = Encoder(tiny_model, device="cpu").difference(*photographs[:2]).to_dict()
    brightness = expected["differences"]["color"][0]["value"]
    assert table.values["color_brightness"][0] == pytest.approx(brightness, abs=1e-4)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (3, {}, "int is no source: give a folder, or a list of paths"),
        (b"PHOTOS", {}, "bytes is no source: give a folder, or a list of paths"),
        ("", {}, "source is empty: give a path"),
        ("PHOTOS", {"shard_rows": 2.5}, "shard_rows 2.5: give a whole number of at least 1"),
        ([], {}, "the list of paths is empty"),
        ([np.zeros((4, 4, 3), np.uint8)], {}, "image 0 is no path but ndarray"),
        ("PHOTOS", {"dtype": "int8"}, "dtype 'int8': give float32 or float16"),
        ("PHOTOS", {"layout": "csv"}, "layout 'csv': give parquet or npy"),
        ("PHOTOS", {"engine": "spark"}, "engine 'spark': give local or ray"),
        ("PHOTOS", {"threads": 0}, "threads 0: give a whole number of at least 1"),
        ("PHOTOS", {"max_errors": "few"}, "write a number"),
        ("PHOTOS", {"read_as": "films"}, "unknown --read-as films"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_work(source, options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        extract(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_is_named(tmp_path, tiny_model):
    with pytest.raises(AugSelfError, match="nowhere"):
        extract(tmp_path / "nowhere", tmp_path / "out", model=tiny_model)


def test_every_option_of_the_command_is_there_by_its_name():
    names = {
        "format": "layout",
        "engine": "engine",
        "column": "columns",
        "image-root": "image_root",
    }
    parameters = inspect.signature(extract).parameters
    for option in command.params:
        flag = option.opts[0].removeprefix("--")
        if flag != "json":  # of the summary
            assert names.get(flag, flag.replace("-", "_")) in parameters


def test_a_bar_counts_the_images(tiny_model, photo_folder, tmp_path, capsys):
    extract(photo_folder, tmp_path / "out", model=tiny_model, device="cpu", progress=True)
    assert "40/40" in capsys.readouterr().err


def test_the_summary_of_the_command_is_the_same_work(augself, tiny_model, photo_folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = extract(photo_folder, tmp_path / "out", model=tiny_model, device="cpu")
    done = augself("extract", photo_folder, "--output", tmp_path / "out", "--model", tiny_model,
                   "--device", "cpu", "--json")  # fmt: skip
    assert json.loads(done.out)["rows"] == len(table) and json.loads(done.out)["computed"] == 0


@pytest.mark.parametrize(
    "given", [{"layout": "npy"}, {"dtype": "float16"}, {"normalize": True}, {"split": "train"},
              {"columns": ["image=a"]}, {"read_as": "classes"}],
)  # fmt: skip
def test_what_pairs_do_not_have_is_refused_before_anything_is_written(given, tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\na.png,b.png\n")
    with pytest.raises(UsageError, match=r"--\S+ (is for features|has no effect on --pairs)"):
        extract(tmp_path / "pairs.csv", tmp_path / "out", pairs=True, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["output", "model"])
def test_a_name_that_is_no_text_is_refused_before_any_work(what, tmp_path):
    """pyarrow and ONNX Runtime open no such file: the table was there, and the end a traceback."""
    place = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    given = {"output": tmp_path / "out", what: place}
    with pytest.raises(UsageError, match=f"{what} .* is no UTF-8 text: give another name"):
        extract(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_source_may_have_any_name(tiny_model, photo_folder, tmp_path):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.txt"))
    place.write_text("\n".join(str(p) for p in sorted(photo_folder.rglob("*.jpg"))[:2]))
    table = extract(place, tmp_path / "out", model=tiny_model, device="cpu", threads=1)
    assert len(table) == 2
