"""The tab "Neighbours": the nearest by hand, galleries, and what the page shows of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import handle_file

from augself_hub.errors import UsageError
from serving.demo.gallery import features_of, nearest, of_examples, of_table
from serving.demo.neighbours import COLORLESS, mean_color, search
from serving.demo.visitors import EXAMPLES
from serving.extraction.pipeline import extract
from serving.inference.client import Local
from serving.inference.engine import Engine
from serving.limits import Limits


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model, "cpu", threads=1)


@pytest.fixture(scope="module")
def model(engine: Engine) -> Local:
    return Local(engine, Limits(), engine.features, engine.differences)


def test_the_nearest_are_those_of_the_smallest_angle_without_the_query():
    features = np.array([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    assert nearest(features[0], features, 0, 2).tolist() == [1, 2]
    assert nearest(np.array([5.0, 0.0]), features, None, 9).tolist() == [0, 1, 2, 3]


def test_every_tile_is_there_in_three_colourings_that_differ_in_hue_alone():
    gallery = of_examples()
    assert gallery.names[:3] == [
        "fig 1",
        "fig 1, hue turned a third",
        "fig 1, hue turned two thirds",
    ]
    plain, turned = (np.asarray(gallery.open(n), int) for n in (0, 1))
    assert np.abs(plain.max(axis=2) - turned.max(axis=2)).max() <= 1
    assert np.abs(plain - np.roll(turned, -1, axis=2)).max() <= 1  # red has become green
    photographs = [gallery.names[number].split()[0] for number in gallery.picks]
    assert photographs == [Path(path).stem for path in EXAMPLES for _ in range(2)]


def test_features_are_computed_once_and_within_the_limits(engine):
    asked = []
    counted = Local(engine, Limits(items=50), lambda x: asked.append(len(x)) or
                    engine.features(x), engine.differences)  # fmt: skip
    gallery = of_examples()
    first = gallery.features(counted, colorless=False)
    assert gallery.features(counted, colorless=False) is first and max(asked) == 50
    assert sum(asked) == len(first) == len(gallery.names)


def test_without_colour_a_picture_and_its_gray_copy_are_one(model):
    picture = Image.open(EXAMPLES[0])
    gray = picture.convert("L").convert("RGB")
    plain, colorless = (features_of(model, iter([picture, gray]), c) for c in (False, True))
    assert (colorless[0] == colorless[1]).all() and (plain[0] != plain[1]).any()
    assert (colorless[1] == plain[1]).all()


def test_a_table_s_own_features_are_searched(model, engine, photo_folder, tmp_path):
    extract(photo_folder, tmp_path / "table", engine)
    gallery = of_table(tmp_path / "table", [model])
    assert len(gallery.names) == 40 and "40 of the 40" in gallery.about
    computed = features_of(model, (gallery.open(n) for n in range(40)), colorless=False)
    assert gallery.features(model, colorless=False) == pytest.approx(computed, abs=1e-5)
    _, left, right = search({"tiny": model}, gallery, "tiny", COLORLESS, None, 3)
    assert left.count("<li>") == right.count("<li>") == 8
    assert gallery.names[3] not in left


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


def away(html: str) -> int:
    return int(re.search(r"<b>(\d+)</b> of 255", html)[1])


def test_neighbours_with_colour_are_closer_in_colour_than_those_without(page):
    """By the embedded model on an example; the untrained one is named as the other when asked."""
    photograph = handle_file(EXAMPLES[0])
    asked = {"api_name": "/neighbours"}
    _, with_color, without = page.predict("pretrained", COLORLESS, photograph, **asked)
    assert away(with_color) < away(without)
    assert "a stand-in" in without and "a stand-in" not in with_color
    _, _, other = page.predict("pretrained", "tiny", photograph, **asked)
    assert "<h4>tiny</h4>" in other and "Trained without AugSelf" in other


def test_the_mean_colour_is_the_mean_of_each_channel():
    assert mean_color(Image.new("RGB", (20, 10), (10, 20, 30))).tolist() == [10, 20, 30]
