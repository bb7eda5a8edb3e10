"""Settings: the views they ask for, and the command that asks for them again."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import typing
from pathlib import Path

import numpy as np
import pytest

from augself_hub.augmentations.difference import standardised
from augself_hub.augmentations.spec import Policy, heads_for
from augself_hub.cli import main
from augself_hub.errors import UsageError
from training import api, commands
from training.run import pretraining
from training.run.rules import Rule
from training.run.settings import CHOSEN, FIXED, Options, Settings, command_line, policy_of


def settings(**given):
    return Settings(data="photos", output=Path("run"), **given)


def test_strong_and_weak_color_by_hand():
    strong, weak = (policy_of(settings(color_strength=s)) for s in (2, 0.5))
    assert (strong.brightness, strong.contrast, strong.saturation) == (0.8, 0.8, 0.8)
    assert (strong.hue, strong.gray, strong.color) == (0.2, 0.4, 0.8)
    assert strong.factors("brightness") == (pytest.approx(0.2), 1.8)
    assert (weak.brightness, weak.hue, weak.gray) == (0.2, 0.05, 0.1)
    assert policy_of(settings()) == Policy(size=96)


def test_stronger_color_is_standardised_by_its_own_deviation():
    """Uniform hue shifts: the deviation is proportional to the range."""
    hue = []
    for strength in (1, 2):
        policy = policy_of(settings(color_strength=strength))
        heads = standardised(heads_for(["color"], policy), policy, "relative")
        hue.append(heads["color"].dimensions[3].std)
    assert hue[1] == pytest.approx(2 * hue[0], rel=0.02)


def test_the_policy_s_fields_are_options():
    policy = policy_of(settings(policy={"scale": (0.08, 1), "blur": 0, "sigma": [0.1, 1]}, size=32))
    assert policy == Policy(size=32, scale=(0.08, 1.0), blur=0.0, sigma=(0.1, 1.0))


def test_what_is_to_be_learned_is_switched_on_unless_it_was_switched_off():
    assert policy_of(settings(augself={"sol": 1})).sol == 0.5
    assert policy_of(settings(augself={"sol": 1}, policy={"sol": 0.2})).sol == 0.2
    off = policy_of(settings(augself={"sol": 1}, policy={"sol": 0}))
    with pytest.raises(UsageError, match="'sol' is never applied"):
        heads_for(["sol"], off)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"policy": {"cutout": 1}}, "the policy has no 'cutout': use blur, brightness"),
        ({"policy": {"size": 3}}, "the policy has no 'size'"),
        ({"policy": {"blur": 2}}, "blur of the views would be 2.0: give 0 to 1"),
        ({"policy": {"scale": 0.2}}, "policy scale=0.2 is not of the form scale=LOW,HIGH"),
        ({"policy": {"scale": (1, 0.2)}}, r"scale of the views would be \(1.0, 0.2\)"),
        ({"policy": {"gray": "much"}}, "policy gray='much' is not of the form gray=one number"),
        ({"color_strength": 6}, "give 0 to .* by --policy or --color-strength"),
        ({"color_strength": -1}, "of the views would be -"),
    ],
)
def test_views_that_cannot_be_drawn_are_refused_by_name(given, said):
    with pytest.raises(UsageError, match=said):
        policy_of(settings(**given))


EVERYTHING = Settings(
    data="photos",
    output=Path("run"),
    method="moco",
    method_options={"queue": 128, "temperature": 0.3},
    augself={"crop": 0.5, "sol": 2.0},
    convention="paper",
    size=64,
    color_strength=2.0,
    policy={"scale": (0.08, 1), "blur": 0},
    normalization="stl10",
    max_skipped=0.25,
    monitor_every=2.0,
    report_to=(),
    push_to_hub="me/mine",
    private=True,
    arguments={"bf16": True, "run_name": "a b"},
    base_lr=0.0123456789,
    optimizer="lars",
    schedule="constant",
    warmup_epochs=2.5,
    epochs=10.0,
)
HEADS = settings(method="frozen", encoder="org/encoder", size=96, epochs=200.0, weight_decay=0.0)


@pytest.mark.parametrize(
    "made", [EVERYTHING, HEADS, settings(), settings(report_to=("wandb", "mlflow"))]
)
def test_the_command_of_a_run_asks_for_the_same_run(made, monkeypatch):
    asked = []

    monkeypatch.setattr(pretraining, "pretrain", lambda asked_for, **_: asked.append(asked_for))
    monkeypatch.setattr(commands, "_finish", lambda folder: None)
    command, *arguments = shlex.split(command_line(made))
    assert command == "augself"
    main(arguments)
    assert asked == [made]


def test_every_field_can_be_given_by_name():
    fields = {field.name for field in dataclasses.fields(Settings)} - {"data", "output"}
    assert set(typing.get_type_hints(Options)) == fields
    hints = typing.get_type_hints(Settings)
    for name in fields:  # what may be chosen may be None: then it is
        wanted = hints[name] | None if name in CHOSEN else hints[name]
        assert typing.get_type_hints(Options)[name] == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"augself": {"crop": "1"}}, "the weight of crop is 1: give a number above 0"),
        ({"augself": ["crop"]}, "--augself .*: give kinds with their weights, e.g. crop=1"),
        ({"arguments": [("bf16", True)]}, "--set .*: give names with their values"),
        ({"report_to": "wandb"}, "--report-to wandb: give several names, or none"),
        ({"batch_size": 8.5}, "--batch-size 8.5: give a whole number of 1 or more"),
        ({"epochs": True}, "--epochs True: give a number above 0"),
        ({"held_out": 3}, "--held-out 3: give a text"),
        ({"method": "frozen", "augself": {}}, "--augself names no head to fit"),
    ],
)
def test_a_program_is_told_the_same(given, said):
    with pytest.raises(UsageError, match=said):
        settings(**given)


def test_paths_and_numbers_of_other_libraries_are_taken_as_what_they_are():
    made = Settings(data=Path("photos"), output="run", batch_size=np.int64(8), epochs=2)
    assert made == settings(batch_size=8, epochs=2.0)
    assert (type(made.batch_size), type(made.epochs)) == (int, float)


def test_a_recipe_fills_in_what_was_not_given(monkeypatch):
    """Values that happen to be the defaults count as given, too."""
    asked = []
    monkeypatch.setattr(pretraining, "pretrain", lambda made, **_: asked.append(made))
    monkeypatch.setattr(commands, "_finish", lambda folder: None)
    main(["pretrain", "--data=d", "--output=o", "--recipe=small-moco", "--size=96"])
    api.pretrain("d", "o", recipe="small-moco", size=96)
    assert asked[0] == asked[1]
    assert (asked[0].method, asked[0].size) == ("moco", 96)
    assert asked[0].epochs != Settings("d", Path("o")).epochs


@pytest.mark.parametrize("function", [api.pretrain, api.fit_heads])
def test_help_shows_every_setting_with_its_default(function):
    shown = inspect.signature(function).parameters
    fixed = FIXED if function is api.fit_heads else ()
    names = {f.name for f in dataclasses.fields(Settings)} - {*fixed}
    assert names <= {*shown}
    assert shown["size"].default == (224 if function is api.fit_heads else None)
    assert "        size: Side of the views in pixels. (a whole number of 8 or more)" in (
        function.__doc__
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: api.pretrain("d", "o", epoch=3), "there is no setting 'epoch'"),
        (lambda: api.pretrain("d", "o", epochs=-3), "--epochs -3: give a number above 0"),
        (lambda: api.pretrain("d", "o", method="frozen"), "is what augself fit-heads ENCODER"),
        (lambda: api.fit_heads("e", "d", "o", convention="paper"), "--convention would have no"),
        (lambda: api.pretrain("d", "o", recipe="large"), "unknown recipe 'large'"),
    ],
)
def test_python_gets_the_errors_of_the_command_line(call, said):
    with pytest.raises(UsageError, match=said):
        call()


def test_a_range_is_said_in_whole_numbers():
    """It said "from 0 to 4.29497e+09"."""
    assert str(Rule(int, 0, 2**32 - 1)) == "a whole number from 0 to 4294967295"
    assert str(Rule(float, 0, 0.25)) == "a number from 0 to 0.25"
