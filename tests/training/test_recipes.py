"""Recipes: every one parses, builds its model and is the run it is named after."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from augself_hub import AugSelfLoss
from augself_hub.cli import main
from augself_hub.errors import UsageError
from training import commands
from training.data.sources import Images
from training.methods import METHODS
from training.recipes import recipe, recipes
from training.run import pretraining
from training.run.settings import Settings, policy_of

NAMES = tuple(recipes())


def nothing_to_read(index):
    raise AssertionError("no image is needed")


@pytest.fixture
def asked(monkeypatch):
    """Call `augself pretrain`: the settings it would run with."""

    def call(*arguments):
        made = []
        monkeypatch.setattr(pretraining, "pretrain", lambda given, **_: made.append(given))
        monkeypatch.setattr(commands, "_finish", lambda folder: None)
        main(["pretrain", "--data=photos", "--output=run", *arguments])
        return made[0]

    return call


def test_every_method_has_a_recipe_and_a_baseline_at_every_scale():
    expected = {
        f"{scale}-{method}{baseline}"
        for scale in ("stl10", "imagenet100", "small")
        for method in METHODS
        for baseline in ("", "-baseline")
    }
    assert set(NAMES) == expected | {"embedded-augself", "embedded-baseline", "quick"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_model(name):
    """On the meta device: shapes without memory."""
    found = recipe(name)
    settings = Settings(data="x", output=Path("x"), **found.settings)
    assert settings.method in METHODS
    images = Images(["a", "b"], [0, 1], ["even", "odd"], nothing_to_read)
    small = dataclasses.replace(settings, size=32)  # the networks are the same
    with torch.device("meta"):
        model = pretraining._build(small, policy_of(small), images, AugSelfLoss, [(64, 64)])
    assert isinstance(model.method, nn.Module)
    assert dict(model.augself.weights) == settings.augself
    assert bool(model.augself.weights) != name.endswith("-baseline")
    assert found.time
    assert found.result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", ["stl10", "imagenet100", "small"])
def test_a_baseline_differs_in_augself_alone(scale, method):
    """The same views too: policies are equal."""
    with_it, without = (
        Settings(data="x", output=Path("x"), **recipe(f"{scale}-{method}{b}").settings)
        for b in ("", "-baseline")
    )
    assert dataclasses.replace(without, augself=with_it.augself) == with_it
    assert policy_of(without) == policy_of(with_it)


def test_stl10_is_what_the_paper_ran(asked):
    """SCIENCE, section 3."""
    run = asked("--recipe", "stl10-simsiam")
    assert (run.method, run.encoder, run.convention, run.size) == (
        "simsiam", "resnet18", "paper", 96,
    )  # fmt: skip
    assert (run.epochs, run.batch_size, run.base_lr, run.weight_decay) == (200, 256, 0.03, 5e-4)
    assert (run.augself, run.normalization) == ({"crop": 1.0, "color": 1.0}, "stl10")


def test_imagenet100_is_what_the_paper_ran(asked):
    run = asked("--recipe", "imagenet100-simsiam")
    assert (run.encoder, run.convention, run.size) == ("resnet50", "paper", 224)
    assert (run.epochs, run.batch_size, run.base_lr, run.weight_decay) == (500, 256, 0.05, 1e-4)
    assert run.augself == {"crop": 0.5, "color": 0.5}
    assert run.method_options == {"layers": 3}
    assert run.normalization == "imagenet"
    assert asked("--recipe", "imagenet100-moco").base_lr == 0.03
    classes = run.classes.read_text().split()
    assert len(set(classes)) == 100
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes)


def test_what_is_given_overrides_a_recipe(asked):
    run = asked(
        *("--recipe", "small-moco", "--epochs", "1", "--augself", "", "--policy", "rot=0"),
        *("--method-option", "queue=64", "--set", "bf16=True", "--size", "96"),
    )
    assert (run.epochs, run.augself) == (1, {})
    assert run.size == 96  # given, though it is the command's default
    assert run.policy == {"sol": 0.5, "rot": 0}
    assert run.method_options == {"queue": 64, "momentum": 0.99}
    assert run.arguments == {"bf16": True}
    assert run.encoder == "resnet18-w24"


def test_they_are_listed_with_their_commands(capsys):
    main(["pretrain", "--list-recipes"])
    listed = capsys.readouterr().out
    for name in NAMES:
        assert f"augself pretrain --recipe {name} --data " in listed
    assert "not measured by us" in listed


def test_an_unknown_recipe_is_refused(asked, capsys):
    with pytest.raises(UsageError, match="unknown recipe 'large': see augself pretrain --list"):
        recipe("large")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("stl10", "imagenet100"))])
def test_the_paper_s_recipes_do_as_the_official_runs(name):
    """The rows of docs/training.md that can be chosen."""
    given = recipe(name).settings
    settings = Settings(data="x", output=Path("y"), **given)
    policy = policy_of(settings)
    assert (policy.saturate, policy.order) == ("hsv", "batch")
    assert (settings.schedule_by, settings.convention) == ("epoch", "paper")
    official = {
        "moco": {"projector_norm": True},
        "swav": {"scale": 1.0, "frozen_steps": 410},
    }.get(settings.method, {})
    assert official.items() <= settings.method_options.items()
