"""The study's commands; see the package's docstring."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from research.program import run_program
from research.study.plan import Run, read_plan

_PATH = click.Path(path_type=Path)
_CORPUS = click.option("--corpus", type=_PATH, required=True, help="What research.corpora built.")
_RECORDS = click.option("--records", type=_PATH, required=True, help="A JSON file of each run.")


@click.group()
def study() -> None:
    """Run a plan and report on it."""


@study.command()
@click.argument("plan", type=_PATH)
@click.argument("output", type=_PATH)
@_CORPUS
@_RECORDS
@click.option("--jobs", default=2, show_default=True, help="Runs side by side, a thread each.")
def run(plan: Path, output: Path, corpus: Path, records: Path, jobs: int) -> None:
    """Make every run of PLAN that has no record yet; their folders go into OUTPUT."""
    from research.study.schedule import Places, carry_out_all

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through _stop
    carry_out_all(read_plan(plan), Places(plan, output, corpus, records), jobs)


@study.command(hidden=True)
@click.argument("plan", type=_PATH)
@click.argument("phase")
@click.argument("arm")
@click.argument("seed", type=int)
@click.argument("rate")
@click.argument("output", type=_PATH)
@_CORPUS
@_RECORDS
def one(
    plan: Path,
    phase: str,
    arm: str,
    seed: int,
    rate: str,
    output: Path,
    corpus: Path,
    records: Path,
) -> None:
    """Make one run, as `run` asks for it."""
    from research.study.runs import carry_out

    chosen = Run(phase, arm, seed, float(rate) if rate else None)
    carry_out(read_plan(plan), chosen, output, corpus, records)


@study.command()
@click.argument("plan", type=_PATH)
@click.argument("records", type=_PATH)
@click.argument("results", type=_PATH)
def report(plan: Path, records: Path, results: Path) -> None:
    """Write the study's section of RESULTS and its charts from RECORDS alone."""
    from research.study.report import write

    write(read_plan(plan), records, results)


@study.command()
@click.argument("plan", type=_PATH)
@click.argument("records", type=_PATH)
@click.option("--without", multiple=True, help="A set that the next study leaves out.")
@click.option("--sets", required=True, type=int, help="Final sets of the next study.")
def power(plan: Path, records: Path, without: tuple[str, ...], sets: int) -> None:
    """Say what the next study could find, from the RECORDS of the one that followed PLAN."""
    from research.study.power import table
    from research.study.records import read_all

    click.echo(table(read_plan(plan).comparisons[0], read_all(records), without, sets))


@study.command()
@click.argument("model", type=_PATH)
@click.argument("twin", type=_PATH)
@click.argument("work", type=_PATH)
@_CORPUS
@click.option("--recipe", required=True, help="The recipe that MODEL was made by.")
def beside(model: Path, twin: Path, work: Path, corpus: Path, recipe: str) -> None:
    """Put results of TWIN, an untrained encoder and colour histograms beside MODEL's in its card.

    Features are kept in WORK.
    """
    from research.study.beside import put_beside, table
    from training.recipes import recipe as named
    from training.run.settings import Settings

    settings = Settings(data="", output=work, **named(recipe).settings)
    click.echo(table(put_beside(model, twin, settings, corpus, work)))


def main() -> None:
    run_program(study, "research.study")


if __name__ == "__main__":
    main()
