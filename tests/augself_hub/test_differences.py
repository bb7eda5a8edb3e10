"""What is answered for a pair, and why a number is not: reasons from numbers given by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from augself_hub.augmentations.spec import Cut, Match, Policy, Spec, heads_for
from augself_hub.differences import describe, matching

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
            found |= {name: (value, why) for name, value in answer.items()}
    return found


def test_what_is_known_has_a_number_and_no_reason():
    found = said(spec())
    assert found["x"] == (0.2, None) and found["mirrored"] == (0.9, None)
    assert found["quarter_turns"] == ([0.7, 0.1, 0.1, 0.1], None)
    assert all(why is None for _, why in found.values())


def test_what_is_not_learned_has_none_with_what_was_measured():
    measured = {"learned": False, "score": 0.541, "interval": (0.519, 0.562), "baseline": 0.5085}
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


def test_of_unlike_pictures_nothing_is_told():
    found = said(spec(x={"learned": False}), unlike=True)
    assert all(value is None for value, _ in found.values())
    assert found["x"][1] == "not learned"  # whatever the pictures
    assert {why.split(":")[0] for name, (_, why) in found.items() if name != "x"} == {
        "unlike pictures"
    }


def test_matching_by_hand():
    """Cosines 1, 0 and 0.6; a probability of a half at 0.5, of 1 / (1 + e^-1) at 0.6."""
    cut = Cut(10.0, -5.0, 0.3, 0.99, 0.05, 0.9, 100)
    gray = Cut(10.0, 0.0, 0.6, 0.9, 0.05, 0.7, 100)
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
    alike = Match(alike=Cut(1.0, 0.0, 0.1, 0.9, 0.05, 0.9, 100))
    assert matching(spec(alike), a, a, [False, True, False, False])[1] is None
    assert matching(spec(alike), 0 * a, a, [False] * 4)[0] == (pytest.approx(0.5), False)
