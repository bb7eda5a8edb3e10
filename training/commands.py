"""Commands of the `augself` command line that train. Torch is imported when they run."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from augself_hub.images.words import COLUMN_HELP, LAYOUTS, READ_AS_HELP
from augself_hub.options import GroupedCommand, grouped
from training.run.settings import CHOSEN, FIXED, FROZEN_DEFAULTS, GROUP_HELP, PAIRS, Settings, flag

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)
NEEDED = ("data", "output")
GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def _weights(context: click.Context, option: click.Parameter, text: str) -> dict[str, float]:
    """crop=1,color=0.5 -> {"crop": 1.0, "color": 0.5}; an empty text trains the method alone."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    _refuse_twice([kind for kind, _, _ in pairs])
    try:
        return {kind: float(weight or 1) for kind, _, weight in pairs}
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form crop=1,color=0.5") from None


def _refuse_twice(names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]} is given twice: give it once")


def _pairs(
    context: click.Context, option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """NAME=VALUE -> values of their own type."""
    values = {}
    _refuse_twice([pair.partition("=")[0] for pair in pairs])
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not of the form {option.metavar}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def _names(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    """tensorboard,wandb -> both; none -> nobody."""
    return () if text == "none" else tuple(name.strip() for name in text.split(","))


def _list_recipes(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from augself_hub.commands import table
    from training.recipes import recipes

    rows = [(recipe.command, recipe.time, recipe.result) for recipe in recipes().values()]
    click.echo(table(["command", "time", "result"], rows))
    context.exit()


GROUPS = ("Images", "Method", "Views", "Optimisation", "Run", "Publication")
_PARSED = {"augself": _weights, "report_to": _names, **dict.fromkeys(PAIRS, _pairs)}
_TYPES = {"int": int, "int | None": int, "float": float, "Path": PATH, "Path | None": PATH}
_TEXTS = {"augself": "crop=1,color=1", "report_to": "tensorboard"}  # defaults as they are typed


def _settings(command: Command, without: Collection[str] = (), **defaults: Any) -> Command:
    """An option for every field of `Settings`, in its group's place in the help.

    Args:
        without: fields that the command gives otherwise.
        defaults: of fields, where the command has others.
    """
    fields = [f for f in dataclasses.fields(Settings) if f.name not in without]
    fields.sort(key=lambda f: GROUPS.index(f.metadata["group"]))
    for one in reversed(fields):  # the last decorator's option is shown first
        rule = one.metadata["rule"]
        attributes: dict[str, Any] = {"help": one.metadata["help"], "type": _TYPES.get(one.type)}
        default = defaults.get(one.name, _TEXTS.get(one.name, one.default))
        if one.name in PAIRS:
            metavar = "FIELD=VALUE" if one.name == "arguments" else "NAME=VALUE"
            attributes |= {"multiple": True, "metavar": metavar}
        elif one.name == "column":
            attributes |= {"multiple": True, "metavar": "ROLE=NAME"}
        elif one.type == "bool":
            attributes |= {"is_flag": True}
        elif default is dataclasses.MISSING:
            attributes |= {"required": True}
        else:
            attributes |= {"default": default, "show_default": default is not None}
            if one.name in CHOSEN and one.name not in defaults:
                attributes["show_default"] = CHOSEN[one.name]
        if rule is not None and rule.choices:
            attributes["metavar"] = f"[{'|'.join(rule.choices)}]"
        if one.name in _PARSED:
            attributes["callback"] = _PARSED[one.name]
        command = grouped(one.metadata["group"])(flag(one.name), one.name, **attributes)(command)
    return command


_RESUME = grouped("Run")(
    "--resume", is_flag=True, help="Continue from the newest valid checkpoint, or begin."
)


@click.command(cls=GroupedCommand)
@_settings
@_RESUME
@grouped("Run")("--recipe", metavar="NAME", help="Settings of a named run; yours override them.")
@grouped("Run")(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_recipes,
    help="Show each recipe's command, time and result.",
)
def pretrain(recipe: str | None, resume: bool, **options: Any) -> None:
    """Pretrain an encoder with AugSelf on a folder of images; ends with a model folder."""
    from training.api import pretrain as run

    _finish(run(resume=resume, recipe=recipe, **_given(options)))


@click.command("fit-heads", cls=GroupedCommand)
@click.argument("encoder")
@lambda command: _settings(command, FIXED, **FROZEN_DEFAULTS)
@_RESUME
def fit_heads(resume: bool, **options: Any) -> None:
    """Train AugSelf heads on a frozen ENCODER (a folder or Hub id); ends with a model folder."""
    from training.api import fit_heads as run

    _finish(run(resume=resume, **_given(options)))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What the user gave: the rest is a recipe's, chosen for the images, or the default."""
    source = click.get_current_context().get_parameter_source
    return {n: value for n, value in options.items() if source(n) in GIVEN or n in NEEDED}


_ADDITION = (
    click.argument("model", type=PATH),
    click.option("--data", required=True, help="Images to fit on, as augself pretrain takes them."),
    click.option("--held-out", help="Images to measure on. Default: 5% of --data."),
    click.option("--split", help="Split to fit on; default: train, if there are several."),
    click.option("--column", multiple=True, metavar="ROLE=NAME", help=COLUMN_HELP),
    click.option("--read-as", type=click.Choice(LAYOUTS), help=READ_AS_HELP),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed."
    ),
    click.option("--group", metavar="PATTERN", help=GROUP_HELP),
)


def _addition(command: Any) -> Any:
    """The options of a command that adds something to a model folder."""
    for option in reversed(_ADDITION):
        command = option(command)
    return command


@click.command("fit-uncertainty")
@_addition
def fit_uncertainty(model: Path, data: str, **options: Any) -> None:
    """Add a standard error of each pair to what the heads of MODEL, a folder, say.

    What they predict stays as it is.
    """
    from training.api import fit_uncertainty as run

    click.echo(f"wrote {run(model, data, **options)}")


@click.command("fit-matcher")
@_addition
@click.option(
    flag("matcher_options"),
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="Hyperparameter of the fit, e.g. pairs=36000 or passes=5.",
)
def fit_matcher(model: Path, data: str, **options: Any) -> None:
    """Add a matcher to MODEL, a folder whose encoder and heads stay as they are.

    It says from feature maps where one view lies in another, and whether it is mirrored.
    """
    from training.api import fit_matcher as run

    click.echo(f"wrote {run(model, data, **options)}")


def _finish(folder: Path) -> None:
    import torch.distributed as dist

    from training.methods.layers import rank

    if rank() == 0:
        click.echo(f"wrote {folder}")
    if dist.is_initialized():  # a process that ends with its group alive may abort, and end all
        dist.destroy_process_group()
