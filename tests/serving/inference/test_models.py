"""Several models in one server: loaded when asked for, evicted when there is no room."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest

from augself_hub.augmentations.spec import Match
from augself_hub.errors import UsageError
from augself_hub.folder import CONFIG, read_spec, write_manifest
from augself_hub.images.budget import DECODED
from serving.http.api import create_app
from serving.inference import models as registry
from serving.inference.engine import Engine
from serving.inference.source import ModelSource
from serving.limits import Limits
from serving.settings import ServerSettings


class SlowSource(ModelSource):
    """Its loading waits at `gate`, and `loading` says that it does."""

    gate = threading.Event()
    loading = threading.Event()

    def load(self) -> Engine:
        self.loading.set()
        self.gate.wait(10)
        return super().load()


@pytest.fixture
def slow() -> type[SlowSource]:
    return type("Slow", (SlowSource,), {"gate": threading.Event(), "loading": threading.Event()})


@pytest.fixture
def sources(tiny_model, other_tiny_model) -> list[ModelSource]:
    return [
        ModelSource("tiny", tiny_model, "cpu", 1),
        ModelSource("other", other_tiny_model, "cpu", 1),
    ]


@pytest.fixture
def room_for_one(monkeypatch, sources) -> int:
    """A limit that holds one model; bytes are those on disk, so that they are always the same."""
    monkeypatch.setattr(registry, "resident", lambda: 0)
    return sources[0].graph_bytes * 3 // 2


@pytest.fixture
def ask(pixels, encoded):
    """Runs a scenario against an application -> what it returns. `ask.post(client, n, model)`."""

    def run(app, scenario):
        async def with_client():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                try:
                    return await scenario(client)
                finally:
                    await app.app.state.service.stop()

        return asyncio.run(with_client())

    async def post(client, number: int, model: str) -> httpx.Response:
        files, data = {"image": encoded(pixels(number))}, {"model": model}
        return await client.post("/v1/embeddings", files=files, data=data)

    run.post = post
    return run


def vector(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(response.json()["data"][0]["embedding"], np.float32)


async def states(client) -> dict[str, str]:
    return {m["id"]: m["state"] for m in (await client.get("/v1/models")).json()["data"]}


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_storm_over_two_models_with_room_for_one(ask, sources, room_for_one, pixels):
    """Every request is answered once, by the model it named, though they evict each other."""
    limits = Limits(max_concurrent_requests=200)
    app = create_app(sources, ServerSettings(limits, lazy=True, memory_limit=room_for_one))
    sessions = {
        s.name: onnxruntime.InferenceSession(str(s.folder / "onnx/features.onnx")) for s in sources
    }

    async def one(client, number: int) -> str:
        await asyncio.sleep(number % 40 * 0.02)
        model = sources[number % 2].name
        found = vector(await ask.post(client, number, model))
        wanted = sessions[model].run(None, {"images": pixels(number)[None]})[0][0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        return model

    async def scenario(client):
        answered = Counter(await asyncio.gather(*(one(client, n) for n in range(200))))
        assert sorted((await states(client)).values()) == ["loaded", "unloaded"]
        return answered, (await client.get("/metrics")).text

    answered, metrics = ask(app, scenario)
    assert answered == {"tiny": 100, "other": 100}
    evictions = [line for line in metrics.splitlines() if "augself_model_evictions_total{" in line]
    assert sum(float(line.split()[-1]) for line in evictions) >= 1


def test_a_model_in_use_is_not_evicted(ask, sources, room_for_one):
    app = create_app(sources, ServerSettings(lazy=True, memory_limit=room_for_one))
    gate, asked = threading.Event(), threading.Event()

    async def scenario(client):
        first = await ask.post(client, 1, "tiny")
        engine = app.app.state.service.models.first.batcher.engine
        run = engine.features

        def held(images):
            asked.set()
            gate.wait(10)
            return run(images)

        engine.features = held
        using = asyncio.create_task(ask.post(client, 1, "tiny"))
        await asyncio.to_thread(asked.wait, 5)
        needing = asyncio.create_task(ask.post(client, 2, "other"))
        await asyncio.sleep(0.2)
        assert await states(client) == {"tiny": "unloaded", "other": "loading"}  # it is leaving
        assert not needing.done() and app.app.state.service.models.first.batcher is not None
        late = asyncio.create_task(ask.post(client, 1, "tiny"))
        gate.set()
        np.testing.assert_array_equal(vector(await using), vector(first))
        assert (await needing).status_code == 200
        np.testing.assert_allclose(vector(await late), vector(first), rtol=1e-5, atol=1e-6)

    ask(app, scenario)


def test_loading_stops_neither_health_nor_other_models(ask, sources, slow, other_tiny_model):
    """Who asks for it waits for it, up to the deadline; then 503 says to come back."""
    late = slow("other", other_tiny_model, "cpu", 1)
    limits = Limits(deadline_seconds=3)
    app = create_app([sources[0], late], ServerSettings(limits, lazy=True))

    async def scenario(client):
        waiting = asyncio.create_task(ask.post(client, 1, "other"))
        await asyncio.to_thread(slow.loading.wait, 5)
        assert (await states(client))["other"] == "loading"
        assert (await client.get("/health/ready")).status_code == 200
        assert (await ask.post(client, 1, "other")).status_code == 503
        answer = await waiting
        assert code(answer) == (503, "loading") and answer.headers["retry-after"]
        slow.gate.set()
        assert (await ask.post(client, 2, "tiny")).status_code == 200
        assert (await ask.post(client, 1, "other")).status_code == 200

    ask(app, scenario)


def test_a_client_that_leaves_while_a_model_loads_does_not_hold_it(
    ask, sources, slow, room_for_one, other_tiny_model
):
    late = slow("other", other_tiny_model, "cpu", 1)
    app = create_app([sources[0], late], ServerSettings(lazy=True, memory_limit=room_for_one))
    models = app.app.state.service.models

    async def scenario(client):
        async def take() -> None:
            async with models.acquired(models.named("other")):
                await asyncio.sleep(60)

        taking = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.to_thread(slow.loading.wait, 5)
        taking[0].cancel()  # while it loads
        slow.gate.set()
        while models.named("other").users < 2:
            await asyncio.sleep(0)
        for task in taking:
            task.cancel()  # as it is let in
        await asyncio.gather(*taking, return_exceptions=True)
        assert models.named("other").users == 0
        assert (await ask.post(client, 1, "tiny")).status_code == 200

    ask(app, scenario)


def test_a_model_that_cannot_be_loaded_is_503_and_tried_again(
    ask, sources, tmp_path, other_tiny_model, monkeypatch
):
    folder = shutil.copytree(other_tiny_model, tmp_path / "other")
    app = create_app(
        [sources[0], ModelSource("other", folder, "cpu", 1)], ServerSettings(lazy=True)
    )
    graph = folder / "onnx/features.onnx"

    async def scenario(client):
        whole = graph.read_bytes()
        graph.write_bytes(whole[:-1])
        for _ in range(2):
            answer = await ask.post(client, 1, "other")
            assert code(answer) == (503, "model_not_loaded") and answer.headers["retry-after"]
        assert (await states(client))["other"] == "failed"
        assert (await client.get("/health/ready")).status_code == 200
        assert (await ask.post(client, 1, "tiny")).status_code == 200
        graph.write_bytes(whole)
        assert (await ask.post(client, 1, "other")).status_code == 503  # not at every request
        monkeypatch.setattr(registry, "RETRY_SECONDS", 0.0)
        assert (await ask.post(client, 1, "other")).status_code == 200

    ask(app, scenario)


@pytest.mark.parametrize("change", ["graphs", "spec"])
def test_a_model_that_changed_since_the_start_is_not_served(
    change, ask, tmp_path, tiny_model, other_tiny_model, caplog
):
    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    source = ModelSource.find(str(folder), "cpu", 1, "fp32", "exact")
    app = create_app([source], ServerSettings(lazy=True))
    if change == "graphs":
        shutil.rmtree(folder)
        shutil.copytree(other_tiny_model, folder)
    else:  # as measuring the heads again does
        spec = read_spec(folder)
        (folder / CONFIG).write_text(dataclasses.replace(spec, match=Match()).to_json())
        write_manifest(folder)
    answer = ask(app, lambda client: ask.post(client, 1, "tiny"))
    assert code(answer) == (503, "model_not_loaded")
    assert "has changed: start the server again" in caplog.text


def test_at_start_as_many_are_loaded_as_fit(ask, sources, room_for_one):
    app = create_app(sources, ServerSettings(memory_limit=room_for_one))
    assert ask(app, states) == {"tiny": "loaded", "other": "unloaded"}


def test_a_limit_below_a_model_is_refused_at_start(sources):
    with pytest.raises(UsageError, match=r"tiny takes \d+ bytes, more than --memory-limit 1000"):
        create_app(sources, ServerSettings(memory_limit=1000))


def test_a_model_measured_above_the_limit_is_refused_at_start(sources, monkeypatch):
    """As it would be by its files: it could not be answered with."""
    limit = 2 * sources[0].graph_bytes
    measured = iter([0, limit + 1])
    monkeypatch.setattr(registry, "resident", lambda: next(measured))
    with pytest.raises(UsageError, match=rf"tiny takes {limit + 1} bytes, more than --memory-lim"):
        create_app(sources[:1], ServerSettings(memory_limit=limit))


def test_one_wrong_measurement_is_forgotten(ask, sources, monkeypatch):
    """The process grew for another reason while the model was loaded the first time."""
    limit = 2 * sources[0].graph_bytes
    measured = iter([0, 10 * limit])
    monkeypatch.setattr(registry, "resident", lambda: next(measured, 0))
    monkeypatch.setattr(registry, "RETRY_SECONDS", 0.0)
    app = create_app(sources[:1], ServerSettings(lazy=True, memory_limit=limit))

    async def scenario(client):
        assert code(await ask.post(client, 1, "tiny")) == (503, "model_not_loaded")
        assert (await ask.post(client, 1, "tiny")).status_code == 200

    ask(app, scenario)


def test_pictures_decoded_while_a_model_loads_are_not_counted(ask, slow, tiny_model, monkeypatch):
    monkeypatch.setattr(registry, "resident", lambda: DECODED.lent)
    source = slow("tiny", tiny_model, "cpu", 1)
    app = create_app([source], ServerSettings(lazy=True))

    async def scenario(client):
        asking = asyncio.create_task(ask.post(client, 1, "tiny"))
        await asyncio.to_thread(slow.loading.wait, 5)
        with DECODED.lend(10 * source.graph_bytes):
            slow.gate.set()
            assert (await asking).status_code == 200
        assert app.app.state.service.models.first.bytes == source.graph_bytes

    ask(app, scenario)


def test_memory_is_measured(start_server, other_tiny_model, pixels, encoded):
    """Real memory of a real process: at least the graphs' files, nothing before it is loaded."""
    server = start_server("--model", str(other_tiny_model), "--lazy")
    models = f"{server.url}/v1/models"
    assert [m["memory_bytes"] for m in httpx.get(models).json()["data"]] == [0, 0]
    for name in ("tiny", "other"):
        files = {"image": encoded(pixels(1))}
        answer = httpx.post(f"{server.url}/v1/embeddings", files=files, data={"model": name})
        assert answer.status_code == 200
    taken = {m["id"]: m["memory_bytes"] for m in httpx.get(models).json()["data"]}
    on_disk = sum(p.stat().st_size for p in Path(other_tiny_model, "onnx").glob("*.onnx"))
    assert taken["tiny"] >= on_disk and taken["other"] >= on_disk
    (line,) = (
        line
        for line in httpx.get(f"{server.url}/metrics").text.splitlines()
        if line.startswith('augself_model_memory_bytes{model="tiny"}')
    )
    assert float(line.split()[-1]) == taken["tiny"]


def test_unknown_names_do_not_become_labels(client):
    client.post("/v1/embeddings", data={"model": "nobody-has-this"}, files={"image": b"x"})
    client.get("/v1/nobody-has-this")
    assert "nobody" not in client.get("/metrics").text


def test_the_source_is_described_without_being_loaded(tiny_model):
    source = ModelSource.find(str(tiny_model), "cpu", 1, "fp32", "exact")
    engine = source.load()
    assert (source.name, source.sha256) == ("tiny", engine.sha256)
    assert source.preprocessing == engine.preprocessing and source.spec == engine.spec
