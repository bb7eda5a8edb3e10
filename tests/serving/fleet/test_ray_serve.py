"""Two replicas on a Ray of this machine's own: one is killed, and everybody has an answer."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from augself_hub.errors import UsageError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray here: pip install 'augself-hub[fleet]'"
)
HALF = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"


@pytest.fixture(scope="module")
def build():
    from serving.fleet.ray_serve import build

    return build


@pytest.fixture(scope="module")
def url(build, tiny_model):
    """A local Ray of two CPUs with two replicas of four requests each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, logging_level="WARNING")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = f"--model {tiny_model} --device cpu --limit max_concurrent_requests=4"
    serve.run(build({"options": options, "min_replicas": "2", "max_replicas": "2"}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def replicas() -> set[int]:
    """The process ids of our Ray's replicas."""
    parents, found = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (process / "status").read_text().split("PPid:\t")[1]
            parents[int(process.name)] = int(status.split("\n")[0])
            if b"ServeReplica:default:augself" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return {pid for pid in found if os.getpid() in ancestors(pid, parents)}


def ancestors(pid: int, parents: dict[int, int]):
    while pid in parents:
        pid = parents[pid]
        yield pid


def both_run() -> bool:
    """Ray sends requests to two replicas."""
    from ray import serve

    states = serve.status().applications["default"].deployments["augself"].replica_states
    return states == {"RUNNING": 2}


def until(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.slow
def test_a_full_replica_says_so_itself_before_ray_does(url, pixels, encoded):
    """Uploads that stand still take every slot: the 429 is ours, in our words."""
    address, seen = url.removeprefix("http://").split(":"), set()
    with contextlib.ExitStack() as held:

        def busy() -> bool:
            """One more upload that stands still, then a request: whose 429 is it?"""
            held.enter_context(socket.create_connection(address, 20)).sendall(HALF)
            answer = httpx.post(f"{url}/v1/embeddings", content=encoded(pixels(1)), timeout=30)
            if answer.status_code == 429:
                assert answer.headers["retry-after"] == "1"
                # Ray's, in its words, while its router has not heard yet of what it has sent where.
                ours = answer.headers["content-type"] == "application/json"
                seen.add(answer.json()["error"]["code"] if ours else answer.text)
            return "busy" in seen

        until(busy, f"never full: {seen}")
    answer = httpx.get(f"{url}/health/ready", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 200
    assert answer.headers.get_list("x-request-id") == ["mine-1"]  # not Ray's and ours


@pytest.mark.slow
def test_a_replica_that_is_killed_under_load_leaves_nobody_without_an_answer(url, load):
    """Who was on it is told so (500, Ray's own); the other answers, and a new one joins it."""
    killed, clients = min(replicas()), load(url)
    with clients.running(6):
        clients.wait_for(200, 100)
        os.kill(killed, signal.SIGKILL)
        clients.wait_for(200, clients.codes[200] + 100)
        until(lambda: len(replicas() - {killed}) == 2 and both_run(), "no new replica")
        clients.wait_for(200, clients.codes[200] + 100)
    assert set(clients.codes) <= {200, 429, 500, 503}, clients.codes
    assert not clients.wrong and not clients.broken
    assert clients.codes[500] + clients.codes[503] <= 12, clients.codes  # two a client


@pytest.mark.slow
def test_a_request_that_is_asked_again_is_answered_rightly(url, pixels, encoded, expected):
    """As the documentation tells clients: again after 429, 500 and 503."""

    def ask(client: httpx.Client, number: int) -> list[float]:
        for _ in range(200):
            answer = client.post("/v1/embeddings", content=encoded(pixels(number)))
            if answer.status_code == 200:
                return answer.json()["data"][0]["embedding"]
            assert answer.status_code in (429, 500, 503)
            time.sleep(0.1)
        raise AssertionError(answer.text)

    until(both_run, "no two replicas")
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in range(60):
            if number == 20:
                os.kill(min(replicas()), signal.SIGKILL)
            np.testing.assert_allclose(
                ask(client, number), expected(pixels(number)), rtol=1e-4, atol=1e-5
            )


# -- What is asked of Ray --------------------------------------------------------------------------


def test_rays_limits_are_wider_than_a_replicas(build):
    """As the documentation shows it: texts, from a command line or a file."""
    asked = {
        "options": "--limit max_concurrent_requests=10 --limit deadline_seconds=7 --token a",
        "cpus": "2.5",
    }
    deployment = build({**asked, "min_replicas": "2", "max_replicas": "5"})._bound_deployment
    assert deployment.max_ongoing_requests > 10 and deployment.max_queued_requests > 0
    assert deployment.ray_actor_options["num_cpus"] == 2.5
    config = deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (
        2,
        5,
    )
    assert 0 < config.autoscaling_config.target_ongoing_requests < 10
    assert config.graceful_shutdown_timeout_s > 7
    assert config.backpressure_config.status_code == 429


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--port 80", "--http-port"),
        ("--host 0.0.0.0", "--http-host"),
        ("--uds /tmp/s", "--uds is Ray's to say"),
        ("--log-format json", "--log-format is Ray's to say"),
        ("--demo", "augself serve --demo"),
        ("--limit max_concurrent_requests=0", "must be more than 0"),
    ],
)
def test_options_that_are_not_for_ray(build, options, message):
    with pytest.raises(UsageError, match=message):
        build({"options": options})


def test_an_argument_that_is_none(build):
    with pytest.raises(ValueError, match="replicas"):
        build({"replicas": 2})
