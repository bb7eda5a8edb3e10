"""The open inference protocol (KServe v2) over HTTP: what the graphs take, and what they give.

GET  /v2                        what this server is
GET  /v2/health/live, /v2/health/ready
GET  /v2/models/{name}          the tensors of one graph
GET  /v2/models/{name}/ready
POST /v2/models/{name}/infer    tensors, see `tensors`

A model is there under its name, pixel_values -> features, and again as NAME_heads where it has
heads, features_a and features_b -> one raw output a kind; where it has a matcher, as NAME_maps,
pixel_values -> maps, and NAME_matcher, maps_a and maps_b -> its raw outputs. The images are
preprocessed already: `preprocess.py` says how. Models have no versions. Everything behind the
routes is /v1's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from augself_hub import __version__
from augself_hub.errors import UsageError
from serving.http import document
from serving.http.access_log import note
from serving.http.bodies import read, refuse_query
from serving.http.deadline import before_deadline
from serving.http.problems import Problem
from serving.http.schemas import (
    GraphRecord,
    InferAnswer,
    InferRequest,
    ServerRecord,
)
from serving.http.tensors import BINARY, HEADER, Asked, Tensor, answer, read_tensors
from serving.inference.batcher import Batcher
from serving.inference.errors import UnknownModel
from serving.inference.models import Model, Models
from serving.inference.providers import NotFinite
from serving.inference.service import Service

_READY_STATES = ("loaded", "unloaded")  # asking an unloaded model loads it


@dataclass(frozen=True)
class Graph:
    """One graph of a model: what the protocol calls a model.

    Args:
        run: the inputs, N rows each -> the outputs, likewise.
    """

    name: str
    model: Model
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    run: Callable[[Service, Batcher, list[np.ndarray]], Awaitable[list[np.ndarray]]]


def add_routes(app: FastAPI) -> None:
    """The routes above; the application's state holds the service."""
    one = "/v2/models/{name:path}"
    asked = document.body(InferRequest, document.TENSOR, **{BINARY: "binary"})
    given: document.Responses = {200: {"content": {BINARY: {}}}}
    common: dict[str, Any] = {"dependencies": [Depends(refuse_query)], "tags": [document.TENSORS]}
    plain = common | {"responses": document.plain(sentence=True)}
    probed: dict[str, Any] = {
        "responses": document.open_to_all(sentence=True),
        "tags": [document.TENSORS],
    }
    app.get("/v2", response_model=ServerRecord, **plain)(server)
    app.get("/v2/health/live", **probed)(live)
    app.get("/v2/health/ready", **probed)(ready)
    app.post(
        f"{one}/infer",
        response_model=InferAnswer,
        responses=document.errors(sentence=True) | given,
        openapi_extra=asked,
        **common,
    )(infer)
    app.get(f"{one}/ready", **plain)(model_ready)
    app.get(one, response_model=GraphRecord, **plain)(metadata)


def refuse_shared_names(models: Models) -> None:
    """Raises UsageError where a model is called as another one's heads or matcher are."""
    for model in models.all.values():
        for graph in _graphs(model)[1:]:
            if graph.name in models.all:
                what = graph.name.removeprefix(f"{model.name}_")
                raise UsageError(
                    f"the {what} of {model.name} are called {graph.name} under /v2, and so is "
                    "another model: rename the folder of one"
                )


async def server() -> dict[str, Any]:
    """What this server is."""
    extensions = ["binary_tensor_data"]
    return {"name": "augself-hub", "version": __version__, "extensions": extensions}


async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


async def ready(request: Request) -> dict[str, bool]:
    """Every loaded model ran lately and accepts work."""
    if not request.app.state.service.ready:
        raise Problem(503, "not_ready", "a model is lost, or all decoders are: try again later")
    return {"ready": True}


async def metadata(request: Request, name: str) -> dict[str, Any]:
    """A graph's inputs and outputs."""
    try:
        graph = _graph(request.app.state.service.models, name)
    except UnknownModel:
        if name.endswith("/infer"):
            raise HTTPException(405, headers={"Allow": "POST"}) from None
        raise
    inputs, outputs = ([_record(t) for t in side] for side in (graph.inputs, graph.outputs))
    return {"name": name, "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}


async def model_ready(request: Request, name: str) -> dict[str, Any]:
    """One model would answer, if need be after it was loaded."""
    graph = _graph(request.app.state.service.models, name)
    if graph.model.state not in _READY_STATES:
        raise Problem(503, "not_ready", f"the model is {graph.model.state}: try again later")
    return {"name": name, "ready": True}


async def infer(request: Request, name: str) -> Response:
    """The graph's outputs for these inputs."""
    service: Service = request.app.state.service

    def parse(_: str, body: bytes) -> tuple[Graph, Asked]:
        graph, header = _graph(service.models, name), request.headers.get(HEADER)
        return graph, read_tensors(body, header, graph.inputs, graph.outputs, service.limits)

    with service.metrics.stage("read"):
        graph, asked = await read(request, parse)
    note(request.scope, model=name, images=len(asked.inputs[0]))
    seconds, work = service.limits.deadline_seconds, _run(service, graph, asked.inputs)
    values = await before_deadline(request, graph.model, seconds, work)
    results = {tensor.name: rows for tensor, rows in zip(graph.outputs, values, strict=True)}
    with service.metrics.stage("encode"):
        return answer(name, asked, results)


async def _run(service: Service, graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    async with service.models.acquired(graph.model) as batcher:
        return await graph.run(service, batcher, inputs)


async def _features(
    service: Service, batcher: Batcher, inputs: list[np.ndarray]
) -> list[np.ndarray]:
    return [await asyncio.wrap_future(batcher.submit(list(inputs[0])))]


async def _maps(service: Service, batcher: Batcher, inputs: list[np.ndarray]) -> list[np.ndarray]:
    maps = (await asyncio.wrap_future(batcher.submit(list(inputs[0]), maps=True))).maps
    assert maps is not None, "the model has a matcher"
    return [maps]


async def _heads(service: Service, batcher: Batcher, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return await _pairwise(service, batcher.engine.heads, inputs, "features", "heads")


async def _matcher(
    service: Service, batcher: Batcher, inputs: list[np.ndarray]
) -> list[np.ndarray]:
    return await _pairwise(service, batcher.engine.matcher, inputs, "maps", "matcher")


async def _pairwise(
    service: Service,
    run: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
    inputs: list[np.ndarray],
    what: str,
    by: str,
) -> list[np.ndarray]:
    try:
        return list((await service.decoders.run(run, *inputs)).values())
    except NotFinite:  # of numbers in their range they were checked when they were loaded
        message = f"the {what} are so large that what the {by} make of them is not finite"
        raise Problem(400, "not_finite", message, "inputs") from None


def _graph(models: Models, name: str) -> Graph:
    """What the protocol calls a model of this name. Raises UnknownModel."""
    for model in models.all.values():
        for graph in _graphs(model):
            if graph.name == name:
                return graph
    raise UnknownModel("no such model: see GET /v1/models")


def _graphs(model: Model) -> list[Graph]:
    """All graphs of a model; the first is the encoder's and has its name."""
    spec, side = model.source.spec, model.source.preprocessing.size
    images = (Tensor("pixel_values", "UINT8", (side, side, 3)),)
    features = (_floats("features", spec.features),)
    graphs = [Graph(model.name, model, images, features, _features)]
    if spec.heads:
        pair = tuple(_floats(name, spec.features) for name in ("features_a", "features_b"))
        kinds = tuple(_floats(name, width) for name, width in spec.head_outputs().items())
        graphs.append(Graph(f"{model.name}_heads", model, pair, kinds, _heads))
    if spec.matcher is not None:
        maps = (_floats("maps", *spec.matcher.maps),)
        graphs.append(Graph(f"{model.name}_maps", model, images, maps, _maps))
        pair = tuple(_floats(name, *spec.matcher.maps) for name in ("maps_a", "maps_b"))
        outputs = tuple(_floats(name, width) for name, width in spec.matcher.outputs().items())
        graphs.append(Graph(f"{model.name}_matcher", model, pair, outputs, _matcher))
    return graphs


def _floats(name: str, *shape: int) -> Tensor:
    return Tensor(name, "FP32", shape)


def _record(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}
