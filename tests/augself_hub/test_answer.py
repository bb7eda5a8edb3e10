"""Difference: one answer, and the ways to read it. Numbers are given by hand."""

from __future__ import annotations

from augself_hub import Difference

NUMBERS = {"unit": "log ratio", "standard_error": 0.1}
TOLD = {
    "color": [
        {"name": "brightness", "value": -0.3567, **NUMBERS},
        {"name": "contrast", "value": None, **NUMBERS, "reason": "not learned: <R^2> 0.0"},
    ],
    "flip": {"mirrored": 0.91},
    "rot": {"quarter_turns": [0.0, 0.9, 0.1, 0.0]},
}
ONE = Difference("tiny", "relative", TOLD, 0.875)
UNLIKE = {"flip": {"mirrored": None, "reason": "unlike pictures: only differences between ..."}}


def test_a_table():
    assert str(ONE).splitlines() == [
        "augmentation  name              value  unit         standard error",
        "color         brightness       -0.357  log ratio    0.100 on average",
        "color         contrast              -  log ratio    not learned: <R^2> 0.0",
        "flip          mirrored          0.910  probability",
        "rot           quarter_turns 0   0.000  probability",
        "rot           quarter_turns 1   0.900  probability",
        "rot           quarter_turns 2   0.100  probability",
        "rot           quarter_turns 3   0.000  probability",
        "both pictures show one thing: probability 0.875",
    ]
    assert repr(ONE) == str(ONE)


def test_the_matcher_s_errors_are_those_of_the_pair():
    record = {"name": "y", "value": 0.25, "unit": "heights of a", "standard_error": 0.05}
    record |= {"standard_error_of": "pair", "head": "matcher"}
    told = {"crop": [record], "flip": {"mirrored": 0.9, "head": "matcher"}}
    said = Difference("tiny", "relative", told, 0.9)
    assert [row[4] for row in said.rows()] == ["0.050", ""]
    assert "(+0.25 ± 0.05, heights of a)" in said.words()
    assert "B is mirrored (probability 90%)" in said.words()


def test_blank_pictures_in_words():
    told = {
        "crop": [{"name": "y", "value": None, "unit": "", "standard_error": 0.1, "head": "matcher",
                  "reason": "not observable: at least one of the two pictures is blank"}],
        "flip": {"mirrored": None, "head": "matcher",
                 "reason": "not observable: at least one of the two pictures is blank"},
    }  # fmt: skip
    first, second = Difference("tiny", "relative", told, 0.9).words().splitlines()
    assert first.endswith("the pictures cannot show it, at least one of them is blank")
    assert second.startswith(
        "Mirroring: the pictures cannot show it, at least one of them is blank"
    )


def test_a_dict_is_the_server_s_answer():
    assert ONE.to_dict() == {"model": "tiny", "match": 0.875, "differences": TOLD}


def test_words():
    assert ONE.words().splitlines() == [
        "B is darker: 0.7 times a's brightness (-0.36 ± 0.10 on average, log ratio)",
        "Contrast: this model has not learned it (not learned: <R^2> 0.0)",
        "B is mirrored (probability 91%)",
        "B is turned a quarter to the left (probability 90%)",
    ]


def test_unlike_pictures():
    strangers = Difference("tiny", "relative", UNLIKE, 0.02)
    assert strangers.unlike and not ONE.unlike
    assert strangers.words().startswith("These look like two different pictures")
    assert "probability of one thing 2%" in strangers.words()


def test_html_for_notebooks_is_the_same_table_with_nothing_of_it_as_markup():
    html = ONE._repr_html_()
    assert html.count("<tr") == 1 + 7 and "&lt;R^2&gt;" in html and "<R^2>" not in html
    assert "both pictures show one thing: probability 0.875" in html


def test_the_paper_s_convention_is_a_minus_b():
    told = {"blur": [{"name": "sigma", "value": 0.5, "unit": "pixels of the view",
                      "standard_error": None}]}  # fmt: skip
    assert Difference("m", "paper", told, None).words().startswith("sigma, a minus b (+0.50")
