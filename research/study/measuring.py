"""What a study measures of a model: tasks of `augself evaluate` on sets below the corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from research.study.plan import Measure
from training.evaluation.cache import Model, Tables
from training.evaluation.evaluate import Plan, evaluate, short_name
from training.evaluation.results import Result
from training.evaluation.tasks import TaskSettings


def tables_of(model: Path, features: Path, device: str = "cpu") -> Tables:
    """The features of a model folder, extracted on a device and kept in `features`."""
    return Tables(Model.resolve(str(model)), features, device)


def measured(
    tables: Tables, measures: Sequence[Measure], corpus: Path, chosen: Collection[str] = ()
) -> Iterator[tuple[str, Result]]:
    """Each result, after the place of its set below the corpus, e.g. final/flags.

    Args:
        chosen: the places that a selection kept, for measures that want those only.

    Raises:
        UsageError: a measure has no set there.
    """
    for measure in measures:
        places = measure.places(corpus)
        if measure.chosen:
            places = {place: given for place, given in places.items() if place in chosen}
        plan = Plan(
            measure.tasks, list(places.values()), corpus, TaskSettings(queries=measure.queries)
        )
        names = {short_name(given): place for place, given in places.items()}
        for result in evaluate(tables, plan, plan.open()):
            yield names[result.dataset], result
