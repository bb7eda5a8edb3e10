"""The commands `augself index` and `augself search`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.lazy import needs
from augself_hub.terminal import shown
from serving.options import DEVICES

if TYPE_CHECKING:
    from serving.search.index import FeatureIndex, Match

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("table", type=_FOLDER)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="A new folder.")
def index(table: Path, output: Path) -> None:
    """Make a cosine index over TABLE, which augself extract has written."""
    with needs("search"):
        from serving.search.index import build
    made = build(table, output)
    click.echo(
        f"{output}: {sum(made['parts'])} rows of {made['model']['features']} features, "
        f"recall@10 {made['recall_at_10']:.3f}"
    )


@click.command()
@click.argument("index", type=_FOLDER)
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Also draw a contact sheet, a PNG.")
@click.option(
    "-k", "count", type=click.IntRange(1), default=10, show_default=True, help="Number of matches."
)
@click.option("--model", help="The model TABLE was extracted with. Default: the embedded model.")
@click.option("--source", help="The table's images, if they were moved.")
@click.option("--device", metavar=DEVICES, default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the matches as JSON.")
def search(
    index: Path,
    image: Path,
    output: Path | None,
    count: int,
    model: str | None,
    source: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Find the images of INDEX most like IMAGE: a list, and a contact sheet of the pictures."""
    with needs("search"):
        from augself_hub.images.given import encoded, named
        from augself_hub.preprocess import decode
        from serving.search import sheet
        from serving.search.index import FeatureIndex
    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"--output {output}: the contact sheet is a PNG, give a name in .png")
    if output is None and source is not None:
        raise UsageError("--source is where the contact sheet's pictures are: give --output too")
    opened = FeatureIndex(index)
    data = named(0, image, encoded)
    matches = _matches(opened, image, data, count, model, device)
    if output is None:
        click.echo(_listing(matches, as_json))
        return
    found = sheet.pictures(opened.table_manifest, matches, source)
    sheet.save(sheet.draw(decode(data, least=sheet.SIDE), matches, found), output)
    click.echo(_listing(matches, as_json))
    if missing := len({match.id for match in matches} - set(found)):
        click.echo(
            f"{missing} of the pictures are not where they were, and are shown by name: --source "
            "says where they are now",
            err=True,
        )


def _matches(
    index: FeatureIndex, image: Path, data: bytes, count: int, model: str | None, device: str
) -> list[Match]:
    """The query goes the way the table's images went: precision and decoding are the table's."""
    from serving.inference.engine import load
    from serving.search.index import refuse_other_model

    table = index.table_manifest
    engine = load(model, device, None, table["precision"], table["preprocessing"]["decode"])
    refuse_other_model(index, engine.sha256, engine.name)
    try:
        prepared = engine.preprocessing.prepare(data)
    except ImageError as error:
        raise AugSelfError(f"{image}: {error}") from error
    return index.search(engine.features([prepared])[0], count)


def _listing(matches: list[Match], as_json: bool) -> str:
    if as_json:
        return json.dumps([dataclasses.asdict(match) for match in matches], indent=2)
    width = len(str(len(matches)))
    lines = []
    for rank, match in enumerate(matches, 1):
        label = f"  ({shown(match.label)})" if match.label else ""
        lines.append(f"{rank:{width}}  {match.cosine:6.3f}  {shown(match.id)}{label}")
    return "\n".join(lines)
