"""The tab "Features": the map by hand, the table as extraction's, and the lines of code run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.features import MODEL_KEY
from serving.demo.features import Read as ReadFiles
from serving.demo.features import code, group, read_files, summary
from serving.demo.map import drawn, principal
from serving.demo.visitors import EXAMPLES
from serving.extraction.pipeline import extract
from serving.inference.client import Local
from serving.inference.engine import Engine
from serving.limits import Limits


def test_the_map_keeps_the_two_directions_of_most_variance():
    """Points of a plane, turned into five dimensions, come back up to scale."""
    random = np.random.default_rng(0)
    plane = random.normal(size=(20, 2)) * (5.0, 1.0)
    turned, _ = np.linalg.qr(random.normal(size=(5, 5)))
    points, share = principal(plane @ turned[:2] + 7.0)
    centred = plane - plane.mean(axis=0)
    correlation = np.corrcoef(points[:, 0], np.linalg.svd(centred)[2][0] @ centred.T)[0, 1]
    assert abs(correlation) == pytest.approx(1) and share == pytest.approx(1)
    assert np.abs(points).max(axis=0) == pytest.approx([1, 1])


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pictures_make_a_map_too(count):
    points, share = principal(np.eye(4)[:count])
    assert points.shape == (count, 2) and np.isfinite(points).all() and share == pytest.approx(1)


def test_foreign_names_stay_text():
    html = drawn(np.zeros((1, 2)), ["<b>.jpg"], ["<i>"], ["data:image/jpeg;base64,"])
    assert "<b>" not in html and "&lt;b&gt;.jpg" in html and "&lt;i&gt;" in html
    read = ReadFiles(["a.jpg"], [], [], [{"id": "`x`", "reason": "the image is empty"}])
    assert "- `'x'` was left out: the image is empty" in summary(read, 0.5)


@pytest.mark.parametrize(
    ("name", "word"), [("dogs-02.jpg", "dogs"), ("IMG_1.JPG", "img"), ("001.png", "001.png")]
)
def test_names_are_grouped_by_their_first_word(name, word):
    assert group(name) == word


def test_more_than_eight_groups_share_the_last_colour():
    names = [f"{letter}.jpg" for letter in "abcdefghij"]
    html = drawn(np.zeros((10, 2)), names, names, ["data:,"] * 10)
    assert html.count("<li>") == 9 and "others" in html


def ask(page: Client, *paths: str | Path) -> tuple:
    return page.predict("tiny", [handle_file(str(p)) for p in paths], api_name="/features")


def test_the_table_is_the_one_extraction_writes(page, tiny_model, tmp_path):
    told, svg, table, _ = ask(page, *EXAMPLES[:3])
    assert told.startswith("3 pictures.") and svg.count("<image") == 3
    (tmp_path / "photos").mkdir()
    for path in EXAMPLES[:3]:
        shutil.copy(path, tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "out", Engine(tiny_model, "cpu", threads=1))
    ours = parquet.read_table(table).sort_by("id")
    theirs = parquet.read_table(tmp_path / "out/data/part-00000.parquet")
    assert ours.schema.equals(theirs.schema) and ours["id"] == theirs["id"]
    assert ours.schema.metadata[MODEL_KEY] == theirs.schema.metadata[MODEL_KEY]
    features = [np.stack(t["features"].to_pylist()) for t in (ours, theirs)]
    assert features[0] == pytest.approx(features[1], abs=1e-5)


def test_what_is_no_picture_is_named_and_the_others_are_answered(page, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    told, _, table, _ = ask(page, tmp_path / "notes.txt", EXAMPLES[0])
    assert "`notes.txt` was left out: the data is not an image" in told
    assert parquet.read_metadata(table).num_rows == 1
    with pytest.raises(AppError, match=r"notes\.txt: the data is not an image"):
        ask(page, tmp_path / "notes.txt")


def test_more_files_than_one_request_may_have_are_refused():
    model = Local(SimpleNamespace(), Limits(items=2), None, None)
    with pytest.raises(AugSelfError, match="3 files are more than the 2 one request may have"):
        read_files(model, [Path(EXAMPLES[0])] * 3)


def test_the_lines_of_code_do_the_same(page, app, tmp_path, monkeypatch):
    for path in EXAMPLES[:2]:
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    _, _, table, lines = ask(page, *EXAMPLES[:2])
    shell, python = (re.search(rf"```{kind}\n(.*?)```", lines, re.DOTALL)[1] for kind in
                     ("sh", "python"))  # fmt: skip
    assert app.url in shell
    names: dict = {}
    exec(python, names)
    stored = np.stack(parquet.read_table(table)["features"].to_pylist())
    assert np.array(names["features"]) == pytest.approx(stored, abs=1e-5)
    if shutil.which("curl"):
        done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
        assert '"index":1' in done.stdout.replace(" ", "")


def test_hostile_names_do_not_end_the_line_of_code():
    lines = code(["a`b.jpg"], "tiny", "http://127.0.0.1")
    assert lines.count("`") == code(["ab.jpg"], "tiny", "http://127.0.0.1").count("`")


def test_the_model_s_names_are_served(app):
    served = httpx.get(f"{app.url}/v1/models").json()["data"]
    assert [model["id"] for model in served] == ["pretrained", "tiny"]
