"""The command `augself evaluate`. What computes is imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from augself_hub.atomic import write_json
from augself_hub.commands import table
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images import Columns, Options
from augself_hub.images.words import COLUMN_HELP, LAYOUTS, READ_AS_HELP

if TYPE_CHECKING:
    from augself_hub.images import Inventory
    from training.evaluation.cache import Tables
    from training.evaluation.compare import Difference
    from training.evaluation.evaluate import Plan
    from training.evaluation.results import Result

CACHE = Path("~/.cache/augself")


def _names(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    """a,b -> a and b, each once."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise click.BadParameter("give at least one name")
    return names


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(context, option, text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form 1,5") from None


@click.command()
@click.option(
    "--model", help="A model folder or a Hub id (org/name@revision). Default: the embedded model."
)
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    help="Models without and with AugSelf; of several seeds of one recipe comma-separated.",
)
@click.option(
    "--tasks",
    required=True,
    callback=_names,
    help="Comma-separated: linear, fewshot, knn, localization, retrieval, awareness, finetune.",
)
@click.option(
    "--datasets",
    required=True,
    callback=_names,
    help="Comma-separated: cifar10, pets ... (a wrong name lists them) or sources (a folder, "
    "org/name ...).",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder that holds the data sets.")
@click.option("--download", is_flag=True, help="Fetch what is missing, where torchvision can.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results and charts, instead of the model's evaluation.json and card.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=CACHE,
    show_default=True,
    envvar="AUGSELF_CACHE",
    help="Folder for features, which are extracted once.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Random seed of tasks, views and finetuning."
)
@click.option(
    "--ways",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Few-shot: classes per task.",
)
@click.option(
    "--shots",
    default="1,5",
    show_default=True,
    callback=_numbers,
    help="Few-shot: images per class.",
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Few-shot: images per class to classify.",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=30, show_default=True, help="Of finetuning."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device of extraction: cpu, openvino, cuda ... Finetuning keeps to the CPU, too.",
)
@click.option("--column", multiple=True, metavar="ROLE=NAME", help=COLUMN_HELP)
@click.option("--split", help="One split of the sources, in any spelling. Default: all.")
@click.option("--read-as", type=click.Choice(LAYOUTS), help=READ_AS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def evaluate(
    model: str | None,
    compare: tuple[str, str] | None,
    output: Path | None,
    cache: Path,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how well a model's features serve other data sets."""
    if compare is None:
        from training.evaluation.api import evaluate as measure

        found = measure(model, output=output, cache=cache, device=device, **options)
        click.echo(_printed(found, as_json))
        return
    if model is not None or output is None:
        raise UsageError("--compare takes no --model and needs --output, a folder for its charts")
    from training.evaluation.cache import Model, Tables
    from training.evaluation.evaluate import Plan
    from training.evaluation.tasks import TaskSettings

    chosen = {name: options.pop(name) for name in ("seed", "ways", "shots", "queries", "epochs")}
    reading = [options.pop(name) for name in ("column", "split", "read_as")]
    how = Options(Columns.parse(reading[0]), *reading[1:])
    plan = Plan(settings=TaskSettings(**chosen), options=how, **options)
    plan.refuse_idle()
    sides = [
        [Tables(Model.resolve(name), cache.expanduser(), device) for name in side.split(",")]
        for side in compare
    ]
    click.echo(_compared(sides, plan, output, as_json))


def _compared(sides: Sequence[Sequence[Tables]], plan: Plan, output: Path, as_json: bool) -> str:
    """Evaluate both sides and write comparison.json, .md, .png and .svg of what all models have.

    Raises:
        AugSelfError: what could not be measured of a model; the rest is written first.
    """
    from training.evaluation.compare import check_sides, compare
    from training.evaluation.evaluate import Unmeasured, evaluate, short_name
    from training.evaluation.report import difference_chart, tradeoff_chart

    check_sides(*([tables.model for tables in side] for side in sides))
    datasets = plan.open()
    refused: list[str] = []

    def measured(tables: Tables) -> list[Result]:
        try:
            return evaluate(tables, plan, datasets)
        except Unmeasured as error:
            refused.append(f"{tables.model.title}: {error}")
            return error.results

    without, with_ = (list(map(measured, side)) for side in sides)
    differences = compare(without, with_, plan.settings.seed)
    inventories = {short_name(name): images.inventory for name, images in datasets.items()}
    output.mkdir(parents=True, exist_ok=True)
    names = [[tables.model.title for tables in side] for side in sides]
    text = _write_comparison(differences, names, plan, inventories, output)
    difference_chart(differences, output / "comparison")
    first = {"without AugSelf": without[0], "with AugSelf": with_[0]}
    tradeoff_chart(first, output / "awareness")
    if refused:
        raise AugSelfError("; ".join(refused))
    return json.dumps([d.record() for d in differences], indent=2) if as_json else text


def _write_comparison(
    differences: Sequence[Difference],
    names: list[list[str]],
    plan: Plan,
    inventories: dict[str, Inventory],
    output: Path,
) -> str:
    from augself_hub.folder import versions
    from augself_hub.results import with_inventories
    from training.evaluation.report import DIFFERENCE_COLUMNS, difference_rows, markdown

    about = {"without": names[0], "with": names[1], "seed": plan.settings.seed}
    about = with_inventories(about, "evaluate", inventories)
    records = [d.record() for d in differences]
    write_json(
        output / "comparison.json", {**about, "versions": versions(), "differences": records}
    )
    text = markdown(DIFFERENCE_COLUMNS, difference_rows(differences))
    title = f"Without AugSelf: {', '.join(names[0])}. With: {', '.join(names[1])}.\n\n"
    (output / "comparison.md").write_text(title + text)
    return title + text


def _printed(results: Sequence[Result], as_json: bool) -> str:
    from training.evaluation.report import COLUMNS, rows_of

    if not as_json:
        return table(COLUMNS, rows_of(results))
    fields = ("task", "dataset", "name", "value", "baseline", "margin_of_error", "unit")
    return json.dumps([{f: getattr(r, f) for f in fields} for r in results], indent=2)
