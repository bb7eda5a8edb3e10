"""Runs the benchmarks and puts what they found into docs/performance.md, with a chart each.

    python benchmarks/bench.py [--quick] [NAME ...]        (make bench, make bench QUICK=1)

What stands between `<!-- bench: NAME -->` and `<!-- end -->` is replaced, the text around it stays.
Charts go beside it, to docs/performance/. --quick is a look whether everything runs: its figures
are no results and go to bench/performance.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from findings import quartiles
from matplotlib.figure import Figure

HERE = Path(__file__).parent
WORK = HERE.parent / "bench"
PERFORMANCE = HERE.parent / "docs/performance.md"
PROGRAMS = ("pretraining", "engine", "extraction", "server", "transfer")
BEGIN, END = "<!-- bench: {} -->", "<!-- end -->"
COLORS = ("#0d9488", "#9ca3af")  # ours, and what it stands beside


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(PROGRAMS))
@click.option("--quick", is_flag=True, help="Does all of it run? Its figures are no results.")
def main(names: tuple[str, ...], quick: bool) -> None:
    """Measure, and write the tables and charts."""
    WORK.mkdir(exist_ok=True)
    document = WORK / PERFORMANCE.name if quick else PERFORMANCE
    if quick:
        document.write_text("\n".join(f"{BEGIN.format(name)}\n{END}\n" for name in PROGRAMS))
    began = time.monotonic()
    for name in names or PROGRAMS:
        place_of(document, name)  # refused now, not after hours
    for name in names or PROGRAMS:
        replace(document, name, measured(name, quick))
    click.echo(f"wrote {document} in {(time.monotonic() - began) / 60:.0f} minutes")


def measured(name: str, quick: bool) -> dict[str, Any]:
    """What one program finds (`findings.Findings`)."""
    found = WORK / f"{name}.json"
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(found)]
    if subprocess.run([*command, *["--quick"] * quick], check=False).returncode != 0:
        raise click.ClickException(f"{name}.py failed; what it printed above says why")
    return json.loads(found.read_text())


def place_of(document: Path, name: str) -> tuple[int, int]:
    """Where in its text the findings of one program stand, markers included."""
    place = re.compile(f"{re.escape(BEGIN.format(name))}\n.*?{re.escape(END)}", re.DOTALL)
    found = list(place.finditer(document.read_text()))
    if len(found) != 1:
        raise click.ClickException(
            f"{document} must have one place {BEGIN.format(name)} ... {END} for what is found"
        )
    return found[0].span()


def replace(document: Path, name: str, found: dict[str, Any]) -> None:
    """Put the findings of one program where the document has their place."""
    begin, end = place_of(document, name)
    chart = Path(document.stem) / f"{name}.svg"
    draw(found, document.parent / chart)
    picture = f"![{name}: {found['unit']}]({chart.as_posix()})"
    text = document.read_text()
    filled = "\n\n".join([BEGIN.format(name), *found["parts"], picture, END])
    document.write_text(text[:begin] + filled + text[end:])


def draw(found: dict[str, Any], path: Path) -> None:
    """Medians as bars, quartiles as whiskers; ours in a colour of its own."""
    path.parent.mkdir(exist_ok=True)
    bars = found["bars"]
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, (name, values) in enumerate(bars.items()):
        low, middle, high = quartiles(values)
        color = COLORS[not re.search(r"\b(ours|engine)\b", name)]
        axes.barh(row, middle, color=color, xerr=[[middle - low], [high - middle]])
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel(found["unit"])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
