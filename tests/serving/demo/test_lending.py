"""What a visitor's picture takes is lent for as long as the picture is there, and no longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")

from handmade import saved
from PIL import Image

from augself_hub.images.budget import DECODED
from serving.demo import what_changed, your_pictures
from serving.demo.files import Files
from serving.demo.gallery import shipped
from serving.demo.sliders import neutral
from serving.inference.client import ModelClient
from serving.inference.engine import Engine
from serving.limits import Limits

SIZE = (1500, 1200)
PIXELS = SIZE[0] * SIZE[1]
PICTURE = saved(Image.new("RGB", SIZE, "teal"), "PNG")


class Watched(ModelClient):
    """Notes what is lent while views are made, and while features are waited for."""

    def __init__(self, engine: Engine) -> None:
        self.making: list[int] = []
        self.waiting: list[int] = []

        def answer(images):
            self.waiting.append(DECODED.lent)
            return engine.features(images)

        def pairs(images):
            self.waiting.append(DECODED.lent)
            return engine.predict(images)

        super().__init__(engine, Limits(), answer, pairs)

    def prepare(self, image: Image.Image) -> np.ndarray:
        self.making.append(DECODED.lent)
        return super().prepare(image)


@pytest.fixture
def model(tiny_model: Path) -> Watched:
    return Watched(Engine(tiny_model, "cpu", threads=1))


def test_a_picture_is_lent_until_its_views_are_taken(model, monkeypatch):
    values = neutral(model.spec)
    made = []
    two_views = what_changed.two_views
    monkeypatch.setattr(
        what_changed,
        "two_views",
        lambda image, *of: made.append((image.size, DECODED.lent)) or two_views(image, *of),
    )
    what_changed.pictures_and_answer(model, PICTURE, values, values)
    assert [size for size, _ in made] == [SIZE] * 2
    assert min(lent for _, lent in made) >= 3 * PIXELS
    assert model.waiting == [0] and DECODED.lent == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_however_many_are_dropped(model, tmp_path, count):
    paths = [tmp_path / f"{n}.png" for n in range(count)]
    for path in paths:
        path.write_bytes(PICTURE)
    (tmp_path / "files").mkdir()
    files = Files(tmp_path / "files", 10**9)
    shown, _, _ = your_pictures.compute({"tiny": model}, files, shipped(), "tiny", paths, "a")
    assert "problem" not in shown
    assert min(model.making[:count]) >= 3 * PIXELS
    assert set(model.waiting) == {0} and DECODED.lent == 0
