"""The difference in words: every sentence from a number given by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.differences import describe
from augself_hub.sentences import headline, sentences, unanswered

POLICY = Policy(size=32).with_kinds(("rot", "sol"))


def spec_of(*kinds: str, error: float = 0.1, convention: str = "relative") -> Spec:
    heads = heads_for(kinds, POLICY, convention)
    measured = {
        kind: replace(
            head, dimensions=tuple(replace(d, standard_error=error) for d in head.dimensions)
        )
        for kind, head in heads.items()
    }
    return Spec(convention, POLICY, measured, features=8)


def said(kind: str, *values: float, gray: bool = False, **of: object) -> list[str]:
    spec = spec_of(kind, **of)
    told = describe(spec, {kind: np.array(values)}, gray)
    return [s.text for s in sentences(told, convention=spec.convention)]


def test_places_and_sizes_are_said_as_parts_of_a():
    assert said("crop", -0.21, 0.32, np.log(0.5), np.log(1.6)) == [
        "B is framed higher, by about a fifth of a's height",
        "B is framed further right, by about a third of a's width",
        "B shows less from top to bottom: 0.5 times what a shows",
        "B shows more from side to side: 1.6 times what a shows",
    ]


def test_colours_are_said_as_factors_and_degrees():
    assert said("color", np.log(1.4), -0.3, 0.5, -0.125) == [
        "B is brighter: 1.4 times a's brightness",
        "B has less contrast: 0.74 times a's",
        "B is more colourful: 1.6 times a's saturation",
        "B's hues are turned by 45 degrees, from red towards violet",
    ]


def test_what_is_within_the_error_is_no_difference():
    assert said("color", 0.05, -0.3, 0.09, 0.0) == [
        "No clear difference in brightness",
        "B has less contrast: 0.74 times a's",
        "No clear difference in saturation",
        "No clear difference in hue",
    ]


def test_what_gray_pictures_cannot_show_is_said_without_a_number():
    found = sentences(describe(spec_of("color"), {"color": np.full(4, 0.5)}, gray=True))
    assert [s.text for s in found[2:]] == [
        f"{name}: the pictures cannot show it, at least one of them is gray"
        for name in ("Saturation", "Hue")
    ]
    assert [(s.number, s.known) for s in found[2:]] == [("", False)] * 2


def test_a_head_no_better_than_guessing_says_so():
    """The spec's standard deviation is 1 here, so is guessing's error."""
    assert said("blur", 3.0, error=0.97) == ["Sharpness: this model has not learned it"]
    assert said("blur", 3.0, error=0.5) == ["B is more blurred, by 3.0 pixels"]


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.9, "B is mirrored"),
        (0.1, "B is not mirrored"),
        (0.5, "The model cannot tell whether b is mirrored"),
    ],
)
def test_yes_no_and_cannot_tell(probability, text):
    assert said("flip", probability) == [text]


@pytest.mark.parametrize(
    ("probabilities", "text"),
    [
        ((0.9, 0.1, 0, 0), "B is not turned"),
        ((0, 0.9, 0, 0.1), "B is turned a quarter to the left"),
        ((0, 0, 0.8, 0.2), "B is upside down"),
        ((0, 0, 0.1, 0.9), "B is turned a quarter to the right"),
        ((0.4, 0.6, 0, 0), "The model cannot tell how b is turned"),
    ],
)
def test_turns_have_names(probabilities, text):
    assert said("rot", *probabilities) == [text]


def test_convention_paper_counts_turns_from_b_to_a():
    """Its class 1: a is turned once more to the left than b is."""
    assert said("rot", 0, 0.9, 0, 0.1, convention="paper") == ["B is turned a quarter to the right"]
    assert said("rot", 0.9, 0, 0, 0.1, convention="paper") == ["B is not turned"]


def test_solarization_is_a_share_of_the_range():
    assert said("sol", -0.4) == ["Less of b is inverted, by 40% of the range"]


def marked(spec: Spec, **fields: object) -> Spec:
    heads = {
        kind: replace(head, dimensions=tuple(replace(d, **fields) for d in head.dimensions))
        for kind, head in spec.heads.items()
    }
    return replace(spec, heads=heads)


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("crop", (0, 1, 0, 0), "Where b is framed sideways: this model has not learned it"),
        ("flip", (0.9,), "Mirroring: this model has not learned it"),
        ("rot", (0.9, 0, 0, 0.1), "Rotation: this model has not learned it"),
    ],
)
def test_what_was_not_learned_has_what_was_measured_instead_of_a_number(kind, values, text):
    spec = marked(
        spec_of(kind), learned=False, score=0.54, confidence_interval=(0.52, 0.56), baseline=0.51
    )
    told = describe(spec, {kind: np.array(values)}, gray=False)
    found = {s.text: s for s in sentences(told)}
    assert "0.54 (0.52 to 0.56) on held-out pairs, 0.51" in found[text].number
    assert not found[text].known


def test_an_answer_beyond_training_has_no_amount():
    spec = marked(spec_of("blur"), largest=1.9)
    (found,) = sentences(describe(spec, {"blur": np.array([1.85])}, gray=False))
    assert found.text == "Sharpness: the answer lies beyond what was trained on"
    assert found.number == "about +1.9 or more, the largest difference in training"


def test_of_unlike_pictures_nothing_else_is_said():
    told = describe(spec_of("crop"), {"crop": np.zeros(4)}, gray=False, unlike=True)
    (found,) = sentences(told, match=0.1)
    assert found.text.startswith("These look like two different pictures")
    assert found.number == "probability of one thing 10%"


def test_a_mark_decides_and_not_the_error():
    learned = marked(spec_of("blur", error=0.97), learned=True)
    (found,) = sentences(describe(learned, {"blur": np.array([3.0])}, gray=False))
    assert found.text == "B is more blurred, by 3.0 pixels"


def test_the_paper_s_convention_keeps_its_own_terms():
    assert said("color", 0.2, 0, 0, 0, convention="paper")[0] == "brightness, a minus b"
    assert said("flip", 0.9, convention="paper") == ["Neither or both are mirrored"]


def line(gray: bool = False, error: float = 0.1, **values: tuple[float, ...]) -> str:
    kinds = [kind for kind in ("crop", "flip", "color", "blur", "rot", "sol") if kind in values]
    spec = spec_of(*kinds, error=error)
    return headline(describe(spec, {k: np.array(v) for k, v in values.items()}, gray))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"color": (np.log(1.3), 0, 0, 0)}, "b is 1.3 times brighter"),
        ({"color": (np.log(0.7), 0, 0, 0)}, "b is darker (0.7 times as bright)"),
        ({"color": (0, 0.3, -0.3, 0)}, "b has more contrast, is less colourful"),
        ({"color": (0, 0, 0, -0.125)}, "b has its reds turned towards violet by 45 degrees"),
        ({"crop": (0, -0.3, -0.5, -0.5)}, "b shows the left part"),
        ({"crop": (-0.2, 0.2, -0.5, -0.5)}, "b shows the upper right part"),
        ({"crop": (0.05, 0.05, -0.5, -0.5)}, "b shows the middle part"),
        ({"crop": (0.3, 0, 0.5, 0.5)}, "b shows more around it, mostly down"),
        ({"crop": (0, 0, 0.5, 0.5)}, "b shows more around it"),
        ({"crop": (0, 0.3, 0.0, 0.0)}, "b is moved to the right"),
        ({"crop": (0, 0, 0, 0)}, "b shows no clear difference from a"),
        ({"flip": (0.9,)}, "b is mirrored"),
        ({"flip": (0.6,)}, "b shows no clear difference from a"),
        ({"rot": (0, 0, 0.9, 0.1)}, "b is upside down"),
        ({"rot": (0.9, 0, 0, 0.1)}, "b shows no clear difference from a"),
        ({"blur": (-1.0,)}, "b is sharper"),
        (
            {"color": (np.log(1.3), 0, 0, 0), "crop": (0, -0.3, -0.5, -0.5), "flip": (0.9,)},
            "b is 1.3 times brighter, shows the left part, is mirrored",
        ),
    ],
)
def test_the_headline_says_what_is_clear_in_a_few_words(values, text):
    assert line(**values) == text


def test_the_headline_leaves_out_what_is_within_the_error_or_not_told():
    color = (np.log(1.3), 0.3, 0.5, 0.1)
    assert line(color=color, gray=True) == "b is 1.3 times brighter, has more contrast"
    assert line(color=(0.2, 0.2, 0, 0), error=0.25) == "b shows no clear difference from a"


def test_what_cannot_be_told_is_one_line():
    spec = marked(spec_of("color", "flip", "rot"), learned=True)
    flip = {"flip": replace(spec.heads["flip"], dimensions=marked_flip(spec))}
    spec = replace(spec, heads={**spec.heads, **flip})
    values = {"color": np.zeros(4), "flip": np.array([0.9]), "rot": np.array([0.4, 0.6, 0, 0])}
    said = unanswered(describe(spec, values, gray=True))
    assert said == (
        "It cannot tell saturation and hue (a picture is gray); mirroring (not learned); "
        "rotation (unsure)."
    )
    assert unanswered(describe(spec_of("color"), {"color": np.zeros(4)}, gray=False)) == ""


def test_a_blank_picture_is_not_called_gray():
    spec = marked(spec_of("flip"), learned=True)
    said = unanswered(describe(spec, {"flip": np.array([0.9])}, gray=True, blank=True))
    assert said == "It cannot tell mirroring (a picture is blank)."


def marked_flip(spec: Spec) -> tuple:
    return tuple(replace(d, learned=False) for d in spec.heads["flip"].dimensions)
