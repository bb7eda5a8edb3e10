"""The table, and augself/config.json read back."""

import json

import pytest

from augself_hub.augmentations.spec import (
    HEADS,
    KINDS,
    Dimension,
    Head,
    MatchCalibration,
    Policy,
    Spec,
    heads_for,
)
from augself_hub.errors import ModelFolderError, UsageError


@pytest.fixture
def spec():
    policy = Policy(size=96, sigma=(0.5, 1.5), rot=0.25)
    heads = heads_for(("color", "flip", "rot"), policy)
    provenance = {"trained_by": "tests", "data": ["a", "b"], "epochs": 3}
    return Spec("relative", policy, heads, features=512, hidden=64, provenance=provenance)


def changed(spec, *path, **fields):
    """The spec's JSON with fields set in the object that `path` leads to; ... removes one."""
    data = json.loads(spec.to_json())
    record = data
    for step in path:
        record = record[step]
    record.update(fields)
    for name in [name for name, value in fields.items() if value is ...]:
        del record[name]
    return json.dumps(data)


def test_a_spec_survives_being_written_and_read(spec):
    assert Spec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["format"] == 2


@pytest.mark.parametrize("convention", HEADS)
def test_every_head_of_the_table_survives_too(convention):
    policy = Policy().with_kinds(KINDS)
    spec = Spec(convention, policy, heads_for(KINDS, policy, convention), features=8)
    assert Spec.from_json(spec.to_json()) == spec


def test_measured_numbers_survive(spec):
    head = Head("regression", (Dimension("sigma", "pixels", std=0.73, standard_error=0.1),))
    spec = Spec("relative", spec.policy, {"blur": head}, features=8)
    assert Spec.from_json(spec.to_json()).heads["blur"].dimensions[0].standard_error == 0.1


def test_the_names_that_fields_had_between_the_releases_are_read_and_said(spec, caplog):
    match = {"slope": 2.0, "intercept": 1.0, "auc": 0.9, "pairs": 100}
    old = match | {"least": 0.3, "false_alarms": 0.05, "found": 0.8}
    data = json.loads(changed(spec, match={"alike": old, "one_gray": None}))
    dimension = data["heads"]["flip"]["dimensions"][0]
    del dimension["confidence_interval"]
    dimension["interval"] = [0.8, 0.9]
    with caplog.at_level("INFO"):
        read = Spec.from_json(json.dumps(data))
    assert read.heads["flip"].dimensions[0].confidence_interval == (0.8, 0.9)
    assert read.match.alike == MatchCalibration(2.0, 1.0, 0.3, 0.9, 0.05, 0.8, 100)
    (notice,) = caplog.messages
    assert "interval is read as confidence_interval, least is read as threshold" in notice


@pytest.mark.parametrize(
    "path", [(), ("policy",), ("heads", "flip"), ("heads", "color", "dimensions", 2)]
)
def test_an_unknown_field_is_refused_by_name(spec, path):
    with pytest.raises(ModelFolderError, match=r"unknown field 'shiny'.*upgrade"):
        Spec.from_json(changed(spec, *path, shiny=1))


@pytest.mark.parametrize("number", [3, 0, "1", None, True, [1]])
def test_another_format_is_refused(spec, number):
    with pytest.raises(ModelFolderError, match="not of format 1 or 2: upgrade"):
        Spec.from_json(changed(spec, format=number))


def written_by_0_1(convention, provenance):
    """augself/config.json as version 0.1 wrote it: no mark, and paper's x antisymmetric."""
    policy = Policy()
    spec = Spec(convention, policy, heads_for(("crop", "flip"), policy, convention), 8)
    data = {**json.loads(spec.to_json()), "format": 1, "provenance": provenance}
    for head in data["heads"].values():
        for dimension in head["dimensions"]:
            del dimension["learned"]
    if convention == "paper":
        data["heads"]["crop"]["dimensions"][1]["antisymmetric"] = True
    return json.dumps(data)


def test_a_checkpoint_that_0_1_converted_is_no_longer_averaged_in_x():
    text = written_by_0_1("paper", {"converted_from": "official AugSelf checkpoint"})
    crop = Spec.from_json(text).heads["crop"]
    assert [d.antisymmetric for d in crop.dimensions] == [True, False, True, True]
    assert [d.learned for d in crop.dimensions] == [None] * 4


def test_a_paper_run_of_0_1_learned_another_x_and_says_so():
    crop = Spec.from_json(written_by_0_1("paper", {"method": "simsiam"})).heads["crop"]
    assert [d.learned for d in crop.dimensions] == [None, False, None, None]


def test_a_relative_folder_of_0_1_is_read_as_it_is():
    policy = Policy()
    spec = Spec.from_json(written_by_0_1("relative", {"method": "simsiam"}))
    assert spec.heads == heads_for(("crop", "flip"), policy)
    assert json.loads(spec.to_json())["format"] == 2


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), "heads"),
        ((), "policy"),
        ((), "features"),
        (("heads", "flip"), "dimensions"),
        (("heads", "color"), "type"),
        (("heads", "color", "dimensions", 0), "unit"),
    ],
)
def test_a_missing_field_is_refused_by_name(spec, path, field):
    with pytest.raises(ModelFolderError, match=field):
        Spec.from_json(changed(spec, *path, **{field: ...}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "3", '{"format": 1}', "\x00"])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(ModelFolderError, match=r"augself/config\.json"):
        Spec.from_json(text)


def test_an_unknown_convention_in_a_folder_is_refused(spec):
    with pytest.raises(ModelFolderError, match="unknown convention 'absolute'"):
        Spec.from_json(changed(spec, convention="absolute"))


def test_an_unknown_head_in_a_folder_is_refused(spec):
    head = json.loads(spec.to_json())["heads"]["flip"]
    with pytest.raises(ModelFolderError, match="unknown head 'warp'"):
        Spec.from_json(changed(spec, "heads", warp=head))
    with pytest.raises(ModelFolderError, match="unknown head 'flip'"):
        Spec.from_json(changed(spec, "heads", "flip", type="ordinal"))


def test_unknown_kinds_and_conventions_are_refused_by_name():
    with pytest.raises(UsageError, match=r"unknown augmentation 'colour'.*crop, color"):
        heads_for(["colour"], Policy())
    with pytest.raises(UsageError, match=r"unknown convention 'absolute'.*relative, paper"):
        heads_for(["color"], Policy(), "absolute")


@pytest.mark.parametrize("kind", ["sol", "rot", "flip", "color", "blur"])
def test_a_kind_that_is_never_applied_is_refused(kind):
    policy = Policy(flip=0.0, color=0.0, blur=0.0)
    with pytest.raises(UsageError, match=f"'{kind}' is never applied"):
        heads_for([kind], policy)


def test_asking_for_solarize_and_rotation_switches_them_on_and_nothing_else():
    policy = Policy(rot=0.1).with_kinds(("crop", "sol", "rot"))
    assert policy == Policy(sol=0.5, rot=0.1)
    assert Policy().with_kinds(("crop", "color")) == Policy()
    assert list(heads_for(("rot", "sol"), policy)) == ["rot", "sol"]  # in the table's order


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("crop", 4), ("color", 4), ("flip", 1), ("blur", 1), ("rot", 4), ("sol", 1)],
)
def test_widths_of_the_heads(kind, outputs):
    assert [HEADS[convention][kind].outputs for convention in HEADS] == [outputs, outputs]


def test_rotation_takes_the_antisymmetry_of_the_crops_sizes():
    still = heads_for(["crop"], Policy())["crop"]
    turned = heads_for(["crop"], Policy(rot=0.5))["crop"]
    assert [d.antisymmetric for d in still.dimensions] == [False, False, True, True]
    assert [d.antisymmetric for d in turned.dimensions] == [False] * 4


@pytest.mark.parametrize(("size", "kernel"), [(96, 9), (224, 23), (32, 3), (16, 3), (100, 11)])
def test_the_blur_kernel_is_the_papers(size, kernel):
    assert Policy(size=size).blur_kernel == kernel
