"""Settings: the views they ask for, and the command that asks for them again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from augself_hub.augmentations.difference import standardised
from augself_hub.augmentations.spec import Policy, heads_for
from augself_hub.cli import main
from augself_hub.errors import UsageError
from training import commands
from training.run.settings import Settings, command_line, policy_of


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
    arguments={"bf16": True, "optim_args": "a b"},
)


@pytest.mark.parametrize("made", [EVERYTHING, settings(), settings(report_to=("wandb", "mlflow"))])
def test_the_command_of_a_run_asks_for_the_same_run(made, monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "_run", lambda resume, options: asked.append(Settings(**options)))
    command, *arguments = shlex.split(command_line(made))
    assert command == "augself"
    main(arguments)
    assert asked == [made]
