"""Ten visitors at once, each with a session of its own."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file

from serving.demo.visitors import EXAMPLES


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_visitors_at_once_for_a_minute_are_all_answered(app):
    """Each asks one thing after the other, every tab in turn."""
    asked = [
        lambda client, file: client.predict(
            "pretrained", file, *[0.5, 0.5, 1.0, 1.0, False, 1.0, 1.0, 1.0, 0.0, False] * 2,
            api_name="/what_changed",
        ),
        lambda client, file: client.predict("pretrained", [file, file], api_name="/your_pictures"),
        lambda client, file: client.predict("tiny", "pretrained", api_name="/neighbours"),
        lambda client, file: client.predict("pretrained", [file], api_name="/your_pictures"),
    ]  # fmt: skip
    until, before = time.monotonic() + 60, len(app.log)

    def visitor(number: int) -> int:
        patient = {"timeout": 60}  # the client alone would give a file five seconds
        client = Client(app.url, verbose=False, analytics_enabled=False, httpx_kwargs=patient)
        file = handle_file(EXAMPLES[number % len(EXAMPLES)])
        turns = itertools.takewhile(lambda _: time.monotonic() < until, itertools.cycle(asked))
        answers = [ask(client, file) for ask in turns]
        assert all(answers)
        return len(answers)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(visitor, range(10)))
    print("answers of each visitor:", answers)
    assert min(answers) > 0 and "Traceback" not in "".join(app.log[before:])
