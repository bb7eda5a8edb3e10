"""Threads that decode: order, what is cancelled, who is stuck; and the budget of decoded bytes."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from augself_hub.images.budget import Budget
from serving.inference.decoders import Decoders
from serving.inference.errors import DecodersStuck
from serving.metrics import Metrics


def test_what_is_cancelled_before_its_turn_is_not_done():
    go, done = threading.Event(), []

    async def work():
        decoders = Decoders(1, 30, Metrics())
        first = asyncio.create_task(decoders.run(go.wait))
        second = asyncio.create_task(decoders.run(done.append, "second"))
        third = asyncio.create_task(decoders.run(done.append, "third"))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(first, third)
        decoders.stop()

    asyncio.run(work())
    assert done == ["third"]


def test_a_thread_is_busy_until_it_is_free_though_nobody_waits_for_it():
    go, metrics = threading.Event(), Metrics()

    def busy():
        return metrics.registry.get_sample_value("augself_decoders_busy")

    async def work():
        decoders = Decoders(1, 0.1, metrics)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decoders.run(go.wait), 0.2)
        assert (busy(), len(decoders.stuck), decoders.ready) == (1, 1, False)
        with pytest.raises(DecodersStuck):
            await decoders.run(int)
        go.set()
        while not decoders.ready:
            await asyncio.sleep(0.01)
        assert await decoders.run(int, "7") == 7 and busy() == 0
        with pytest.raises(SystemExit):
            await decoders.run(exit)
        assert await decoders.run(int, "8") == 8  # the thread lives on
        decoders.stop()

    asyncio.run(work())


def test_the_budget_is_lent_in_order_and_a_large_share_is_not_starved():
    budget, order, go = Budget(100), [], threading.Event()

    def take(name, count):
        with budget.lend(count):
            order.append(name)
            assert budget.lent <= 100
            go.wait()

    threads = []
    for name, count in (("half", 50), ("all and more", 500), ("small", 10)):
        threads.append(threading.Thread(target=take, args=(name, count)))
        threads[-1].start()
        time.sleep(0.05)
    assert order == ["half"] and budget.lent == 50  # the small one would fit, but came later
    go.set()
    for thread in threads:
        thread.join()
    assert order == ["half", "all and more", "small"] and budget.lent == 0


def test_what_fails_gives_its_share_back():
    budget = Budget(100)
    with pytest.raises(ValueError, match="damaged"), budget.lend(60):
        raise ValueError("damaged")
    assert budget.lent == 0
