"""Evaluation from Python: what `augself evaluate` calls, too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from augself_hub.atomic import write_json
from augself_hub.errors import UsageError
from augself_hub.folder import EVALUATION
from augself_hub.images import Columns, Options
from augself_hub.paths import path_text
from augself_hub.results import read_evaluation
from training.evaluation.cache import Model, Tables
from training.evaluation.evaluate import Plan, Unmeasured, short_name
from training.evaluation.evaluate import evaluate as measure
from training.evaluation.report import tradeoff_chart
from training.evaluation.results import Result, merged, write_into
from training.evaluation.tasks import TaskSettings

CACHE = Path("~/.cache/augself")


def evaluate(
    model: str | os.PathLike[str] | None = None,
    *,
    tasks: Sequence[str],
    datasets: Sequence[str],
    data: str | os.PathLike[str] | None = None,
    download: bool = False,
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] = CACHE,
    seed: int = 0,
    ways: int = 5,
    shots: Sequence[int] = (1, 5),
    queries: int = 16,
    epochs: int = 30,
    device: str = "auto",
    column: Sequence[str] = (),
    split: str | None = None,
    read_as: str | None = None,
) -> list[Result]:
    """Measure how well a model's features serve other data sets.

    Example:
        evaluate("runs/first/model", tasks=["knn", "linear"], datasets=["folder:PHOTOS"])

    Args:
        model: a model folder or Hub id; None is the embedded model.
        tasks: of linear, fewshot, knn, localization, retrieval, awareness, finetune.
        datasets: cifar10, pets ... (a wrong name lists them), or sources: a folder, org/name ...
        data: folder that holds the data sets. download: fetch what is missing there.
        output: folder for results and charts, instead of the model's evaluation.json and card.
        cache: folder for features, which are extracted once.
        seed: of tasks, views and finetuning.
        ways, shots, queries: of few-shot tasks: 2 classes or more, images to learn from, to answer.
        epochs: of finetuning. device: of extraction: auto, cpu, cuda ...; finetuning too stays on
            the CPU where that is asked for.
        column, split, read_as: how sources are read, as `pretrain` takes them. Of one split that
            is chosen a part is tested on, as of images that have none.

    Returns:
        Every task's results; `result.record(...)` is what evaluation.json has.

    Raises:
        UsageError: an unknown task or data set, an option that none of them asks for, two data sets
            of one name, or a model without a folder that can be changed and no output.
        AugSelfError: a data set that is not there, or what a task cannot measure or fails by: all
            other results are written first.
    """
    for name, names in (("tasks", tasks), ("datasets", datasets)):
        if isinstance(names, str | os.PathLike) or not names:
            raise UsageError(f"--{name} {names}: give at least one name")
    settings = TaskSettings(seed, ways, tuple(shots), queries, epochs=epochs)
    place = None if data is None else Path(path_text("data", data))
    plan = Plan(
        tuple(tasks),
        tuple(path_text("a data set", name) for name in datasets),
        place,
        settings,
        download,
        Options(Columns.parse(tuple(column)), split, read_as),
    )
    plan.refuse_idle()
    tables = Tables(
        Model.resolve(None if model is None else path_text("model", model)),
        Path(path_text("cache", cache)).expanduser(),
        device,
    )
    folder = tables.model.folder.resolve()
    own = model is not None and Path(model).is_dir()
    if output is None and not (own and os.access(folder.parent, os.W_OK)):
        raise UsageError(
            f"{tables.model.title} is no folder that can be changed: give --output DIR for the "
            "results"
        )
    unmeasured: Unmeasured | None = None
    opened = plan.open()
    try:
        found = measure(tables, plan, opened)
    except Unmeasured as error:
        found, unmeasured = error.results, error
    records = [result.record(tables.model.sha256, seed) for result in found]
    inventories = {short_name(name): images.inventory for name, images in opened.items()}
    if output is None and records:
        write_into(tables.model.folder, records, inventories)
    elif output is not None and records:
        output = Path(path_text("output", output))
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / EVALUATION, merged(read_evaluation(output), records, inventories))
        tradeoff_chart({tables.model.title: found}, output / "awareness")
    if unmeasured:
        raise unmeasured
    return found
