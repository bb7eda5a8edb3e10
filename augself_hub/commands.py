"""Commands of the `augself` command line that handle models by name. They do without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from augself_hub import hub
from augself_hub.folder import MANIFEST, files_of, read_manifest
from augself_hub.images.words import COLUMN_HELP, LAYOUTS, READ_AS_HELP
from augself_hub.terminal import shown


@click.command("list")
@click.option("--all", "everywhere", is_flag=True, help="Also known models and those on the Hub.")
def list_command(everywhere: bool) -> None:
    """List the models on this machine, or all that can be had."""
    listings = hub.list_models(everywhere)
    header = [field.name for field in dataclasses.fields(hub.Listing)]
    click.echo(table(header, [dataclasses.astuple(listing) for listing in listings]))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option("--private/--public", default=None, help="Visibility of a new repository.")
@click.option("--message", help="Commit message.")
@click.option("--dry-run", is_flag=True, help="Print what would change; change nothing.")
def push(
    folder: Path, repo_id: str, private: bool | None, message: str | None, dry_run: bool
) -> None:
    """Publish the model FOLDER as REPO_ID (org/name) on the Hub, in one commit.

    What its owner added or edited on the Hub stays: cards, licences, pictures.
    """
    if dry_run:
        planned = hub.plan(folder, repo_id)
        rows = [("upload", path) for path in sorted(planned.uploads)]
        rows += [("delete", path) for path in planned.deletes]
        rows += [("keep", path) for path in planned.keeps]
        click.echo(table(["what", "file"], rows))
        click.echo(f"nothing was changed: without --dry-run this is one commit to {repo_id}")
        return
    url = hub.push(folder, repo_id, private=private, commit_message=message)
    click.echo(f"{_files(folder)}\npublished as {url}")


@click.command()
@click.argument("model")
@click.argument("destination", type=click.Path(path_type=Path))
def pull(model: str, destination: Path) -> None:
    """Copy MODEL (org/name@revision) from the Hub into the new folder DESTINATION."""
    click.echo(f"{_files(hub.pull(model, destination))}\nin {destination}")


@click.command()
@click.argument("model", required=False)
def verify(model: str | None) -> None:
    """Compare what computes in MODEL (a folder or Hub id) with its manifest."""
    folder = hub.resolve(model)
    click.echo(f"{_files(folder)}\n{folder} is what its manifest says")


@click.command("list-images")
@click.argument("source")
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help=COLUMN_HELP)
@click.option("--split", help="One split alone, in any spelling.")
@click.option("--read-as", "kind", type=click.Choice(LAYOUTS), help=READ_AS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def list_images(source: str, columns: tuple[str, ...], as_json: bool, **chosen: Any) -> None:
    """Say what the commands will read of SOURCE: images, classes, splits, and what is left out."""
    from augself_hub.images import Columns, Options, open_source

    opened = open_source(source, Options(Columns.parse(columns), **chosen))
    inventory = opened.inventory
    click.echo(json.dumps(inventory.record(), indent=2) if as_json else inventory.text())


def _files(folder: Path) -> str:
    """A table of a folder's files; those that compute nothing are in no manifest."""
    files = read_manifest(folder)["files"]
    rows = [
        (path, f"{(folder / path).stat().st_size:,}", files[path][:12] if path in files else "")
        for path in files_of(folder)
        if path != MANIFEST.as_posix()
    ]
    return table(["file", "bytes", "sha256"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: str | None = None) -> str:
    """Columns as wide as their widest cell, two spaces apart. Cells may be a stranger's words.

    Args:
        numbers: the title of a column that is aligned to the right.
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    sides = [str.rjust if title == numbers else str.ljust for title in header]
    lines = (
        "  ".join(side(cell, n) for side, cell, n in zip(sides, row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
    return "\n".join(lines)
