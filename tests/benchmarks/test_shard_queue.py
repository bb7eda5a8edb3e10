"""The simulated queue is right where the answer is known, the cost model near it in its range."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

_SPEC = spec_from_file_location(
    "shard_queue", Path(__file__).parents[2] / "benchmarks/shard_queue.py"
)
queue = module_from_spec(_SPEC)
sys.modules["shard_queue"] = queue  # where its dataclasses look for their names
_SPEC.loader.exec_module(queue)
Fleet, forecast, simulate = queue.Fleet, queue.forecast, queue.simulate

EVEN = Fleet(workers=4, rate=10, shards=12, images=100)  # a shard takes 10 s


def test_even_workers_take_turns():
    """Twelve shards on four workers are three turns; a thirteenth shard is a fourth turn."""
    assert simulate(EVEN).seconds == pytest.approx(30) == EVEN.ideal
    assert simulate(replace(EVEN, shards=13)).seconds == pytest.approx(40)
    assert simulate(replace(EVEN, shards=13)).tail == pytest.approx(10)
    apart = replace(EVEN, start=5, begin=0.1, finish=0.2)
    assert simulate(apart).seconds == pytest.approx(5 + 30 + 12 * 0.3)


def test_a_slow_worker_takes_fewer_shards():
    """One of two is three times slower: it makes one shard while the other makes three."""
    pair = replace(EVEN, workers=2, shards=4, slow=0.5, slowness=3)
    assert simulate(pair).seconds == pytest.approx(30)
    assert simulate(replace(pair, shards=5)).seconds == pytest.approx(60)  # it got the last one


def test_the_driver_serves_one_at_a_time():
    slow = replace(EVEN, workers=1000, shards=1000, hand_out=0.5)
    assert simulate(slow).seconds == pytest.approx(1000 * 0.5 + 10)
    assert queue.loss(slow, forecast(slow)) == "the driver, handing out"
    assert forecast(slow).total == pytest.approx(simulate(slow).seconds, rel=0.02)


def test_the_storage_gives_what_it_has():
    """Four workers want 4 x 10 images a second of 1000 bytes; half of that is there."""
    thin = replace(EVEN, image_bytes=1000, bandwidth=20_000)
    assert simulate(thin).seconds == pytest.approx(60)
    assert simulate(replace(thin, slow=0.25, slowness=2)).seconds == pytest.approx(60)


def test_a_worker_that_dies_begins_its_shard_anew():
    """On average (M + start)(exp(d/M) - 1) a shard: a classic result, here by many trials."""
    mortal = Fleet(workers=1, rate=10, shards=4000, images=100, between_failures=8, start=3)
    run = simulate(mortal)
    assert run.seconds / 4000 == pytest.approx((8 + 3) * math.expm1(10 / 8), rel=0.05)
    assert run.failures / 4000 == pytest.approx(math.expm1(10 / 8), rel=0.05)
    assert run.lost == pytest.approx(1 - 10 / (run.seconds / 4000), rel=0.01)


def test_a_shard_s_time_spreads_around_its_mean():
    runs = [simulate(replace(EVEN, workers=1, shards=300, spread=0.5), s).seconds for s in range(9)]
    assert statistics.mean(runs) == pytest.approx(3000, rel=0.03)
    assert len(set(runs)) == 9
    assert simulate(replace(EVEN, spread=0.5), 3) == simulate(replace(EVEN, spread=0.5), 3)


REAL = replace(queue.BILLION, shards=4000)


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 16},
        {"workers": 200},
        {"workers": 200, "slow": 0.1, "slowness": 5.0},
        {"workers": 200, "between_failures": 6000.0},
        {"workers": 200, "slow": 0.0, "spread": 0.5},
        {"workers": 200, "bandwidth": 1e8},
        {"workers": 200, "hand_out": 4.0},
    ],
)
def test_the_model_foretells_the_queue(change):
    """Within a tenth, while a worker gets twenty shards: by formula here, by events there."""
    fleet = replace(REAL, **change)
    assert fleet.shards >= 20 * fleet.workers
    runs = [simulate(fleet, seed).seconds for seed in range(3)]
    assert forecast(fleet).total == pytest.approx(statistics.mean(runs), rel=0.1)


def test_a_model_without_its_tail_would_be_wrong(monkeypatch):
    """The comparison can fail: half of the queue's cost here is its end."""
    fleet = replace(REAL, workers=1000, slow=0.05, slowness=4.0)
    told, ran = forecast(fleet), simulate(fleet).seconds
    assert told.total == pytest.approx(ran, rel=0.2)
    assert told._replace(tail=0.0).total < 0.7 * ran
