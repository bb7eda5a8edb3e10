"""evaluation.json of strangers: what cannot be shown is refused by record and field."""

import json
import shutil

import pytest

from augself_hub import card, hub
from augself_hub.errors import ModelFolderError
from augself_hub.results import read_evaluation

GOOD = {"task": "kNN", "name": "STL-10", "metric": "accuracy", "value": 0.5, "protocol": "k = 20"}
BESIDE = {"value": 0.4, "difference": 0.1, "confidence_interval": [0.0, 0.2]}
WRONG = {
    "a number": (3, r"results\[0\] is no object"),
    "nothing": ({}, r"results\[0\].task is None"),
    "a task that is a list": ({**GOOD, "task": ["kNN"]}, r"results\[0\].task"),
    "a value that is a text": ({**GOOD, "value": "0.5"}, r"results\[0\].value is '0.5'"),
    "no protocol anywhere": (
        {k: v for k, v in GOOD.items() if k != "protocol"},
        r"evaluation\.json: protocol is None",
    ),
    "another model that is a list": (
        {**GOOD, "compared_with": [1]},
        r"results\[0\].compared_with is no object",
    ),
    "a difference that is a text": (
        {**GOOD, "compared_with": {"other": {**BESIDE, "difference": "much"}}},
        r"compared_with.other is 'much'",
    ),
    "an interval of one": (
        {**GOOD, "compared_with": {"other": {**BESIDE, "confidence_interval": [1]}}},
        r"compared_with.other.confidence_interval is no list of two",
    ),
    "lines of its own in a name": ({**GOOD, "name": "a\n\n# Licence"}, r"results\[0\].name"),
}


@pytest.fixture
def spoilt(tiny_model, tmp_path):
    def spoil(content):
        folder = shutil.copytree(tiny_model, tmp_path / "spoilt")
        (folder / "evaluation.json").write_text(json.dumps(content))
        return folder

    return spoil


@pytest.mark.parametrize("case", WRONG)
def test_a_record_that_cannot_be_shown_is_named(spoilt, case):
    record, message = WRONG[case]
    folder = spoilt({"results": [record]})
    with pytest.raises(ModelFolderError, match=message):
        read_evaluation(folder)
    with pytest.raises(ModelFolderError, match=message):
        card.render(folder)


@pytest.mark.parametrize("content", [[], {"results": {}}, {"results": [3]}])
def test_a_listing_of_the_cache_does_without(spoilt, content):
    """`augself list` shows what is there, whoever wrote it."""
    assert hub._listing("a/b@main", spoilt(content)).measured == ""


def test_what_can_be_shown_stays_as_it_is(spoilt):
    content = {
        "results": [{**GOOD, "compared_with": {"other": BESIDE}, "strength": [1, 2]}],
        "seed": 3,
    }
    assert read_evaluation(spoilt(content)) == content


def test_the_names_of_version_0_1_are_read_and_said(spoilt, caplog):
    old = {"trivial": 0.1, "interval": 0.02, "interval_95": [0.4, 0.6], "cut": {"auc": 0.9}}
    beside = {"other": {"value": 0.4, "difference": 0.1, "interval": [0.0, 0.2]}}
    folder = spoilt({"results": [{**GOOD, **old, "beside": beside}]})
    with caplog.at_level("INFO"):
        (record,) = read_evaluation(folder)["results"]
    new = {"baseline": 0.1, "margin_of_error": 0.02, "confidence_interval": [0.4, 0.6]}
    new |= {"calibration": {"auc": 0.9}, "compared_with": {"other": BESIDE}}
    assert record == GOOD | new
    (notice,) = caplog.messages
    assert "trivial is read as baseline" in notice and "interval_95 is read as" in notice
    assert "| STL-10 | 0.5 ± 0.02 | 0.1 | 0.4 (+0.1, +0 to +0.2) |" in card.render(folder)
