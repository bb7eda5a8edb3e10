"""The batcher's rules, each with an engine that can be held, that fails, or that dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serving.inference import batcher as batching
from serving.inference.batcher import Batcher
from serving.inference.errors import Draining, QueueFull, WorkerLost
from serving.metrics import Metrics

BAD, DEADLY = 254, 255


class HeldEngine:
    """Features are the first pixel. Runs wait at `gate`; BAD fails, DEADLY kills the thread."""

    name, lanes = "held", 1
    preprocessing = SimpleNamespace(size=2)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.runs: list[list[int]] = []

    def features(self, images) -> np.ndarray:
        values = [int(image[0, 0, 0]) for image in images]
        if values == [0]:  # the batcher's own check
            return np.zeros((1, 1), np.float32)
        self.entered.set()
        self.gate.wait(10)
        self.runs.append(values)
        if DEADLY in values:
            raise SystemExit
        if BAD in values:
            raise ValueError("bad image")
        return np.array(values, np.float32)[:, None]


class LanedEngine(HeldEngine):
    """With two lanes: what runs there is in `lane_runs`, and waits at `lane_gate` or dies."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.lane_gate, self.lane_runs = threading.Event(), []

    def features_in_lane(self, images) -> np.ndarray:
        values = [int(image[0, 0, 0]) for image in images]
        if values != [0]:
            self.lane_runs.append(values)
        if DEADLY in values:
            raise SystemExit
        if values != [0]:
            self.lane_gate.wait(10)
        return np.array(values, np.float32)[:, None]


def images(*values: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), value, np.uint8) for value in values]


@pytest.fixture
def engine() -> HeldEngine:
    return HeldEngine()


@pytest.fixture
def batcher(engine):
    batcher = Batcher(engine, Metrics(), max_queue_size=10, max_batch_size=4)
    batcher.start()
    yield batcher
    engine.gate.set()
    batcher.drain(5)


@pytest.fixture
def busy(engine, batcher):
    """The batcher with its worker held in a run of image 1."""
    first = batcher.submit(images(1))
    assert engine.entered.wait(5)
    return SimpleNamespace(first=first, submit=batcher.submit, batcher=batcher)


def test_batches_count_images_and_keep_requests_whole(engine, busy):
    futures = [busy.submit(images(*v)) for v in ([2, 3], [4], [5, 6], [7])]
    engine.gate.set()
    wait(futures, 5)
    assert engine.runs == [[1], [2, 3, 4], [5, 6, 7]]
    assert [f.result()[:, 0].tolist() for f in futures] == [[2, 3], [4], [5, 6], [7]]


def test_a_request_larger_than_a_batch_runs_by_itself(engine, busy):
    large, small = busy.submit(images(*range(2, 8))), busy.submit(images(8))
    engine.gate.set()
    wait([large, small], 5)
    assert engine.runs == [[1], [2, 3, 4, 5, 6, 7], [8]]


def test_an_idle_worker_does_not_wait_for_company(engine, batcher):
    engine.gate.set()
    seconds = []
    for number in range(1, 6):
        started = time.monotonic()
        batcher.submit(images(number)).result()
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.5  # others' work may hold up the rest
    assert engine.runs == [[1], [2], [3], [4], [5]]


def test_a_full_queue_refuses_and_does_not_grow(engine, busy):
    futures = [busy.submit(images(*[2] * 5)), busy.submit(images(*[3] * 5))]
    with pytest.raises(QueueFull):
        busy.submit(images(4))
    engine.gate.set()
    wait(futures, 5)
    assert busy.batcher.submit(images(5)).result().tolist() == [[5]]


def test_a_failing_request_fails_alone(engine, busy):
    good, bad, other = (busy.submit(images(v)) for v in (2, BAD, 3))
    engine.gate.set()
    assert good.result(5).tolist() == [[2]]
    assert other.result(5).tolist() == [[3]]
    with pytest.raises(ValueError, match="bad image"):
        bad.result(5)
    assert busy.batcher.ready


def test_a_client_that_left_is_dropped_and_counted(engine, busy):
    gone, stays = busy.submit(images(2)), busy.submit(images(3))
    assert gone.cancel()
    engine.gate.set()
    assert stays.result(5).tolist() == [[3]]
    assert engine.runs == [[1], [3]]
    assert (
        'augself_cancelled_requests_total{model="held"} 1.0' in busy.batcher.metrics.text().decode()
    )


def test_a_dead_worker_fails_all_who_wait_and_turns_ready_off(engine, busy):
    running, queued = busy.submit(images(DEADLY)), busy.submit(images(*[3] * 4))
    engine.gate.set()
    for future in (running, queued):
        with pytest.raises(WorkerLost):
            future.result(5)
    with pytest.raises(WorkerLost):
        busy.submit(images(4))
    assert not busy.batcher.ready


@pytest.fixture
def laned():
    """A batcher with two lanes, held in a run of image 1 that has all threads to itself."""
    engine = LanedEngine()
    batcher = Batcher(engine, Metrics(), max_batch_size=8)
    batcher.start()
    first = batcher.submit(images(1))
    assert engine.entered.wait(5)
    yield SimpleNamespace(engine=engine, submit=batcher.submit, batcher=batcher, first=first)
    engine.gate.set(), engine.lane_gate.set()
    batcher.drain(5)


def test_requests_that_can_fill_the_lanes_share_them_out(laned):
    futures = [laned.submit(images(*v)) for v in ([2], [3, 4], [5])]
    laned.engine.gate.set()
    while len(laned.engine.lane_runs) < 2:
        time.sleep(0.01)
    assert laned.engine.lane_runs == [[2], [3, 4]] or laned.engine.lane_runs == [[3, 4], [2]]
    laned.engine.lane_gate.set()
    assert [f.result(5)[:, 0].tolist() for f in futures] == [[2], [3, 4], [5]]
    assert laned.first.result(0).tolist() == [[1]] and laned.engine.runs[0] == [1]


def test_a_large_request_waits_for_the_lanes_and_gets_all_threads(laned):
    small = [laned.submit(images(v)) for v in (2, 3)]  # one lane takes both
    large, late = laned.submit(images(*range(4, 10))), laned.submit(images(10))
    laned.engine.gate.set()
    while not laned.engine.lane_runs:
        time.sleep(0.01)
    time.sleep(0.1)  # enough to use the free lane, if that were allowed
    laned.engine.lane_gate.set()
    wait([*small, large, late], 5)
    assert laned.engine.lane_runs == [[2, 3]]
    assert laned.engine.runs == [[1], [4, 5, 6, 7, 8, 9, 10]]


def test_a_lane_that_dies_takes_its_own_and_those_who_wait(laned):
    """What another lane has begun is answered."""
    good, deadly, queued = (laned.submit(images(*v)) for v in ([2, 2], [DEADLY], [3]))
    laned.engine.gate.set()
    while len(laned.engine.lane_runs) < 2:
        time.sleep(0.01)
    laned.engine.lane_gate.set()
    assert good.result(5).tolist() == [[2], [2]]
    for future in (deadly, queued):
        with pytest.raises(WorkerLost):
            future.result(5)
    while not laned.batcher.ready:
        time.sleep(0.01)
    assert laned.batcher.submit(images(4)).result().tolist() == [[4]]


def test_lanes_end_with_their_worker(laned):
    laned.submit(images(2)), laned.submit(images(3))
    laned.engine.gate.set()
    while len(laned.engine.lane_runs) < 2:
        time.sleep(0.01)
    threads = [t for t in threading.enumerate() if t.name.startswith(("lane", "batcher"))]
    laned.batcher.drain(0.1)  # they are held: it waits no longer
    laned.engine.lane_gate.set()
    until = time.monotonic() + 5
    while sum(not thread.is_alive() for thread in threads) < 3:  # the worker and its two lanes
        assert time.monotonic() < until
        time.sleep(0.01)


HANGING = """
import time
from test_batcher import Batcher, LanedEngine, Metrics, images

engine = LanedEngine()
engine.gate.set()
engine.features_in_lane = lambda given: time.sleep(600) if given[0].any() else given
engine.features = lambda given: time.sleep(0.2)
batcher = Batcher(engine, Metrics(), max_batch_size=8)
batcher.start()
for value in (1, 2, 3):
    batcher.submit(images(value))
while not batcher._busy:
    time.sleep(0.01)
batcher.drain(0.1)
"""


def test_a_lane_that_hangs_keeps_no_process_from_ending():
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", HANGING], cwd=here, timeout=60)
    assert done.returncode == 0


def test_draining_answers_what_is_in_the_lanes(laned):
    futures = [laned.submit(images(v)) for v in (2, 3)]
    laned.engine.gate.set()
    while len(laned.engine.lane_runs) < 2:
        time.sleep(0.01)
    drain = threading.Thread(target=laned.batcher.drain, args=(5,))
    drain.start()
    laned.engine.lane_gate.set()
    drain.join(5)
    assert [future.result(0).tolist() for future in futures] == [[[2]], [[3]]]


def test_a_dead_worker_comes_back_on_a_new_engine(engine):
    """Each failed start is followed by a longer rest, and nothing is accepted before it runs."""
    renewed, starts = HeldEngine(), []
    renewed.gate.set()

    def renew() -> HeldEngine:
        starts.append(time.monotonic())
        if len(starts) < 3:
            raise RuntimeError("no memory")
        return renewed

    batcher = Batcher(engine, Metrics(), renew=renew)
    batcher.start()
    engine.gate.set()
    with pytest.raises(WorkerLost):
        batcher.submit(images(DEADLY)).result()
    while not batcher.ready:
        time.sleep(0.01)
    assert batcher.submit(images(7)).result().tolist() == [[7]] and renewed.runs == [[7]]
    assert starts[2] - starts[1] > starts[1] - starts[0] > batching.FIRST_REST
    batcher.drain(5)


def test_a_worker_that_rests_can_be_drained(engine):
    batcher = Batcher(engine, Metrics())
    batcher.start()
    engine.gate.set()
    with pytest.raises(WorkerLost):
        batcher.submit(images(DEADLY)).result()
    batcher.drain(5)
    assert not batcher._worker.is_alive()


def test_draining_answers_what_was_accepted(engine, busy):
    accepted = busy.submit(images(2))
    drain = threading.Thread(target=busy.batcher.drain, args=(5,))
    drain.start()
    while busy.batcher.ready:
        time.sleep(0.01)
    with pytest.raises(Draining):
        busy.submit(images(3))
    engine.gate.set()
    drain.join(5)
    assert accepted.result(0).tolist() == [[2]]


def test_ready_means_that_the_model_ran(engine):
    def fails(images):
        raise RuntimeError("no memory")

    engine.features = fails
    batcher = Batcher(engine, Metrics())
    batcher.start()
    time.sleep(0.2)
    assert not batcher.ready
    batcher.drain(5)
