"""What is answered for a pair, and why a number is not: reasons from numbers given by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from augself_hub.augmentations.matching import Prediction
from augself_hub.augmentations.spec import (
    Match,
    MatchCalibration,
    MatcherSpec,
    Policy,
    Spec,
    heads_for,
)
from augself_hub.differences import Answered, describe, is_blank, is_gray, matching, records

POLICY = Policy(size=32).with_kinds(["rot"])
KINDS = ("crop", "color", "flip", "rot")
ANSWERS = {
    "crop": np.array([0.1, 0.2, -0.3, 0.4]),
    "color": np.array([-0.5, 0.1, 0.2, 0.03]),
    "flip": np.array([0.9]),
    "rot": np.array([0.7, 0.1, 0.1, 0.1]),
}


def spec(match: Match | None = None, **marks: object) -> Spec:
    """A spec whose dimensions named in `marks` have those fields."""
    heads = heads_for(KINDS, POLICY)
    marked = {
        kind: replace(
            head,
            dimensions=tuple(replace(d, **marks.get(d.name, {})) for d in head.dimensions),
        )
        for kind, head in heads.items()
    }
    return Spec("relative", POLICY, marked, features=2, match=match)


def said(of: Spec, **how: bool) -> dict:
    """Dimension -> (value, reason)."""
    found = {}
    for answer in describe(of, ANSWERS, **{"gray": False, **how}).values():
        if isinstance(answer, list):
            found |= {d["name"]: (d["value"], d.get("reason")) for d in answer}
        else:
            why = answer.pop("reason", None)
            assert answer.pop("head") == "features"
            found |= {name: (value, why) for name, value in answer.items()}
    return found


def test_what_is_known_has_a_number_and_no_reason():
    found = said(spec())
    assert found["x"] == (0.2, None) and found["mirrored"] == (0.9, None)
    assert found["quarter_turns"] == ([0.7, 0.1, 0.1, 0.1], None)
    assert all(why is None for _, why in found.values())


def test_what_is_not_learned_has_none_with_what_was_measured():
    measured = {
        "learned": False,
        "score": 0.541,
        "confidence_interval": (0.519, 0.562),
        "baseline": 0.5085,
    }
    found = said(spec(x={"learned": False}, mirrored=measured, quarter_turns=measured))
    assert found["x"] == (None, "not learned")
    text = "not learned: accuracy 0.54 (0.52 to 0.56) on held-out pairs, 0.51 without looking"
    assert found["mirrored"] == found["quarter_turns"] == (None, text)
    assert found["y"] == (0.1, None)


@pytest.mark.parametrize(
    ("largest", "error", "beyond"),
    [(0.4, None, True), (0.6, None, False), (0.6, 0.05, False), (0.6, 0.15, True)],
)
def test_an_answer_within_its_error_of_the_largest_is_beyond(largest, error, beyond):
    """Brightness is answered -0.5."""
    value, why = said(spec(brightness={"largest": largest, "standard_error": error}))["brightness"]
    assert (value is None) == beyond
    if beyond:
        assert why.startswith("beyond what was trained on: about -0") and f"{largest:g}" in why


def test_gray_hides_what_needs_colour():
    found = said(spec(), gray=True)
    assert [name for name, (value, _) in found.items() if value is None] == ["saturation", "hue"]
    assert found["hue"][1].startswith("not observable")


def test_a_picture_is_gray_where_no_pixel_has_a_colour():
    """Against NumPy's range of the channels of every pixel; also of one pixel in a corner."""
    random = np.random.default_rng(0)
    for tint in (0, 1, 2, 3, 200):
        for _ in range(20):
            gray = random.integers(0, 55, (random.integers(1, 40), 33, 1), dtype=np.uint8)
            image = gray.repeat(3, axis=2)
            row, column, channel = (random.integers(n) for n in image.shape)
            image[row, column, channel] += tint
            assert is_gray(image) == (np.ptp(image, axis=-1).max() <= 2) == (tint <= 2)


def test_of_unlike_pictures_nothing_is_told():
    found = said(spec(x={"learned": False}), unlike=True)
    assert all(value is None for value, _ in found.values())
    assert found["x"][1] == "not learned"  # whatever the pictures
    assert {why.split(":")[0] for name, (_, why) in found.items() if name != "x"} == {
        "unlike pictures"
    }


def test_matching_by_hand():
    """Cosines 1, 0 and 0.6; a probability of a half at 0.5, of 1 / (1 + e^-1) at 0.6."""
    cut = MatchCalibration(10.0, -5.0, 0.3, 0.99, 0.05, 0.9, 100)
    gray = MatchCalibration(10.0, 0.0, 0.6, 0.9, 0.05, 0.7, 100)
    a = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = np.array([[5.0, 0.0], [0.0, 3.0], [3.0, 4.0], [0.0, 1.0]])
    colours = [False] * 3 + [True]
    same, strangers, close, one_gray = matching(
        spec(Match(cut, gray)), a, b, [*colours, *[False] * 4]
    )
    assert same == (pytest.approx(1 / (1 + np.exp(-5))), False)
    assert strangers == (pytest.approx(1 / (1 + np.exp(5))), True)
    assert close == (pytest.approx(0.7310585786), False)
    assert one_gray == (pytest.approx(0.5), True)


def test_a_model_that_cannot_tell_says_nothing():
    a = np.ones((2, 2))
    assert matching(spec(), a, a, [False] * 4) == [None, None]
    alike = Match(alike=MatchCalibration(1.0, 0.0, 0.1, 0.9, 0.05, 0.9, 100))
    assert matching(spec(alike), a, a, [False, True, False, False])[1] is None
    assert matching(spec(alike), 0 * a, a, [False] * 4)[0] == (pytest.approx(0.5), False)


# -- Pairs that a matcher has looked at ------------------------------------------------------------

MATCHER = MatcherSpec(
    -1,
    {"channels": 1, "cells": 1, "turns": False},
    heads_for(["crop", "flip"], Policy()),
    MatchCalibration(2.0, 1.0, 0.4, 0.95, 0.05, 0.8, 100),
)


def picture(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "blank":
        return np.full((8, 8, 3), (200, 10, 10), np.uint8)
    return random.integers(0, 256, (8, 8, 3), np.uint8)


def answered(logits: list[float], images: list[np.ndarray], **spec_of: object) -> list[dict]:
    n = len(logits)
    of = replace(
        spec(Match(alike=MatchCalibration(1.0, 0.0, 0.1, 0.9, 0.05, 0.9, 100))), matcher=MATCHER
    )
    values = {kind: np.tile(v, (n, 1)) for kind, v in ANSWERS.items()}
    errors = {"crop": np.arange(4 * n).reshape(n, 4) / 100}
    prediction = Prediction(values, errors, np.array(logits))
    return list(records(of, Answered.of(of, images, np.ones((2 * n, 2)), prediction)))


def test_each_value_says_its_head_and_a_matched_one_its_own_error():
    one, two = answered([3.0, 3.0], [picture("noise")] * 4)
    assert [d["standard_error"] for d in one["differences"]["crop"]] == [0, 0.01, 0.02, 0.03]
    assert [d["standard_error"] for d in two["differences"]["crop"]] == [0.04, 0.05, 0.06, 0.07]
    heads = {
        kind: {d["head"] for d in told} if isinstance(told, list) else {told["head"]}
        for kind, told in one["differences"].items()
    }
    assert heads == {
        "crop": {"matcher"}, "color": {"features"}, "flip": {"matcher"}, "rot": {"features"}
    }  # fmt: skip


def test_the_matcher_s_own_logit_tells_strangers():
    """By hand: 1 / (1 + e^-(2 s + 1)) is .9975 at 2.5 and .0474 at -2; below .4 they are two."""
    same, strangers = answered([2.5, -2.0], [picture("noise")] * 4)
    assert same["match"] == pytest.approx(0.99752738) and strangers["match"] == pytest.approx(
        0.04742587
    )
    assert same["differences"]["crop"][0]["value"] == 0.1
    assert strangers["differences"]["crop"][0]["reason"].startswith("unlike pictures")
    assert strangers["differences"]["flip"] == {
        "mirrored": None, "head": "matcher",
        "reason": "unlike pictures: only differences between two views of one thing were learned",
    }  # fmt: skip


@pytest.mark.parametrize("side", [0, 1])
def test_a_blank_picture_shows_nothing(side):
    images = [picture("noise"), picture("noise")]
    images[side] = picture("blank")
    (one,) = answered([2.5], images)
    reasons = {
        record["reason"]
        for told in one["differences"].values()
        for record in (told if isinstance(told, list) else [told])
    }
    assert reasons == {"not observable: at least one of the two pictures is blank"}
    assert is_blank(images[side]) and not is_blank(images[1 - side])
