"""The sets we build ourselves: the same every time, and labelled as drawn."""

from __future__ import annotations

import colorsys
import re
from collections import Counter

import numpy as np
import pytest

from augself_hub.errors import AugSelfError
from research.generated import HUES, SHAPES, digits, main, sprite, sprites
from training.evaluation.datasets import open_dataset


def test_sprites_are_the_same_every_time(tmp_path):
    digest = sprites(tmp_path / "one", 48)
    assert sprites(tmp_path / "two", 48) == digest
    assert sprites(tmp_path / "three", 48, seed=1) != digest
    with pytest.raises(AugSelfError, match="exists: choose another"):
        sprites(tmp_path / "one", 48)


def test_sprites_come_under_both_labels_with_boxes(tmp_path):
    sprites(tmp_path / "s", 48)
    for kind, names in (("shape", SHAPES), ("color", HUES)):
        images = open_dataset(f"folder:{tmp_path / 's' / kind}", None)
        assert Counter(images.classes) == dict.fromkeys(names, 48 // len(names))
        assert images.boxes.shape == (48, 4)


def test_the_command_refuses_in_one_line(tmp_path):
    for words, line in (
        (["sprites", str(tmp_path)], f"error: {tmp_path} exists: choose another folder or"),
        (["circles", str(tmp_path / "new")], "usage: python -m research.generated sprites|"),
    ):
        with pytest.raises(SystemExit, match=f"^{re.escape(line)}"):
            main(words)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sprite_is_where_and_what_its_labels_say(shape):
    """Vivid pixels have the colour's hue, lie in the box and reach its sides nearly."""
    for number, color in enumerate(HUES):
        pixels, (left, top, width, height) = sprite(shape, color, (0, number))
        hsv = np.array([colorsys.rgb_to_hsv(*p) for p in pixels.reshape(-1, 3) / 255])
        vivid = (hsv[:, 1] > 0.6).reshape(96, 96)
        rows, columns = np.nonzero(vivid)
        assert rows.min() >= top - 1 and rows.max() <= top + height
        assert columns.min() >= left - 1 and columns.max() <= left + width
        assert rows.max() - rows.min() > 0.7 * height
        away = hsv[vivid.ravel(), 0] * 360 - (0, 30, 120, 185, 230, 300)[number]
        assert abs((np.median(away) + 180) % 360 - 180) <= 12


def test_digits_are_tinted_and_the_same_every_time(tmp_path):
    digest = digits(tmp_path / "digits")
    assert digest == "2a7817221dc95c5ce22373308233b27acde0a7bb2391cb7a4df6206ca03127d7"
    images = open_dataset(f"folder:{tmp_path / 'digits'}", None)
    assert len(images) == 1797 and set(images.classes) == set("0123456789")
