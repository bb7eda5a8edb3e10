"""The commands; see the package's docstring."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

import click
import torch

from research.corpora.building import PRETRAIN
from research.embedded.making import (
    CANDIDATES,
    FINAL,
    PHASE,
    PLAIN,
    Final,
    make,
    seconds_of_an_image,
)
from research.program import run_program
from research.study.plan import Run, read_plan
from research.study.runs import settings_of
from training.data.sources import open_images

_PATH = click.Path(path_type=Path)
_CORPUS = click.option("--corpus", type=_PATH, required=True, help="What research.corpora built.")


@click.group()
def embedded() -> None:
    """Make the embedded model."""


@embedded.command()
@_CORPUS
@click.option("--arm", "arms", multiple=True, help="Of plan.toml; again for more. Default: all.")
def budget(corpus: Path, arms: tuple[str, ...]) -> None:
    """What each candidate costs, and the epochs that would be left for the final pair."""
    torch.set_num_threads(1)
    plan, final = read_plan(CANDIDATES), Final.read(FINAL)
    images = len(open_images(str(corpus / PRETRAIN)))
    spent, hours = 0.0, {}
    click.echo("| candidate | images a CPU second | epochs | CPU minutes |\n|---|---|---|---|")
    for arm in arms or plan.arms:
        with tempfile.TemporaryDirectory() as place:
            run = Run(PHASE, arm, 100, None)
            settings = settings_of(plan, run, Path(place), corpus)
            cost = seconds_of_an_image(settings)
        hours[arm] = cost * images / 3600  # an epoch
        spent += hours[arm] * settings.epochs
        minutes = 60 * hours[arm] * settings.epochs
        click.echo(f"| {arm} | {1 / cost:.0f} | {settings.epochs:g} | {minutes:.1f} |")
    click.echo(f"\ncandidates: {spent:.1f} of {final.hours:g} hours")
    for arm, epoch in hours.items():
        if arm + PLAIN in hours:
            epochs = (final.hours - spent) / (epoch + hours[arm + PLAIN])
            click.echo(f"{arm} and its twin: {min(epochs, final.most_epochs):.0f} epochs")


@embedded.command()
@click.argument("output", type=_PATH)
@_CORPUS
@click.option("--photographs", type=_PATH, required=True, help="What research.matching built.")
@click.option("--records", type=_PATH, required=True, help="A JSON file of each candidate.")
@click.option("--jobs", default=2, show_default=True, help="Runs side by side, a thread each.")
def run(output: Path, corpus: Path, photographs: Path, records: Path, jobs: int) -> None:
    """Every step, from candidates to the folder OUTPUT/embedded; what is done is not done again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    click.echo(make(output, corpus, photographs, records, jobs, Final.read(FINAL)))


def main() -> None:
    run_program(embedded, "research.embedded")


if __name__ == "__main__":
    main()
