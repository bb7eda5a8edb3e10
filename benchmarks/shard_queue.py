"""How long a fleet takes for a table: a cost model, and a simulation of the queue to check it.

    python benchmarks/shard_queue.py

Prints, for growing fleets, what the model foretells and what the simulation takes, with stragglers
and failures; research/cost.md explains the figures, which are measured where it says so.

The queue is that of `serving.fleet.ray_extraction`: the driver hands a worker its next shard when
it is done with the one before, one at a time; a worker that dies starts its shard anew after a
restart. Both sides know the same fleet and nothing of each other.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class Fleet:
    """Who does what. Times are in seconds.

    Args:
        workers: one core each. rate: images a second of one that is not slow.
        shards: of the source. images: in each.
        image_bytes: of an encoded image. bandwidth: of the storage, bytes a second, all readers
            together.
        hand_out: the driver's time for one shard; nobody else may be served meanwhile.
        begin, finish: the driver's alone, a shard, before the first and after the last.
        start: from the first sign of a worker to its first image; also after it died.
        slow: share of the workers that are slow. slowness: how many times.
        spread: of a shard's time, as the sigma of a lognormal number of mean 1.
        between_failures: of one worker, on average.
    """

    workers: int
    rate: float
    shards: int
    images: int = 10_000
    image_bytes: float = 0.0
    bandwidth: float = math.inf
    hand_out: float = 0.0
    begin: float = 0.0
    finish: float = 0.0
    start: float = 0.0
    slow: float = 0.0
    slowness: float = 1.0
    spread: float = 0.0
    between_failures: float = math.inf

    @property
    def ideal(self) -> float:
        """Were there nothing but images and cores."""
        return self.shards * self.images / (self.workers * self.rate)

    def shard_seconds(self, slowness: float = 1.0) -> float:
        """One shard on a worker so slow, with its share of the storage."""
        share = self.bandwidth / self.workers
        return self.images * max(slowness / self.rate, self.image_bytes / share)


class Forecast(NamedTuple):
    """The parts of the model's answer, in seconds."""

    workers: float
    driver: float
    tail: float
    fixed: float

    @property
    def total(self) -> float:
        return max(self.workers, self.driver) + self.tail + self.fixed


def forecast(fleet: Fleet) -> Forecast:
    """The cost model.

    A shard that takes d is begun anew after every failure, so with failures M apart it takes
    (M + start)(exp(d/M) - 1) on average. When the queue is empty every worker is somewhere in its
    last shard, half of it done on average, and the slowest may just have begun. It knows nothing of
    luck: where a worker gets but a few shards, the last ones take longer than this.
    """
    usual = _with_failures(fleet, fleet.shard_seconds())
    slowest = _with_failures(fleet, fleet.shard_seconds(fleet.slowness)) if fleet.slow else usual
    shards_a_second = fleet.workers * ((1 - fleet.slow) / usual + fleet.slow / slowest)
    return Forecast(
        workers=fleet.shards / shards_a_second,
        driver=fleet.shards * fleet.hand_out,
        tail=slowest - usual / 2,
        fixed=fleet.start + fleet.shards * (fleet.begin + fleet.finish),
    )


def _with_failures(fleet: Fleet, seconds: float) -> float:
    """So much work, begun anew after every failure."""
    if math.isinf(fleet.between_failures):
        return seconds
    apart = fleet.between_failures
    return (apart + fleet.start) * math.expm1(seconds / apart)


class Outcome(NamedTuple):
    """What a simulated run came to.

    Args:
        seconds: from the start to the last file. failures: workers that died.
        lost: share of the workers' time that went into shards begun in vain.
        tail: seconds from the last hand-out to the last part.
    """

    seconds: float
    failures: int
    lost: float
    tail: float


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """One run, event by event."""
    chance = random.Random(seed)
    slow = round(fleet.slow * fleet.workers)
    pace = [fleet.slowness if worker < slow else 1.0 for worker in range(fleet.workers)]
    free = [(fleet.start, worker) for worker in range(fleet.workers)]  # a heap: when, who
    driver = handed_out = last = lost = 0.0
    failures = 0
    for _ in range(fleet.shards):
        asked, worker = heapq.heappop(free)
        driver = handed_out = max(driver, asked) + fleet.hand_out
        wanted = fleet.shard_seconds(pace[worker]) * _spread(chance, fleet.spread)
        done, deaths = _worked(chance, fleet, handed_out, wanted)
        failures += deaths
        lost += done - handed_out - wanted
        last = max(last, done)
        heapq.heappush(free, (done, worker))
    fixed = fleet.shards * (fleet.begin + fleet.finish)
    return Outcome(last + fixed, failures, lost / (fleet.workers * last), last - handed_out)


def _worked(chance: random.Random, fleet: Fleet, began: float, wanted: float) -> tuple[float, int]:
    """When a worker is done with so much work, and how often it died over it."""
    deaths = 0
    while (lives := _exponential(chance, fleet.between_failures)) < wanted:
        began += lives + fleet.start
        deaths += 1
    return began + wanted, deaths


def _exponential(chance: random.Random, mean: float) -> float:
    return math.inf if math.isinf(mean) else chance.expovariate(1 / mean)


def _spread(chance: random.Random, sigma: float) -> float:
    """A lognormal number of mean 1."""
    return chance.lognormvariate(-(sigma**2) / 2, sigma)


# -- What research/cost.md shows ------------------------------------------------------------------

DAY = 86_400.0
CORES = 16  # of a node
# A billion 500 x 375 JPEGs through ResNet-18 at 224 px; research/cost.md says where each is from.
BILLION = Fleet(
    workers=CORES,
    rate=20.2,
    shards=100_000,
    images=10_000,
    image_bytes=42_700,
    bandwidth=20e9,
    hand_out=0.0016,
    begin=0.001,
    finish=0.002,
    start=15.0,
    slow=0.02,
    slowness=3.0,
    spread=0.1,
    between_failures=30 * DAY,
)
NODES = (1, 10, 100, 300, 1_000, 2_000, 4_000)
HARM = {
    "as above": {},
    "no stragglers, no failures": {"slow": 0.0, "between_failures": math.inf},
    "a tenth of the workers ten times slower": {"slow": 0.1, "slowness": 10.0},
    "every worker dies once in three hours": {"between_failures": DAY / 8},
    "shards of 100,000 images": {"shards": 10_000, "images": 100_000},
    "shards of 2,048 images (five tables)": {"shards": 488_282, "images": 2_048},
}


def main() -> None:
    print("| nodes | foretold | simulated | of linear | lost most to |\n|---|---|---|---|---|")
    for nodes in NODES:
        print(line(f"{nodes:,}", replace(BILLION, workers=nodes * CORES)))
    print(
        "\n| 1,000 nodes | foretold | simulated | of linear | lost most to |\n|---|---|---|---|---|"
    )
    for name, change in HARM.items():
        print(line(name, replace(BILLION, workers=1_000 * CORES, **change)))


def line(name: str, fleet: Fleet) -> str:
    told, ran = forecast(fleet), simulate(fleet)
    share = fleet.ideal / ran.seconds
    cells = [name, hours(told.total), hours(ran.seconds), f"{share:.0%}", loss(fleet, told)]
    return f"| {' | '.join(cells)} |"


def loss(fleet: Fleet, told: Forecast) -> str:
    """What takes most of the time beyond the ideal."""
    short = fleet.shard_seconds() > fleet.images / fleet.rate
    lost = {
        "storage" if short else "slow and dying workers": told.workers - fleet.ideal,
        "the driver, handing out": max(0.0, told.driver - told.workers),
        "the tail": told.tail,
        "the driver, before and after": told.fixed,
    }
    return max(lost, key=lost.__getitem__)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds < 10 * DAY else f"{seconds / DAY:.0f} days"


if __name__ == "__main__":
    main()
