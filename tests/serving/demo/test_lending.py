"""What a visitor's picture takes is lent for as long as the picture is there, and no longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")

from handmade import saved
from PIL import Image

from augself_hub.images.budget import DECODED
from serving.demo import features, neighbours, two_photographs, two_views
from serving.demo.controls import controls, labels
from serving.demo.files import Files
from serving.demo.gallery import Gallery
from serving.demo.neighbours import COLORLESS
from serving.inference.client import Local
from serving.inference.engine import Engine
from serving.limits import Limits

SIZE = (1500, 1200)
PIXELS = SIZE[0] * SIZE[1]
PICTURE = saved(Image.new("RGB", SIZE, "teal"), "PNG")


class Watched(Local):
    """Notes what is lent while views are made, and while features are waited for."""

    def __init__(self, engine: Engine) -> None:
        self.making: list[int] = []
        self.waiting: list[int] = []

        def answer(images):
            self.waiting.append(DECODED.lent)
            return engine.features(images)

        super().__init__(engine, Limits(), answer)

    def prepare(self, image: Image.Image) -> np.ndarray:
        self.making.append(DECODED.lent)
        return super().prepare(image)


@pytest.fixture
def model(tiny_model: Path) -> Watched:
    return Watched(Engine(tiny_model, "cpu", threads=1))


def test_a_picture_is_lent_until_its_views_are_taken(model, tmp_path, monkeypatch):
    models, kinds = {"tiny": model}, labels([model.spec])
    rows = controls(model.spec)
    drawn = [row.neutral for row in rows]
    made = []
    monkeypatch.setattr(
        two_views, "outlined", lambda image, _: made.append((image.size, DECODED.lent)) or image
    )
    two_views.pair(models, Files(tmp_path, 10**9), kinds, "tiny", PICTURE, *drawn, *drawn)
    ((size, lent),) = made
    assert size == SIZE and lent >= 3 * PIXELS
    assert model.waiting == [0] and DECODED.lent == 0


def test_in_every_tab(model, tmp_path):
    models = {"tiny": model}
    two_photographs.compare(models, "tiny", PICTURE, PICTURE)
    assert len(model.making) == 2 and min(model.making) >= 3 * PIXELS
    model.making.clear()
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        path.write_bytes(PICTURE)
    features.read_files(model, paths)
    assert len(model.making) == 3 and min(model.making) >= 3 * PIXELS
    assert set(model.waiting) == {0} and DECODED.lent == 0


def test_what_is_kept_while_neighbours_are_searched_is_small(model, monkeypatch):
    tiles = [Image.new("RGB", (40, 40), color) for color in ("teal", "red", "gray")]
    gallery = Gallery(["a", "b", "c"], tiles.__getitem__, "", range(3))
    seen = []
    monkeypatch.setattr(neighbours, "mean_color", lambda picture: seen.append(picture.size) or 0.0)
    monkeypatch.setattr(neighbours, "_near", lambda *_, **__: np.arange(3))
    neighbours.search({"tiny": model}, gallery, "tiny", COLORLESS, PICTURE, 0)
    assert set(seen) == {(1024, 819), (40, 40)} and DECODED.lent == 0
