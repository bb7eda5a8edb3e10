"""A model's results on the final sets beside those of its twin, of knowing less and of no encoder.

What stands beside a result: a name for people -> its value, how much the model has more, and the
95% interval of that by the bootstrap over test images, where the result is a mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from research.study.measuring import measured, tables_of
from research.study.plan import LINEAR, Measure
from research.study.references import Histograms, untrained
from training.evaluation.cache import Tables
from training.evaluation.compare import bootstrap, compare
from training.evaluation.results import Record, Result, write_into
from training.evaluation.tasks import TaskSettings
from training.run.settings import Settings

MEASURES = (
    Measure(["linear", "knn"], ["final/*"]),
    Measure(["fewshot"], ["final/stamps", "final/clipart"], queries=14),
)
AWARENESS = Measure(["awareness"], ["final/scenes"])  # of what was trained
TWIN, UNTRAINED, HISTOGRAM = (
    "same encoder without AugSelf",
    "untrained encoder",
    "colour histogram",
)


def put_beside(
    folder: Path, twin: Path, settings: Settings, corpus: Path, work: Path
) -> list[Record]:
    """Measure a model and what stands beside it; write the results into its folder and card.

    Args:
        folder: of the model with AugSelf. twin: of the one without.
        settings: what it was made by, which says how an untrained encoder looks.
        work: for the untrained encoder and the features of all.

    Raises:
        AugSelfError: a set or a model is not there.
        UsageError: no set is of a measure.
    """
    blank = work / "untrained"
    if not blank.is_dir():
        untrained(settings, blank)
    model, without, start = (tables_of(place, work / "features") for place in (folder, twin, blank))
    histograms = Histograms(settings.size, gray=False)

    def results(tables: Tables, measures: Sequence[Measure]) -> list[Result]:
        return [result for _, result in measured(tables, measures, corpus)]

    found = results(model, (*MEASURES, AWARENESS))
    records = {result.key: _own(result, model.model.sha256) for result in found}
    for label, tables, measures in (
        (TWIN, without, (*MEASURES, AWARENESS)),
        (UNTRAINED, start, MEASURES),
        (HISTOGRAM, histograms, MEASURES),
    ):
        for difference in compare([results(tables, measures)], [found]):
            key = (difference.task, difference.dataset, difference.name)
            records[key].setdefault("compared_with", {})[label] = {
                "value": difference.without[0],
                "difference": difference.difference,
                "confidence_interval": difference.over_images,
            }
    write_into(folder, list(records.values()))
    return list(records.values())


def _own(result: Result, model: str) -> Record:
    """With half the width of its 95% interval over test images, where the protocol has none."""
    if result.margin_of_error is None and result.scores is not None:
        low, high = bootstrap(result.scores, result.groups)
        told = f"{result.protocol} ± is the bootstrap's 95% over test images."
        result = replace(result, margin_of_error=(high - low) / 2, protocol=told)
    return result.record(model, TaskSettings().seed)


def table(records: Sequence[Record]) -> str:
    """The linear probe on each set and on average, as Markdown."""
    probes = [record for record in records if record["task"] == LINEAR]
    labels = list(probes[0]["compared_with"])
    rows = [
        [r["dataset"], r["value"], *(r["compared_with"][label]["value"] for label in labels)]
        for r in probes
    ]
    rows.append(["**mean**", *np.mean([row[1:] for row in rows], axis=0)])
    lines = [["linear probe, %", "this model", *labels], ["---"] * (2 + len(labels))]
    lines += [[name, *(f"{value:.1f}" for value in values)] for name, *values in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
