"""When it is too much: requests, queues, deadlines, lost workers, clients that left."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from augself_hub.errors import UsageError
from serving.http.api import create_app
from serving.http.gate import Gate
from serving.inference.source import ModelSource
from serving.limits import Limits
from serving.settings import ServerSettings


class Held:
    """A server whose model waits at `gate` (or does what `fate` says) once it is asked.

    When its worker is started again, it gets an engine that does neither.
    """

    def __init__(self, model: Path, **limits: float) -> None:
        self.gate, self.asked = threading.Event(), threading.Event()
        self.fate = lambda: None
        settings = ServerSettings(
            Limits(**limits), max_batch_size=min(32, limits.get("max_queue_size", 32))
        )
        self.app: Gate = create_app([ModelSource("tiny", model, "cpu", 1)], settings)
        self.service = self.app.app.state.service
        engine = self.service.models.first.batcher.engine
        self._run, engine.features = engine.features, self._features
        while not self.service.models.ready:
            time.sleep(0.01)

    def _features(self, images: list[np.ndarray]) -> np.ndarray:
        if images[0].any():  # not the batcher's own check
            self.asked.set()
            self.gate.wait(10)
            self.fate()
        return self._run(images)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server")

    @property
    def waiting(self) -> bool:
        """Is there an image in the queue?"""
        return b'augself_queue_size{model="tiny"} 1.0' in self.service.text_metrics()

    async def wait_until_asked(self) -> None:
        await asyncio.to_thread(self.asked.wait, 5)


@pytest.fixture
def held(tiny_model):
    servers: list[Held] = []

    def start(**limits: float) -> Held:
        servers.append(Held(tiny_model, **limits))
        return servers[-1]

    yield start
    for server in servers:
        server.gate.set()
        asyncio.run(server.service.stop())


@pytest.fixture
def image(pixels, encoded) -> dict[str, bytes]:
    return {"image": encoded(pixels(1))}


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_request_beyond_those_allowed_at_once_is_429_and_health_is_not(held, image):
    server = held(max_concurrent_requests=1)

    async def scenario() -> None:
        async with server.client() as client:
            first = asyncio.create_task(client.post("/v1/embeddings", files=image))
            await server.wait_until_asked()
            second = await client.post("/v1/embeddings", files=image)
            assert code(second) == (429, "busy") and second.headers["retry-after"]
            assert (await client.get("/health/ready")).status_code == 200
            server.gate.set()
            assert (await first).status_code == 200

    asyncio.run(scenario())


def test_a_full_queue_is_429(held, image):
    server = held(items=1, max_queue_size=2)

    async def scenario() -> None:
        async with server.client() as client:
            tasks = [asyncio.create_task(client.post("/v1/embeddings", files=image))]
            await server.wait_until_asked()
            tasks += [
                asyncio.create_task(client.post("/v1/embeddings", files=image)) for _ in range(3)
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert [code(task.result()) for task in done] == [(429, "queue_full")]
            server.gate.set()
            answers = await asyncio.gather(*tasks)
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429]

    asyncio.run(scenario())


def test_the_deadline_is_504(held, image):
    server = held(deadline_seconds=0.2)

    async def scenario() -> None:
        async with server.client() as client:
            assert code(await client.post("/v1/embeddings", files=image)) == (504, "deadline")

    asyncio.run(scenario())


def test_a_lost_worker_is_503_and_not_ready_until_it_is_back(held, image):
    server = held()
    server.gate.set()
    server.fate = lambda: exit(1)

    async def scenario() -> None:
        async with server.client() as client:
            for _ in range(2):
                answer = await client.post("/v1/embeddings", files=image)
                assert code(answer) == (503, "worker_lost") and answer.headers["retry-after"]
            assert code(await client.get("/health/ready")) == (503, "not_ready")
            assert (await client.get("/health/live")).status_code == 200
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            assert (await client.post("/v1/embeddings", files=image)).status_code == 200
            metrics = (await client.get("/metrics")).text
        assert 'augself_worker_restarts_total{model="tiny"} 1.0' in metrics

    asyncio.run(scenario())


def test_a_poisoned_session_is_replaced(held, image):
    """Whatever it is asked, the session fails: 503, not 500 for ever, and a new session heals."""
    server = held()
    server.gate.set()
    engine = server.service.models.first.batcher.engine
    del engine._encoder.session

    async def scenario() -> None:
        async with server.client() as client:
            answer = await client.post("/v1/embeddings", files=image)
            assert code(answer) == (503, "worker_lost")
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            assert (await client.post("/v1/embeddings", files=image)).status_code == 200
        assert server.service.models.first.batcher.engine is not engine

    asyncio.run(scenario())


def test_our_bug_is_500_and_the_next_request_is_answered(held, image):
    server = held()
    server.gate.set()
    server.fate = lambda: 1 / 0

    async def scenario() -> None:
        async with server.client() as client:
            answer = await client.post("/v1/embeddings", files=image)
            assert code(answer) == (500, "internal_error")
            assert "division" not in answer.text
            server.fate = lambda: None
            assert (await client.post("/v1/embeddings", files=image)).status_code == 200

    asyncio.run(scenario())


def test_a_client_that_leaves_is_dropped_before_the_run(held, image):
    server = held()

    async def left() -> None:
        """A request whose client disconnects once its image waits in the queue."""
        messages = [
            {"type": "http.request", "body": image["image"], "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive():
            message = messages.pop(0)
            while message["type"] == "http.disconnect" and not server.waiting:
                await asyncio.sleep(0.01)
            return message

        async def send(message) -> None:
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embeddings",
            "raw_path": b"/v1/embeddings",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }
        await server.app(scope, receive, send)

    async def scenario() -> None:
        async with server.client() as client:
            first = asyncio.create_task(client.post("/v1/embeddings", files=image))
            await server.wait_until_asked()
            await left()
            await asyncio.sleep(0.05)  # the loop hands the cancelling on
            server.gate.set()
            assert (await first).status_code == 200
            await client.post("/v1/embeddings", files=image)
            metrics = (await client.get("/metrics")).text
        assert 'augself_cancelled_requests_total{model="tiny"} 1.0' in metrics
        assert 'augself_images_total{model="tiny"} 2.0' in metrics

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["items=x"], "give a number"),
        (["size=1"], "unknown limit 'size': use one of body_bytes"),
        (["items=0"], "must be more than 0"),
        (["items=8", "items=9"], "the limit items is given twice"),
        (["waiting_images=8", "max_queue_size=9"], "the limit max_queue_size is given twice"),
        (["upload_seconds=nan"], "must be more than 0"),
        (["deadline_seconds=inf"], "must be more than 0, and finite"),  # no JSON can say it
        (["deadline_seconds=1e300"], "no thread can wait as long"),
        (["pixels=178956971"], "Pillow opens no image of more than 178956970"),
        (["items=900"], "allow at least 1800"),
        (["total_bytes=1000"], "one body may have"),
    ],
)
def test_limits_are_checked_against_each_other(settings, message):
    with pytest.raises(UsageError, match=message):
        Limits.parse(settings)


def test_limits_are_set_by_name():
    assert Limits.parse(["items=8", "upload_seconds=2"]) == Limits(items=8, upload_seconds=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limits": Limits(items=4, max_queue_size=8)}, "no batch could be as large"),
        (
            {"limits": Limits(fetch_seconds=30), "url_hosts": ("example.org",)},
            "allow less for fetching",
        ),
    ],
)
def test_settings_are_checked_against_each_other(settings, message):
    with pytest.raises(UsageError, match=message):
        ServerSettings(**settings)


def test_bodies_that_fill_the_memory_are_429(held, image):
    """One body waits in memory; another of its size is beyond the limit."""
    size = len(httpx.Request("POST", "http://server", files=image).read())
    server = held(body_bytes=size + 200, total_bytes=int(size * 1.5) + 200)

    async def scenario() -> None:
        async with server.client() as client:
            first = asyncio.create_task(client.post("/v1/embeddings", files=image))
            await server.wait_until_asked()
            assert code(await client.post("/v1/embeddings", files=image)) == (429, "busy")
            held_by_first = server.app.held_bytes
            claim = {"Content-Length": str(size)}
            assert (await client.get("/v1/models", headers=claim)).status_code == 200
            assert server.app.held_bytes == held_by_first == size
            server.gate.set()
            assert (await first).status_code == 200
            assert (await client.post("/v1/embeddings", files=image)).status_code == 200
        assert server.app.held_bytes == 0

    asyncio.run(scenario())
