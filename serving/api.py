"""The HTTP interface: routes, their answers, their errors.

POST /v1/embeddings        images -> features, in OpenAI's shape
POST /v1/augmentations     pairs of images -> how their augmentations differ
GET  /v1/models            what is served
GET  /health/live, /health/ready, /metrics, /docs
/                          the demo, where it was asked for
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from augself_hub import __version__
from augself_hub.errors import MissingExtra, UsageError
from serving.batcher import Batcher
from serving.bodies import Item, read_embeddings, read_pairs
from serving.differences import describe, is_gray
from serving.engine import Engine
from serving.limits import Gate, Limits
from serving.negotiation import JSON, NPY, negotiated
from serving.problems import Problem
from serving.schemas import (
    AugmentationAnswer,
    AugmentationRequest,
    EmbeddingAnswer,
    EmbeddingOptions,
    EmbeddingRequest,
    ErrorAnswer,
    ModelList,
    ModelRecord,
    request_body,
)
from serving.service import Service

_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}}
_CLIENT_LEFT = 499  # nobody reads it; it is what the metrics count


def create_app(
    engines: Sequence[Engine],
    limits: Limits | None = None,
    demo: bool = False,
    token: str | None = None,
) -> Gate:
    """The whole server as one ASGI application, its gate outside.

    Args:
        engines: the models; the first is the default and the demo's.
        demo: show the demo at /.
        token: what clients of /v1 send as `Authorization: Bearer ...`; None: nothing.

    Raises:
        MissingExtra: the demo was asked for without Gradio.
        UsageError: two models of one name, or a demo, which is open to all, beside a token.
    """
    if demo and token:
        raise UsageError("a demo is open to everybody: serve it without a token, or not at all")
    service = Service(engines, limits or Limits())
    app = FastAPI(
        title="AugSelf Hub",
        version=__version__,
        lifespan=_lifespan,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=_HANDLERS,
    )
    app.state.service = service
    _add_routes(app)
    if demo:
        app = _with_demo(app, service)
    return Gate(app, service.limits, service.metrics, token)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    yield
    await service.stop()


def _add_routes(app: FastAPI) -> None:
    images = request_body(EmbeddingRequest, "image", raw=True)
    pairs = request_body(AugmentationRequest, "image_a", "image_b", raw=False)
    post = partial(app.post, responses=_ERRORS)
    post("/v1/embeddings", response_model=EmbeddingAnswer, openapi_extra=images)(embeddings)
    post("/v1/augmentations", response_model=AugmentationAnswer, openapi_extra=pairs)(augmentations)
    app.get("/v1/models", response_model=ModelList)(models)
    app.get("/health/live")(live)
    app.get("/health/ready", responses={503: {"model": ErrorAnswer}})(ready)
    app.get("/metrics")(metrics)
    # Before the demo, which would answer every path.
    app.mount("/v1", unrouted)


def _with_demo(app: FastAPI, service: Service) -> FastAPI:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise MissingExtra("gradio", "demo") from error
    from serving.demo import LAUNCH, build

    return gradio.mount_gradio_app(app, build(service.local()), path="/", **LAUNCH)


async def embeddings(request: Request) -> Response:
    """Features of one or more images, in the order of the request."""
    media_type = negotiated(request.headers.get("accept"), JSON, NPY)
    service: Service = request.app.state.service
    options, items = await read_embeddings(request, service.limits)
    batcher = service.batcher(options.model)
    features = await service.answered(request, _features(service, batcher, items))
    if options.normalize:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if media_type == NPY:
        return Response(_npy(features), media_type=NPY)
    return JSONResponse(_embedding_answer(batcher.engine.name, features, options))


async def augmentations(request: Request) -> Response:
    """How the augmentations of the second image of each pair differ from the first's."""
    negotiated(request.headers.get("accept"), JSON)
    service: Service = request.app.state.service
    options, pairs = await read_pairs(request, service.limits)
    batcher = service.batcher(options.model)
    data = await service.answered(request, _differences(service, batcher, pairs))
    return JSONResponse({"object": "list", "model": batcher.engine.name, "data": data})


async def models(request: Request) -> JSONResponse:
    """What is served."""
    service: Service = request.app.state.service
    records = [_record(b.engine, service.limits) for b in service.batchers.values()]
    return JSONResponse(ModelList(data=records).model_dump())


async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


async def ready(request: Request) -> dict[str, str]:
    """Every model ran lately and accepts work."""
    if not request.app.state.service.ready:
        raise Problem(503, "not_ready", "a model is loading or lost: try again later")
    return {"status": "ready"}


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(request.app.state.service.text_metrics(), media_type=CONTENT_TYPE_LATEST)


async def unrouted(scope: Scope, receive: Receive, send: Send) -> None:
    """Whatever else is under /v1: 405 where another method would do, else 404."""
    outer = {**scope, "root_path": ""}
    allowed = sorted(
        method
        for route in scope["app"].routes
        if route.matches(outer)[0] is Match.PARTIAL
        for method in route.methods
    )
    if allowed:
        raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
    raise HTTPException(404)


async def _features(service: Service, batcher: Batcher, items: list[Item]) -> np.ndarray:
    images = await service.images(items, batcher.engine.preprocessing)
    return await service.features(batcher, images)


async def _differences(
    service: Service, batcher: Batcher, pairs: list[tuple[Item, Item]]
) -> list[dict[str, Any]]:
    """All first images, then all second ones, so that one split gives both sides."""
    engine = batcher.engine
    items = [a for a, _ in pairs] + [b for _, b in pairs]
    images = await service.images(items, engine.preprocessing)
    a, b = np.split(await service.features(batcher, images), 2)
    physical = await service.in_thread(engine.differences, a, b)
    gray = [is_gray(image) for image in images]
    return [
        {
            "index": i,
            "differences": describe(
                engine.spec,
                {kind: values[i] for kind, values in physical.items()},
                gray[i] or gray[i + len(pairs)],
            ),
        }
        for i in range(len(pairs))
    ]


def _embedding_answer(
    model: str, features: np.ndarray, options: EmbeddingOptions
) -> dict[str, Any]:
    packed = options.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(row) if packed else row.tolist()}
        for i, row in enumerate(features)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _npy(features: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, features.astype("<f4"), allow_pickle=False)
    return buffer.getvalue()


def _record(engine: Engine, limits: Limits) -> ModelRecord:
    heads = engine.spec.heads.items()
    return ModelRecord(
        id=engine.name,
        dimension=engine.spec.features,
        augmentations={kind: [d.name for d in head.dimensions] for kind, head in heads},
        units={kind: {d.name: d.unit for d in head.dimensions} for kind, head in heads},
        limits=vars(limits),
        sha256=engine.sha256,
        provider=engine.provider,
        precision=engine.precision,
        decode=engine.preprocessing.decode,
    )


async def _on_problem(request: Request, problem: Problem) -> JSONResponse:
    return problem.response()


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """What the framework refuses by itself."""
    codes = {404: ("not_found", "no such path"), 405: ("method_not_allowed", "not this method")}
    code, message = codes.get(error.status_code, ("refused", "the request cannot be answered"))
    problem = Problem(error.status_code, code, message, headers=dict(error.headers or {}))
    return problem.response()


async def _on_client_left(request: Request, error: ClientDisconnect) -> JSONResponse:
    return Problem(_CLIENT_LEFT, "client_left", "the client left").response()


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """Our bug: the log has the traceback, the client a sentence."""
    return Problem(500, "internal_error", "the server failed on this request").response()


_HANDLERS: dict[Any, Any] = {
    Problem: _on_problem,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_client_left,
    Exception: _on_bug,
}
