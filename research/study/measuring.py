"""What a study measures of a model: tasks of `augself evaluate` on sets below the corpus."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from augself_hub.cli import EXTRACT
from research.study.plan import Measure
from training.evaluation.cache import Model, Tables
from training.evaluation.evaluate import Plan, evaluate
from training.evaluation.results import Result
from training.evaluation.tasks import Settings


def tables_of(model: Path, features: Path) -> Tables:
    """The features of a model folder, extracted on the CPU and kept in `features`."""
    extract = pkgutil.resolve_name(EXTRACT)  # training may not import serving
    return Tables(Model.resolve(str(model)), features, extract, "cpu")


def measured(
    tables: Tables, measures: Sequence[Measure], corpus: Path
) -> Iterator[tuple[str, Result]]:
    """Each result, after the place of its set below the corpus, e.g. final/flags.

    Raises:
        UsageError: a measure has no set there.
    """
    for measure in measures:
        places = {path.name: path for path in measure.places(corpus)}
        names = [f"folder:{path}" for path in places.values()]
        plan = Plan(measure.tasks, names, None, Settings(queries=measure.queries))
        for result in evaluate(tables, plan, plan.open()):
            yield places[result.dataset].relative_to(corpus).as_posix(), result
