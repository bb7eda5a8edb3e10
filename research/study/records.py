"""The records of a study's runs, and the numbers the protocol asks of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.study.plan import FINAL, LINEAR, Comparison, Selection
from training.evaluation.compare import bootstrap, paired_t

Record = dict[str, Any]


def read(path: Path) -> Record:
    return json.loads(path.read_text())


def read_all(folder: Path) -> list[Record]:
    """All records of a folder, by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def accuracies(record: Record, role: str, task: str = LINEAR, **wanted: Any) -> dict[str, float]:
    """Set -> what a run has in a task, of the sets of one role; empty where it diverged.

    Of few-shot tasks every number of shots counts for itself: "flags, 5-shot".

    Args:
        wanted: further fields of a result, e.g. shots=5, which then is not named.
    """
    return {name: r["value"] for name, r in _of_task(record, role, task, **wanted).items()}


def trivial_accuracies(record: Record, role: str, task: str = LINEAR) -> dict[str, float]:
    """Set -> what knowing nothing has in a task, of the sets of one role."""
    return {name: r["trivial"] for name, r in _of_task(record, role, task).items()}


def _of_task(record: Record, role: str, task: str, **wanted: Any) -> dict[str, Record]:
    return {
        r["set"].rpartition("/")[2]
        + (f", {r['shots']}-shot" if "shots" in r and "shots" not in wanted else ""): r
        for r in record.get("results", ())
        if r["task"] == task
        and r["set"].startswith(f"{role}/")
        and all(r.get(name) == value for name, value in wanted.items())
    }


def mean_accuracy(record: Record, role: str, task: str = LINEAR) -> float:
    """Over the sets of a role, and over shots; minus infinity of a run that diverged."""
    found = accuracies(record, role, task)
    return sum(found.values()) / len(found) if found else -math.inf


def correct(record: Record, name: str) -> np.ndarray:
    """(N,) 100 or 0 of each test image of a final set, by the linear probe."""
    wanted = (LINEAR, f"{FINAL}/{name}")
    one = next(r for r in record["results"] if (r["task"], r["set"]) == wanted)
    return 100.0 * np.array([digit == "1" for digit in one["correct"]])


@dataclass(frozen=True)
class Candidate:
    """A set that a selection looked at; accuracies of the linear probe in percent."""

    images: int
    untrained: float
    baseline: float
    chosen: bool


def candidates(selection: Selection, records: Sequence[Record]) -> dict[str, Candidate]:
    """Place, e.g. final/flags -> what the selection found; empty before both its runs are in."""

    def probes(arm: str) -> dict[str, Record]:
        found = [r for r in records if (r["phase"], r["arm"]) == (selection.phase, arm)]
        return {r["set"]: r for f in found for r in f["results"] if r["task"] == LINEAR}

    without, with_ = probes(selection.untrained), probes(selection.baseline)
    found = {}
    for place in without.keys() & with_.keys():
        images, a, b = len(with_[place]["correct"]), without[place]["value"], with_[place]["value"]
        kept = images >= selection.images and b - a >= selection.points
        found[place] = Candidate(images, a, b, kept)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Pairs:
    """The runs of a comparison that have the same seed, neither of which diverged.

    Args:
        without, with_: records in the order of the seeds.
        diverged: names of runs that did.
        ended: pairs whose runs both have a record, those that diverged too.
    """

    without: list[Record]
    with_: list[Record]
    diverged: list[str]
    ended: int

    @classmethod
    def of(cls, comparison: Comparison, records: Sequence[Record]) -> Pairs:
        def side(wanted: tuple[str, str]) -> dict[int, Record]:
            found = [r for r in records if (r["phase"], r["arm"]) == wanted]
            return {r["seed"]: r for r in sorted(found, key=lambda r: r["seed"])}

        a, b = side(comparison.without), side(comparison.with_)
        both = [seed for seed in a if seed in b]
        lost = [r["name"] for s in both for r in (a[s], b[s]) if "diverged" in r]
        whole = [s for s in both if "diverged" not in a[s] and "diverged" not in b[s]]
        return cls([a[s] for s in whole], [b[s] for s in whole], lost, len(both))

    def __len__(self) -> int:
        return len(self.without)

    @property
    def sides(self) -> tuple[list[Record], list[Record]]:
        return self.without, self.with_

    def sets(self, role: str, **wanted: Any) -> list[str]:
        return list(accuracies(self.without[0], role, **wanted)) if len(self) else []

    def difference(self, values: Sequence[Sequence[float]]) -> Difference:
        """(2, pairs) values without and with -> their paired difference."""
        a, b = np.asarray(values, float)
        interval = paired_t((b - a).tolist()) if len(a) > 1 else None
        return Difference(float(a.mean()), float(b.mean()), float((b - a).mean()), interval)

    def on_named(self, role: str, name: str, task: str = LINEAR, **wanted: Any) -> Difference:
        """Of one set, as `sets` names it."""
        sides = ([accuracies(r, role, task, **wanted)[name] for r in s] for s in self.sides)
        return self.difference(list(sides))

    def on_all(self, role: str, task: str = LINEAR) -> Difference:
        """Of the mean over the sets: on the final sets and the task of an endpoint, that one."""
        return self.difference([[mean_accuracy(r, role, task) for r in s] for s in self.sides])

    def over_images(self, names: Sequence[str]) -> tuple[float, float] | None:
        """95% bootstrap interval over test images of the mean difference on these final sets.

        None where one of them is no mean over images.

        The seeds are those there are; images are resampled within each set, and each set counts
        the same.
        """
        metrics = {r["metric"] for r in _of_task(self.without[0], FINAL, LINEAR).values()}
        if metrics != {"accuracy"}:
            return None
        differences = [
            np.mean([correct(b, name) for b in self.with_], axis=0)
            - np.mean([correct(a, name) for a in self.without], axis=0)
            for name in names
        ]
        groups = np.repeat(np.arange(len(names)), [len(d) for d in differences])
        return bootstrap(np.concatenate(differences), groups)


@dataclass(frozen=True)
class Difference:
    """Means without and with, their difference, its 95% paired t-interval over seeds."""

    without: float
    with_: float
    difference: float
    interval: tuple[float, float] | None
