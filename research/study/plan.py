"""The plan of a study as a TOML file: arms, phases, and what each run is measured on.

    [settings]                  fields of training.run.settings.Settings that all runs share
    [arms.NAME]                 kind, rate_of, and `settings` of its own
    [measures.NAME]             a list of {tasks, sets, queries}
    [[phases]]                  name, arms, seeds, measures, and `rates` where it is a tuning
    [[comparisons]]             title, and (phase, arm) `without` and `with`

An arm's learning rate is the best of the phase that tuned the arm `rate_of` names.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from augself_hub.errors import UsageError

PRETRAINED, SHUFFLED, UNTRAINED = "pretrained", "shuffled", "untrained"
HISTOGRAM, GRAY_HISTOGRAM = "colour histogram", "gray histogram"
LINEAR = "linear probe"  # the task of the primary endpoint, as results name it
TRAINED = (PRETRAINED, SHUFFLED)
KINDS = (*TRAINED, UNTRAINED, HISTOGRAM, GRAY_HISTOGRAM)


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Args:
        kind: pretrained; shuffled, whose AugSelf targets belong to other pairs; untrained; or a
            histogram, which is no network.
        rate_of: the arm whose tuned learning rate it takes; None: its own.
        settings: fields of Settings.
    """

    kind: str = PRETRAINED
    rate_of: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown kind of arm {self.kind!r}: use {', '.join(KINDS)}")


@dataclass(frozen=True)
class Measure:
    """Tasks of `augself evaluate`, on sets below the corpus (shell patterns).

    Args:
        queries: of a class in a few-shot task, beside its shots.
    """

    tasks: list[str]
    sets: list[str]
    queries: int = 16

    def places(self, corpus: Path) -> list[Path]:
        """The sets below the corpus whose place, e.g. final/flags, is of one of the patterns.

        Raises:
            UsageError: there is none.
        """
        folders = sorted(path for path in corpus.glob("*/*") if path.is_dir())
        names = {path: path.relative_to(corpus).as_posix() for path in folders}
        found = [path for path in folders if any(fnmatchcase(names[path], p) for p in self.sets)]
        if not found:
            raise UsageError(
                f"no set below {corpus} is of {', '.join(self.sets)}: build it as docs/protocol.md "
                "says"
            )
        return found


@dataclass(frozen=True)
class Phase:
    """Runs that may be made in any order.

    Args:
        measures: name of what is measured of each.
        rates: of a tuning, base learning rates, each with every arm and seed.
    """

    name: str
    arms: list[str]
    seeds: list[int]
    measures: str
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run. `rate` is None where nothing is trained."""

    phase: str
    arm: str
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.phase}-{self.arm}-seed{self.seed}{rate}"


@dataclass(frozen=True)
class Comparison:
    """Two arms whose runs are paired by their seeds.

    Args:
        title: what it answers.
        without, with_: (phase, arm) of each side.
    """

    title: str
    without: tuple[str, str]
    with_: tuple[str, str]


Score = Callable[[Run], float]
"""A tuning run -> what the arm keeps the best of."""


@dataclass(frozen=True)
class Plan:
    """A whole study. The first comparison is the primary one."""

    settings: dict[str, Any]
    arms: dict[str, Arm]
    measures: dict[str, list[Measure]]
    phases: list[Phase]
    comparisons: list[Comparison]

    def __post_init__(self) -> None:
        for phase in self.phases:
            for arm in phase.arms:
                if arm not in self.arms:
                    raise UsageError(f"phase {phase.name} asks for the unknown arm {arm!r}")
            if phase.measures not in self.measures:
                raise UsageError(f"phase {phase.name} asks for unknown measures {phase.measures!r}")

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def runs(self, phase: Phase, score: Score) -> Iterator[Run]:
        """The runs of a phase, all arms of a seed one after the other.

        Args:
            score: of a tuning run; asked only where a phase takes its rates from a tuning.

        Raises:
            UsageError: no phase tunes an arm.
        """
        for seed, arm in itertools.product(phase.seeds, phase.arms):
            for rate in phase.rates or [self.rate(arm, score)]:
                yield Run(phase.name, arm, seed, rate)

    def rate(self, arm: str, score: Score) -> float | None:
        """The tuned rate: the best mean score over the seeds, the lower of equals.

        Raises:
            UsageError: no phase tunes this arm's rate, or the arm diverged at every rate.
        """
        if self.arms[arm].kind not in TRAINED:
            return None
        tuned = self.arms[arm].rate_of or arm
        phase = next((p for p in self.phases if p.rates and tuned in p.arms), None)
        if phase is None:
            raise UsageError(f"no phase tunes {tuned!r}: give arm {arm!r} a rate_of that is tuned")

        def mean(rate: float) -> float:
            scores = [score(Run(phase.name, tuned, seed, rate)) for seed in phase.seeds]
            return sum(scores) / len(scores)

        best = max(sorted(phase.rates), key=mean)
        if mean(best) == -math.inf:
            raise UsageError(f"{tuned!r} diverged at every rate of {phase.name}: give lower rates")
        return best


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UsageError: not TOML, or something in it that is unknown.
    """
    try:
        data = tomllib.loads(path.read_text())
        return Plan(
            settings=data["settings"],
            arms={name: Arm(**arm) for name, arm in data["arms"].items()},
            measures={
                name: [Measure(**m) for m in some] for name, some in data["measures"].items()
            },
            phases=[Phase(**phase) for phase in data["phases"]],
            comparisons=[
                Comparison(c["title"], tuple(c["without"]), tuple(c["with"]))
                for c in data["comparisons"]
            ],
        )
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is not a plan: {error}") from error
