"""The plan of a study as a TOML file: arms, phases, and what each run is measured on.

    title, protocol             of the report, and the page beside it
    threads, device             of a run; 0 threads: as many as there are
    hidden                      the report shows no final set before all pairs are in
    [settings]                  fields of training.run.settings.Settings that all runs share, and
                                `recipe`, whose fields they replace; {corpus} in `data` is --corpus
    [arms.NAME]                 kind, rate_of, and `settings` of its own
    [measures.NAME]             a list of {tasks, sets, queries}
    [[phases]]                  name, arms, seeds, measures, and `rates` where it is a tuning
    [selection]                 phase, baseline, untrained, points, images: which candidates
                                `chosen` measures keep
    [[endpoints]]               name, task, no_loss: what decides, in this order
    [[comparisons]]             title, and (phase, arm) `without` and `with`

An arm's learning rate is the best of the phase that tuned the arm `rate_of` names, or of all arms
of that phase where it is `common`; where a recipe says the rate, nothing is tuned.
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
from training.evaluation.datasets import check_name

PRETRAINED, SHUFFLED, UNTRAINED = "pretrained", "shuffled", "untrained"
HISTOGRAM, GRAY_HISTOGRAM = "colour histogram", "gray histogram"
LINEAR, FEW_SHOT, KNN = "linear probe", "few-shot", "kNN"  # as results name them
DEVELOPMENT, FINAL, SECONDARY, GENERATED = "development", "final", "secondary", "generated"
TRAINED = (PRETRAINED, SHUFFLED)
ARM_KINDS = (*TRAINED, UNTRAINED, HISTOGRAM, GRAY_HISTOGRAM)


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
        if self.kind not in ARM_KINDS:
            raise UsageError(f"unknown kind of arm {self.kind!r}: use {', '.join(ARM_KINDS)}")


@dataclass(frozen=True)
class Measure:
    """Tasks of `augself evaluate`, on sets below the corpus.

    Args:
        sets: shell patterns of folders, e.g. final/*, or names that `augself evaluate` knows.
        queries: of a class in a few-shot task, beside its shots.
        chosen: only those of the sets that the plan's selection keeps.
    """

    tasks: list[str]
    sets: list[str]
    queries: int = 16
    chosen: bool = False

    def places(self, corpus: Path) -> dict[str, str]:
        """Place, e.g. final/flags -> how `augself evaluate` is given it.

        A data set that has a name is a final one.

        Raises:
            UsageError: a pattern has no set there; a name of no data set.
        """
        folders = sorted(path for path in corpus.glob("*/*") if path.is_dir())
        names = {path.relative_to(corpus).as_posix(): f"folder:{path}" for path in folders}
        found: dict[str, str] = {}
        for pattern in self.sets:
            if "/" not in pattern:
                check_name(pattern)
                found[f"{FINAL}/{pattern}"] = pattern
                continue
            some = {name: given for name, given in names.items() if fnmatchcase(name, pattern)}
            if not some:
                raise UsageError(
                    f"no set below {corpus} is of {pattern}: build it as research/data.md says"
                )
            found |= some
        return found


@dataclass(frozen=True)
class Phase:
    """Runs that may be made in any order.

    Args:
        measures: name of what is measured of each.
        rates: of a tuning, base learning rates, each with every arm and seed.
        common: all its arms keep one rate, that of the best mean over them.
        tunes: whether arms keep the best of these rates; else the runs are for something else.
    """

    name: str
    arms: list[str]
    seeds: list[int]
    measures: str
    rates: list[float] = field(default_factory=list)
    common: bool = False
    tunes: bool = True


@dataclass(frozen=True)
class Run:
    """One run. `rate` is None where nothing is trained."""

    phase: str
    arm: str
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        return f"{self.phase}-{self.folder}"

    @property
    def folder(self) -> str:
        """Where it is trained: two phases that ask for the same run share it."""
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.arm}-seed{self.seed}{rate}"


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


@dataclass(frozen=True)
class Selection:
    """Which candidates become final sets; what it asks says nothing of what is compared.

    Args:
        phase: of the runs it looks at. baseline, untrained: arms of that phase.
        points: by which the baseline's linear probe is above the untrained encoder's, at least.
        images: a set has to test on, at least.
    """

    phase: str
    baseline: str
    untrained: str
    points: float
    images: int


@dataclass(frozen=True)
class Endpoint:
    """What decides: the mean over all a task has on the final sets, paired by seed.

    Args:
        name: for people.
        task: as results name it.
        no_loss: no single set's interval may lie wholly below zero.
    """

    name: str
    task: str
    no_loss: bool = False


FIRST_ENDPOINT = Endpoint("linear probe", LINEAR, no_loss=True)
Score = Callable[[Run], float]
"""A tuning run -> what the arm keeps the best of."""


@dataclass(frozen=True)
class Plan:
    """A whole study. The first comparison is the primary one, which the endpoints decide.

    Args:
        endpoints: in order; one is asked only where those before it met their bars.
    """

    settings: dict[str, Any]
    arms: dict[str, Arm]
    measures: dict[str, list[Measure]]
    phases: list[Phase]
    comparisons: list[Comparison]
    endpoints: list[Endpoint] = field(default_factory=lambda: [FIRST_ENDPOINT])
    title: str = "The study"
    protocol: str = "protocol.md"
    selection: Selection | None = None
    hidden: bool = False
    threads: int = 1
    device: str = "cpu"

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
            trained = self.arms[arm].kind in TRAINED
            for rate in phase.rates if trained and phase.rates else [self.rate(arm, score)]:
                yield Run(phase.name, arm, seed, rate)

    def rate(self, arm: str, score: Score) -> float | None:
        """The tuned rate: the best mean score over the seeds, the lower of equals; None: no rate.

        Raises:
            UsageError: no phase tunes this arm's rate, or the arm diverged at every rate.
        """
        if self.arms[arm].kind not in TRAINED:
            return None
        tuned = self.arms[arm].rate_of or arm
        phase = next((p for p in self.phases if p.rates and p.tunes and tuned in p.arms), None)
        if phase is None and "recipe" in {**self.settings, **self.arms[arm].settings}:
            return None
        if phase is None:
            raise UsageError(f"no phase tunes {tuned!r}: give arm {arm!r} a rate_of that is tuned")
        arms = phase.arms if phase.common else [tuned]

        def mean(rate: float) -> float:
            runs = itertools.product(arms, phase.seeds)
            scores = [score(Run(phase.name, some, seed, rate)) for some, seed in runs]
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
        data["arms"] = {name: Arm(**arm) for name, arm in data["arms"].items()}
        data["measures"] = {n: [Measure(**m) for m in some] for n, some in data["measures"].items()}
        data["phases"] = [Phase(**phase) for phase in data["phases"]]
        data["comparisons"] = [
            Comparison(c["title"], tuple(c["without"]), tuple(c["with"]))
            for c in data["comparisons"]
        ]
        if "selection" in data:
            data["selection"] = Selection(**data["selection"])
        if "endpoints" in data:
            data["endpoints"] = [Endpoint(**endpoint) for endpoint in data["endpoints"]]
        return Plan(**data)
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is not a plan: {error}") from error
