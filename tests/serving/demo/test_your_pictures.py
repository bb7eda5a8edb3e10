"""The tab "Your pictures": the map by hand, the table as extraction's, the lines of code run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.features import MODEL_KEY
from serving.demo.map import drawn, principal
from serving.demo.visitors import EXAMPLES
from serving.demo.your_pictures import PAIRS, code, read_files
from serving.extraction.pipeline import extract
from serving.inference.client import ModelClient
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
    html = drawn(
        np.zeros((1, 2)), 1.0, ["<b>.jpg"], ["data:image/jpeg;base64,"], [np.array([], int)]
    )
    assert "<b>.jpg" not in html and "&lt;b&gt;.jpg" in html


def test_the_map_says_of_each_picture_where_it_is_and_what_is_nearest():
    points = np.array([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    near = [np.array([2, 1]), np.array([2, 0]), np.array([0, 1])]
    html = drawn(points, 0.5, ["a", "b", "c"], ["data:,a", "data:,b", "data:,c"], near)
    assert re.findall(r'data-x="(\S+)" data-y="(\S+)" data-near="(.*?)"', html) == [
        ("-1.0000", "-1.0000", "2 1"),
        ("1.0000", "1.0000", "2 0"),
        ("0.0000", "-0.0000", "0 1"),
    ]
    assert 'transform="translate(600.0 280.0)"' in html  # the middle of 1200 x 560
    aside = html[html.index("<aside") :]
    assert re.findall(r'<li><img src="(.*?)"', aside) == ["data:,c", "data:,b"]


def ask(page: Client, *paths: str | Path, model: str = "tiny") -> tuple:
    files = [handle_file(str(p)) for p in paths]
    return page.predict(model, files, api_name="/your_pictures")


def test_the_table_is_the_one_extraction_writes(page, tiny_model, tmp_path):
    shown, table, _ = ask(page, *EXAMPLES[:3])
    assert "3 pictures;" in shown and shown.count("<image") == 3
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
    shown, table, _ = ask(page, tmp_path / "notes.txt", EXAMPLES[0])
    assert "<code>notes.txt</code> was left out: the data is not an image" in shown
    assert parquet.read_metadata(table).num_rows == 1
    shown, table, lines = ask(page, tmp_path / "notes.txt")
    assert 'class="problem"' in shown and "otes.txt: the data is not an image" in shown
    assert table is None and not lines


def test_two_pictures_are_compared(page):
    """The copy was made by brightness times 0.7."""
    shown, _, _ = ask(page, *PAIRS[0], model="pretrained")
    assert "The model says: b is darker (0.7 times as bright)." in shown
    assert shown.count("in the gallery</h3>") == 2


def test_a_gray_copy_hides_saturation_and_hue(page):
    shown, _, _ = ask(page, *PAIRS[2], model="pretrained")
    assert "saturation and hue (a picture is gray)" in shown


def test_two_different_pictures_are_not_compared(page):
    shown, _, _ = ask(page, EXAMPLES[0], EXAMPLES[5], model="pretrained")
    assert "These look like two different pictures." in shown and "brighter" not in shown


def test_one_picture_has_its_nearest_of_the_gallery(page):
    """The example is cut from the same photograph as a picture of the gallery."""
    shown, _, _ = ask(page, EXAMPLES[0], model="pretrained")
    near = re.findall(r'<li><img [^>]*alt="(.*?)"', shown)
    assert len(near) == 8 and near[0] == "fig"


def test_more_files_than_one_request_may_have_are_refused():
    model = ModelClient(SimpleNamespace(), Limits(items=2), None, None)
    with pytest.raises(AugSelfError, match="3 files are more than the 2 one request may have"):
        read_files(model, [Path(EXAMPLES[0])] * 3)


def test_the_lines_of_code_do_the_same(page, tmp_path, monkeypatch, capsys):
    for path in (EXAMPLES[0], *PAIRS[0]):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    for paths in ((EXAMPLES[0],), PAIRS[0]):
        _, table, text = ask(page, *paths, model="pretrained")
        lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        assert len(lines.split("\n\n")[1].strip().splitlines()) + 1 == 3
        names: dict = {}
        exec(lines, names)
        stored = np.stack(parquet.read_table(table)["features"].to_pylist())
        if "features" in names:
            assert names["features"] == pytest.approx(stored, abs=1e-5)
    assert "brightness" in capsys.readouterr().out


def test_hostile_names_do_not_end_the_line_of_code():
    model = SimpleNamespace(folder=Path("tiny"), name="tiny")
    lines = code(["a`b.jpg"], model)
    assert lines.count("`") == code(["ab.jpg"], model).count("`") and "Encoder('tiny')" in lines


def test_the_model_s_names_are_served(app):
    served = httpx.get(f"{app.url}/v1/models").json()["data"]
    assert [model["id"] for model in served] == ["pretrained", "tiny"]
