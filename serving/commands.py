"""The commands `augself serve`, `augself predict` and `augself extract`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from augself_hub.errors import AugSelfError, ImageError, MissingExtra
from serving.providers import DEVICES

if TYPE_CHECKING:
    from serving.engine import Engine

_DEVICE = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="cuda and tensorrt are refused where they cannot be had; auto says what it took.",
)
_THREADS = click.option(
    "--threads", type=click.IntRange(1), help="Of the model. Default: the usable cores."
)
_MODEL = click.option(
    "--model", help="A model folder or a Hub id (org/name@revision). Default: the embedded model."
)
_IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("a", type=_IMAGE)
@click.argument("b", type=_IMAGE)
@_MODEL
@_DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/augmentations answers.")
def predict(a: Path, b: Path, model: str | None, device: str, as_json: bool) -> None:
    """Predict what takes picture A to picture B."""
    with _needs("serve"):
        from serving.engine import load
    engine = load(model, device)
    differences = _predicted(engine, a, b)
    if as_json:
        click.echo(json.dumps({"model": engine.name, "differences": differences}, indent=2))
    else:
        click.echo(_table(_rows(engine, differences)))


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="A folder to be created."
)
@_MODEL
@_DEVICE
@_THREADS
def extract(
    source: Path, output: Path, model: str | None, device: str, threads: int | None
) -> None:
    """Write the features of the images in SOURCE, a folder (its sub-folders are the classes)."""
    with _needs("serve"):
        from serving.engine import load
        from serving.extract import extract as write_features
    counts = write_features(source, output, load(model, device, threads))
    click.echo(
        f"{output}: {counts.rows} rows of {counts.images} images, {counts.errors} unreadable"
    )


@click.command()
@click.option("--model", "models", multiple=True, help="Repeatable. Default: the embedded model.")
@click.option("--demo", is_flag=True, help="Show the demo at /.")
@click.option("--token", envvar="AUGSELF_TOKEN", help="Clients of /v1 must send it as bearer.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@_DEVICE
@_THREADS
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Change one (see /v1/models)."
)
def serve(
    models: tuple[str, ...],
    demo: bool,
    token: str | None,
    host: str,
    port: int,
    device: str,
    threads: int | None,
    limits: tuple[str, ...],
) -> None:
    """Answer over HTTP: /v1/embeddings, /v1/augmentations; /docs describes them."""
    with _needs("serve"):
        from serving.api import create_app
        from serving.engine import load
        from serving.limits import Limits
        from serving.server import run
    allowed = Limits.parse(limits)
    engines = [load(model, device, threads) for model in models or (None,)]
    run(create_app(engines, allowed, demo, token), host, port)


@contextlib.contextmanager
def _needs(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "a package", extra) from error


def _predicted(engine: Engine, a: Path, b: Path) -> dict[str, Any]:
    from serving.differences import describe, is_gray

    images = [_loaded(path, engine.preprocessing.size) for path in (a, b)]
    features = engine.features(images)
    differences = engine.differences(features[:1], features[1:])
    one = {kind: values[0] for kind, values in differences.items()}
    return describe(engine.spec, one, any(is_gray(image) for image in images))


def _loaded(path: Path, side: int) -> Any:
    from augself_hub.preprocess import load

    try:
        return load(path, side)
    except ImageError as error:
        raise AugSelfError(f"{path}: {error}") from error


def _rows(engine: Engine, differences: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's lines: a number of a regression head, a probability, or a class's."""
    rows: list[tuple[str, ...]] = [("augmentation", "name", "value", "unit", "standard error")]
    for kind, head in engine.spec.heads.items():
        if head.type == "regression":
            rows += [_regression_row(kind, record) for record in differences[kind]]
            continue
        for dimension in head.dimensions:
            value = differences[kind][dimension.name]
            values = {"": value} if head.type == "binary" else dict(enumerate(value))
            rows += [
                (kind, f"{dimension.name} {which}".strip(), f"{p:.3f}", dimension.unit, "")
                for which, p in values.items()
            ]
    return rows


def _regression_row(kind: str, record: dict[str, Any]) -> tuple[str, ...]:
    if record["value"] is None:
        return kind, record["name"], "-", record["unit"], record["reason"]
    error = record["standard_error"]
    known = "not measured" if error is None else f"{error:.3f}"
    return kind, record["name"], f"{record['value']:+.3f}", record["unit"], known


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns two spaces apart, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = rows[0].index("value")
    lines = (
        "  ".join(
            cell.rjust(width) if i == numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
