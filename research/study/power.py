"""How many pairs of runs a study needs, from the records of an earlier one.

The differences of an endpoint over n paired seeds are taken as normal; the test is the two-sided
paired t-test at 5%, whose power is that of the noncentral t distribution. Their standard deviation
comes from the earlier study's pairs, without the sets that the next one leaves out, and is given
twice: as it was, and as it would be if sets vary independently and there are as many as planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from research.study.plan import FEW_SHOT, FINAL, LINEAR, Comparison
from research.study.records import Pairs, Record, accuracies

PAIRS = (8, 10, 12, 16)
EFFECTS = {FEW_SHOT: (0.5, 1.0), LINEAR: (1.0, 1.5, 2.0)}  # points
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Over the pairs of a study.

    Args:
        mean, deviation: of the paired differences of the mean over the sets, points.
        sets: how many there were. pairs: of runs.
    """

    mean: float
    deviation: float
    sets: int
    pairs: int

    def with_sets(self, planned: int) -> float:
        """The deviation that as many sets would have, if each varied for itself."""
        return self.deviation * (self.sets / planned) ** 0.5


def spread(
    comparison: Comparison, records: Sequence[Record], task: str, left_out: Sequence[str]
) -> Spread:
    """Of the mean over the final sets of a task, without those left out; over shots, too."""
    pairs = Pairs.of(comparison, records)

    def kept(record: Record) -> dict[str, float]:
        found = accuracies(record, FINAL, task)
        return {name: v for name, v in found.items() if name.partition(",")[0] not in left_out}

    without, with_ = (np.array([[*kept(r).values()] for r in side]) for side in pairs.sides)
    differences = (with_ - without).mean(axis=1)
    sets = {name.partition(",")[0] for name in kept(pairs.without[0])}
    deviation = float(differences.std(ddof=1))
    return Spread(float(differences.mean()), deviation, len(sets), len(pairs))


def power(effect: float, deviation: float, pairs: int, level: float = LEVEL) -> float:
    """The chance that the interval over `pairs` seeds lies above zero if `effect` is the truth."""
    bound = stats.t.ppf(1 - level / 2, pairs - 1)
    return float(stats.nct.sf(bound, pairs - 1, effect * pairs**0.5 / deviation))


def table(
    comparison: Comparison, records: Sequence[Record], left_out: Sequence[str], sets: int
) -> str:
    """Markdown: the power of both endpoints with so many final sets."""
    head = ["endpoint", "spread", "sd, points", "true difference", *(f"n = {n}" for n in PAIRS)]
    lines = [head, ["---"] * len(head)]
    for task in EFFECTS:
        found = spread(comparison, records, task, left_out)
        for name, deviation in (
            (f"as with {found.sets} sets", found.deviation),
            (f"if {sets} vary independently", found.with_sets(sets)),
        ):
            lines += _rows(task, name, deviation)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(task: str, name: str, deviation: float) -> Iterable[list[str]]:
    for effect in EFFECTS[task]:
        powers = [f"{100 * power(effect, deviation, n):.0f}%" for n in PAIRS]
        yield [task, name, f"{deviation:.2f}", f"+{effect:g}", *powers]
