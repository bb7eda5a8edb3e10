"""Commands of the `augself` command line that train. Torch is imported when they run."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from augself_hub.options import GroupedCommand, Option, grouped
from training.run.settings import FROZEN, NORMALIZATIONS, PAIRS, Settings

_IMAGES, _METHOD, _VIEWS, _OPTIMISATION, _RUN, _PUBLICATION = (
    grouped(heading)
    for heading in ("Images", "Method", "Views", "Optimisation", "Run", "Publication")
)


def _weights(context: click.Context, option: click.Parameter, text: str) -> dict[str, float]:
    """crop=1,color=0.5 -> {"crop": 1.0, "color": 0.5}; an empty text trains the method alone."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    try:
        return {kind: float(weight or 1) for kind, _, weight in pairs}
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form crop=1,color=0.5") from None


def _pairs(
    context: click.Context, option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """NAME=VALUE -> values of their own type."""
    values = {}
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
    return () if text == "none" else tuple(text.split(","))


def _list_recipes(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from augself_hub.commands import table
    from training.recipes import recipes

    rows = [(recipe.command, recipe.time, recipe.result) for recipe in recipes().values()]
    click.echo(table(["command", "time", "result"], rows))
    context.exit()


def _all(*options: Option) -> Option:
    """One decorator of several; help shows the options in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_DATA = _IMAGES(
    "--data",
    required=True,
    help="Folder of images, or stl10:DIR, cifar10:DIR, cifar100:DIR, imagenet:DIR, hf:NAME, "
    "wds:TARS; read in order: stream:hf:NAME, stream:wds:URLS.",
)
_READING = _all(
    _IMAGES("--held-out", help="Images for the evaluation; default: 5% of --data."),
    _IMAGES(
        "--epoch-images", type=click.IntRange(1), help="How many images make an epoch of a stream."
    ),
    _IMAGES(
        "--max-skipped",
        type=click.FloatRange(0, 1),
        default=0.1,
        show_default=True,
        help="Share of the images that may be unreadable.",
    ),
    _IMAGES("--workers", default=2, show_default=True, help="Decoding processes."),
)
_AUGSELF = _METHOD(
    "--augself",
    default="crop=1,color=1",
    show_default=True,
    callback=_weights,
    help="Augmentations to be aware of and their weights; '' for none.",
)
_BATCHES = _all(
    _OPTIMISATION(
        "--batch-size", default=256, show_default=True, help="Images a step, of all processes."
    ),
    _OPTIMISATION("--base-lr", default=0.03, show_default=True, help="Per 256 images."),
)
_SEED = _OPTIMISATION(
    "--seed", default=0, show_default=True, help="Of initialisation, order and views."
)
_FRAME = _all(
    _RUN("--output", required=True, type=click.Path(path_type=Path), help="Folder of the run."),
    _RUN("--resume", is_flag=True, help="Continue from the newest valid checkpoint, or begin."),
    _RUN(
        "--monitor-every",
        type=click.FloatRange(0),
        default=10.0,
        show_default=True,
        help="Epochs between evaluations on held-out images; 0: only at the end.",
    ),
    _RUN(
        "--report-to",
        default="tensorboard",
        show_default=True,
        callback=_names,
        help="Who gets the log beside training_log.json: tensorboard, wandb, ..., none.",
    ),
    _PUBLICATION(
        "--license", default="other", show_default=True, help="Of the model, for its card."
    ),
    _PUBLICATION(
        "--push-to-hub", metavar="ORG/NAME", help="Publish the model when the run has ended."
    ),
    _PUBLICATION("--private", is_flag=True, help="Publish in a private repository."),
)


def _named(group: Callable[..., Option], flag: str, name: str, metavar: str, text: str) -> Option:
    """A repeatable option of pairs."""
    return group(flag, name, multiple=True, metavar=metavar, callback=_pairs, help=text)


@click.command(cls=GroupedCommand)
@_DATA
@_IMAGES(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a class name a line: use only their images.",
)
@_READING
@_METHOD("--method", default="simsiam", show_default=True, help="What AugSelf is added to.")
@_named(
    _METHOD, "--method-option", "method_options", "NAME=VALUE", "The method's own, e.g. layers=3."
)
@_METHOD("--encoder", default="resnet18", show_default=True, help="Preset, folder or Hub id.")
@_AUGSELF
@_METHOD("--convention", default="relative", show_default=True, help="relative or paper.")
@_VIEWS("--size", default=96, show_default=True, help="Side of the views in pixels.")
@_VIEWS(
    "--color-strength",
    default=1.0,
    show_default=True,
    help="Of the jitter and the share of gray views: strong is 2, weak 0.5.",
)
@_named(
    _VIEWS, "--policy", "policy", "NAME=VALUE", "How views are drawn, e.g. blur=0 or scale=0.08,1."
)
@_VIEWS("--normalization", type=click.Choice(NORMALIZATIONS), help="Default: the encoder's own.")
@_OPTIMISATION("--epochs", default=200.0, show_default=True)
@_BATCHES
@_OPTIMISATION("--weight-decay", default=5e-4, show_default=True)
@_SEED
@_named(
    _OPTIMISATION,
    "--set",
    "arguments",
    "FIELD=VALUE",
    "Of transformers' TrainingArguments, e.g. bf16=True.",
)
@_RUN("--recipe", metavar="NAME", help="Settings of a named run; what you give overrides.")
@_RUN(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_recipes,
    help="Show each recipe's command, time and result.",
)
@_FRAME
def pretrain(recipe: str | None, resume: bool, **options: Any) -> None:
    """Pretrain an encoder with AugSelf on a folder of images; ends with a model folder."""
    _run(resume, options if recipe is None else _with_recipe(recipe, options))


def _with_recipe(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings wherever nothing was given; of pairs, those that were not given."""
    from training.recipes import recipe

    source = click.get_current_context().get_parameter_source
    merged = dict(options)
    for option, value in recipe(name).settings.items():
        if option in PAIRS:
            merged[option] = {**value, **options[option]}
        elif source(option) is ParameterSource.DEFAULT:
            merged[option] = value
    return merged


@click.command("fit-heads", cls=GroupedCommand)
@click.argument("encoder")
@_DATA
@_READING
@_AUGSELF
@_VIEWS("--size", default=224, show_default=True, help="Side of the views in pixels.")
@_OPTIMISATION("--epochs", default=10.0, show_default=True)
@_BATCHES
@_SEED
@_FRAME
def fit_heads(resume: bool, **options: Any) -> None:
    """Train AugSelf heads on a frozen ENCODER (a folder or Hub id); ends with a model folder."""
    _run(resume, {**options, "method": FROZEN})


def _run(resume: bool, options: dict[str, Any]) -> None:
    import torch.distributed as dist

    from training.methods.layers import rank
    from training.run.pretraining import pretrain as run

    folder = run(Settings(**options), resume=resume)
    if rank() == 0:
        click.echo(f"wrote {folder}")
    if dist.is_initialized():  # a process that ends with its group alive may abort, and end all
        dist.destroy_process_group()
