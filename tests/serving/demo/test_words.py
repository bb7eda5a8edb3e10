"""The difference in words, as the demo shows it."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file

from augself_hub.sentences import Sentence, sentences
from serving.demo.two_photographs import PAIRS
from serving.demo.words import listed


def test_a_model_without_heads_says_so():
    assert "no AugSelf heads" in listed(sentences({}))


def test_a_pair_has_a_heading_of_its_own():
    assert "The two pictures" in listed([Sentence("pair", "These look ...", "10%", told=False)])


def ask(page: Client, a: str, b: str) -> tuple:
    files = (handle_file(a), handle_file(b))
    return page.predict("pretrained", *files, api_name="/two_photographs")


def test_the_darker_copy_is_darker(page):
    """It was made by brightness times 0.7."""
    a, b, said = ask(page, *PAIRS[0])
    assert all(f'alt="picture {name}"' in html for name, html in (("a", a), ("b", b)))
    assert "B is darker: 0.7" in said


def test_the_gray_copy_hides_saturation_and_hue(page):
    html = ask(page, *PAIRS[2])[2]
    assert html.count("the pictures cannot show it") == 2


def test_one_picture_waits_for_the_other(page):
    a, b, html = page.predict("tiny", handle_file(PAIRS[0][0]), None, api_name="/two_photographs")
    assert a and not b and "once there are two pictures" in html
