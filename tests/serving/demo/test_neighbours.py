"""The tab "Neighbours": the nearest by hand, galleries, and what the page shows of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from augself_hub.errors import AugSelfError, UsageError
from serving.demo import gallery as gallery_module
from serving.demo.gallery import PICKS, PICTURES, nearest, of_table, palette, shared, shipped
from serving.demo.neighbours import NOTHING, WITH, WITHOUT, _board, sides
from serving.demo.visitors import EXAMPLES
from serving.extraction.pipeline import extract
from serving.inference.client import ModelClient
from serving.inference.engine import Engine
from serving.limits import Limits


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model, "cpu", threads=1)


@pytest.fixture(scope="module")
def model(engine: Engine) -> ModelClient:
    return ModelClient(engine, Limits(), engine.features, engine.predict)


def test_the_nearest_are_those_of_the_smallest_angle_without_the_query():
    features = np.array([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    assert nearest(features[0], features, 0, 2).tolist() == [1, 2]
    assert nearest(np.array([5.0, 0.0]), features, None, 9).tolist() == [0, 1, 2, 3]


def test_the_shipped_pictures_are_many_small_bare_and_licensed():
    gallery, licences = shipped(), (PICTURES / "LICENSES.md").read_text()
    names = [path.name for path in PICTURES.glob("*.jpg")]
    assert len(names) == len(gallery.names) >= 200
    photographs = re.findall(r"^\| (\w+)\\\*\.jpg \| (\d+) \| .*CC", licences, re.MULTILINE)
    cut = [n for n in names if re.sub(r"(-\d+)*\.jpg", "", n) in dict(photographs)]
    assert len(cut) == sum(int(count) for _, count in photographs)
    assert all(name in licences for name in set(names) - set(cut))
    for path in PICTURES.glob("*.jpg"):
        image = Image.open(path)
        assert image.size == (160, 160) and not image.getexif() and path.stat().st_size < 25_000


def test_the_stored_features_are_of_the_pictures_and_name_their_models(monkeypatch, tmp_path):
    gallery = shipped()
    about = gallery.twins.about
    for name, features in (("augself", gallery.twins.augself), ("plain", gallery.twins.plain)):
        assert features.shape == (len(gallery.names), 128) and np.isfinite(features).all()
        assert re.fullmatch("[0-9a-f]{64}", about[name]["model.safetensors"])
    one, other = (about[name]["trained"]["command"] for name in ("augself", "plain"))
    assert "--augself crop" in one and "--augself ''" in other
    without = [re.sub(r"--augself \S+|(augself|plain)-seed", "", c) for c in (one, other)]
    assert without[0] == without[1]  # nothing else differs
    monkeypatch.setattr(gallery_module, "digest", lambda names: "other pictures")
    with pytest.raises(AugSelfError, match="not of the pictures beside it"):
        shipped()


def test_a_palette_is_of_hues_and_of_what_has_none():
    red, gray = (palette(Image.new("RGB", (9, 9), color)) for color in ("red", "gray"))
    assert red[0] == pytest.approx(1) and gray[-1] == pytest.approx(1)
    half = Image.new("RGB", (10, 10), "white")
    half.paste((0, 0, 255), (0, 0, 10, 5))
    assert palette(half.resize((48, 48), 0))[[7, -1]] == pytest.approx([0.8, 0.2], abs=0.03)


def test_the_share_of_colours_is_of_the_nearest_alone():
    """Two pairs: of one colour each by the first features, of different ones by the others."""
    colors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    by_color = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert shared(colors, by_color, 1).tolist() == [1, 1, 1, 1]
    assert shared(colors, by_color[[0, 2, 1, 3]], 1).tolist() == [0, 0, 0, 0]


def test_the_picks_are_those_with_the_largest_difference_and_various():
    gallery = shipped()
    assert len(set(gallery.picks)) == len(gallery.picks) == PICKS
    colors = np.stack([palette(gallery.open(n)) for n in range(len(gallery.names))])
    gaps = shared(colors, gallery.twins.augself) - shared(colors, gallery.twins.plain)
    assert gaps[gallery.picks].min() > 0 and gaps[gallery.picks].mean() > 3 * gaps.mean()


def test_features_are_computed_once_and_within_the_limits(engine):
    asked = []
    counted = ModelClient(engine, Limits(items=50), lambda x: asked.append(len(x)) or
                    engine.features(x), engine.predict)  # fmt: skip
    gallery = shipped()
    first = gallery.features(counted)
    assert gallery.features(counted) is first and max(asked) == 50
    assert sum(asked) == len(first) == len(gallery.names)


def test_a_table_s_own_features_are_searched(model, engine, photo_folder, tmp_path):
    extract(photo_folder, tmp_path / "table", engine)
    gallery = of_table(tmp_path / "table", [model])
    assert len(gallery.names) == 40 and "40 of the 40" in gallery.about
    computed = model.features([model.prepare(gallery.open(n)) for n in range(40)])
    assert gallery.features(model) == pytest.approx(computed, abs=1e-5)
    assert list(sides({"tiny": model}, gallery)) == ["tiny"]
    board = _board({"tiny": model}, gallery, "tiny", NOTHING, 3)
    assert board.count("<li>") == 8 and board.count("<section>") == 1
    assert numbers(board) == nearest(computed[3], computed, 3, 8).tolist()


def test_a_table_of_another_model_or_without_its_pictures_is_refused(
    model, engine, photo_folder, tmp_path
):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.open(EXAMPLES[0]).save(pictures / "a.jpg")
    extract(pictures, tmp_path / "table", engine)
    with pytest.raises(UsageError, match="which is not served: give it as --model"):
        of_table(tmp_path / "table", [])
    (pictures / "a.jpg").unlink()
    with pytest.raises(UsageError, match="is not there: extract again"):
        of_table(tmp_path / "table", [model])


def numbers(board: str) -> list[int]:
    """Of the neighbours shown, row by row."""
    return [int(n) for n in re.findall(r'data-index="(\d+)"', board)]


def test_the_page_shows_the_nearest_by_both_models_features(page):
    gallery = shipped()
    board = page.predict(WITH, WITHOUT, api_name="/neighbours")
    query = gallery.picks[0]
    expected = []
    for features in (gallery.twins.augself, gallery.twins.plain):
        unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1)[:, None]
        cosine = unit @ unit[query]
        cosine[query] = -2
        expected += np.argsort(-cosine, kind="stable")[:8].tolist()
    assert numbers(board) == expected
    said = [int(share) for share in re.findall(r"<b>(\d+)%</b>", board)]
    assert len(said) == 2 and said[0] > said[1]


def test_served_models_can_be_compared_too(page):
    board = page.predict("pretrained", "tiny", api_name="/neighbours")
    assert "Features of pretrained" in board and "Features of tiny" in board
    assert "trained with AugSelf (crop=1" in board and len(numbers(board)) == 16
