"""Commands of the `augself` command line that train. Torch is imported when they run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import click


def _weights(context: click.Context, option: click.Parameter, text: str) -> dict[str, float]:
    """crop=1,color=0.5 -> {"crop": 1.0, "color": 0.5}; an empty text trains the method alone."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    try:
        return {kind: float(weight or 1) for kind, _, weight in pairs}
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form crop=1,color=0.5") from None


def _arguments(
    context: click.Context, option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """FIELD=VALUE -> values of their own type."""
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not of the form FIELD=VALUE")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


_DATA = click.option(
    "--data",
    required=True,
    help="Folder of images, or stl10:DIR, cifar10:DIR, cifar100:DIR, imagenet:DIR, hf:NAME.",
)
_OUTPUT = click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run."
)
_AUGSELF = click.option(
    "--augself",
    default="crop=1,color=1",
    show_default=True,
    callback=_weights,
    help="Augmentations to be aware of and their weights; '' for none.",
)
_BATCH_SIZE = click.option(
    "--batch-size", default=256, show_default=True, help="Images a step, of all processes."
)
_BASE_LR = click.option("--base-lr", default=0.03, show_default=True, help="Per 256 images.")
_SEED = click.option("--seed", default=0, show_default=True)
_WORKERS = click.option("--workers", default=2, show_default=True, help="Decoding processes.")
_HELD_OUT = click.option("--held-out", help="Images for the evaluation; default: 5% of --data.")
_LICENSE = click.option(
    "--license", default="other", show_default=True, help="Of the model, for its card."
)
_RESUME = click.option("--resume", is_flag=True, help="Continue from the newest valid checkpoint.")


@click.command()
@_DATA
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a class name a line: use only their images.",
)
@_OUTPUT
@click.option("--method", default="simsiam", show_default=True, help="What AugSelf is added to.")
@click.option("--encoder", default="resnet18", show_default=True, help="Preset, folder or Hub id.")
@_AUGSELF
@click.option("--convention", default="relative", show_default=True, help="relative or paper.")
@click.option("--size", default=96, show_default=True, help="Side of the views in pixels.")
@click.option("--epochs", default=200.0, show_default=True)
@_BATCH_SIZE
@_BASE_LR
@click.option("--weight-decay", default=5e-4, show_default=True)
@_SEED
@_WORKERS
@_HELD_OUT
@_LICENSE
@_RESUME
@click.option(
    "--set",
    "arguments",
    multiple=True,
    metavar="FIELD=VALUE",
    callback=_arguments,
    help="A further field of transformers' TrainingArguments, e.g. save_steps=100.",
)
def pretrain(resume: bool, **options: Any) -> None:
    """Pretrain an encoder with AugSelf on a folder of images; ends with a model folder."""
    _run(resume, options)


@click.command("fit-heads")
@click.argument("encoder")
@_DATA
@_OUTPUT
@_AUGSELF
@click.option("--size", default=224, show_default=True, help="Side of the views in pixels.")
@click.option("--epochs", default=10.0, show_default=True)
@_BATCH_SIZE
@_BASE_LR
@_SEED
@_WORKERS
@_HELD_OUT
@_LICENSE
@_RESUME
def fit_heads(resume: bool, **options: Any) -> None:
    """Train AugSelf heads on a frozen ENCODER (a folder or Hub id); ends with a model folder."""
    from training.heads import FROZEN

    _run(resume, {**options, "method": FROZEN})


def _run(resume: bool, options: dict[str, Any]) -> None:
    from training.methods.layers import rank
    from training.pretraining import pretrain as run
    from training.settings import Settings

    folder = run(Settings(**options), resume=resume)
    if rank() == 0:
        click.echo(f"wrote {folder}")
