"""What an evaluation finds, and how it is kept in a model folder's evaluation.json."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub import card
from augself_hub.atomic import write_json
from augself_hub.folder import EVALUATION, changed_folder, versions, write_manifest
from augself_hub.images import Inventory
from augself_hub.results import read_evaluation, with_inventories

Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One number.

    Args:
        task, dataset: what was asked. name: of the number, for people.
        metric: for machines. unit: of the value.
        value: what the model has. baseline: what a predictor without the image has (chance,
            the commonest class, the mean).
        margin_of_error: half the width of its 95% confidence interval, where the protocol has one.
        protocol: one line that says how it was measured.
        details: further facts: strength, number of images ...
        scores: (N,) one of each image or task; their mean is the value (of each class first, where
            `groups` (N,) says which).
        lower_is_better: an error and not a share.
    """

    task: str
    dataset: str
    name: str
    metric: str
    value: float
    protocol: str
    unit: str = "%"
    baseline: float | None = None
    margin_of_error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    scores: np.ndarray | None = None
    groups: np.ndarray | None = None
    lower_is_better: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.dataset, self.name

    def record(self, model: str, seed: int) -> Record:
        """A line of evaluation.json. It says all that is needed to read it alone."""
        fields = (
            *("task", "dataset", "name", "metric", "unit", "value", "baseline"),
            "margin_of_error",
        )
        found = {name: getattr(self, name) for name in fields}
        return {
            **{name: value for name, value in found.items() if value is not None},
            **self.details,
            "protocol": self.protocol,
            "seed": seed,
            "model_sha256": model,
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
        }


NOTHING_READ: Mapping[str, Inventory] = {}


def merged(
    evaluation: Record,
    records: Sequence[Record],
    inventories: Mapping[str, Inventory] = NOTHING_READ,
) -> Record:
    """evaluation.json with these records; an older one of the same number goes.

    The records of a task stand together, in the order in which the tasks came.

    Args:
        inventories: data set -> what was evaluated of it and what was left out.
    """
    new = {_key(record): record for record in records}
    old = {_key(record): record for record in evaluation.get("results", ())}
    both = [*({**old, **new}).values()]
    tasks = list(dict.fromkeys(record["task"] for record in both))
    evaluation = with_inventories(evaluation, "evaluate", inventories)
    return {**evaluation, "results": sorted(both, key=lambda r: tasks.index(r["task"]))}


def _key(record: Record) -> tuple[Any, ...]:
    return record["task"], record.get("dataset"), record["name"]


def write_into(
    folder: Path,
    records: Sequence[Record],
    inventories: Mapping[str, Inventory] = NOTHING_READ,
) -> None:
    """Add records to a model folder and its card, in one exchange of the folder."""
    with changed_folder(folder) as stage:
        write_json(stage / EVALUATION, merged(read_evaluation(stage), records, inventories))
        card.write(stage)
        write_manifest(stage)
