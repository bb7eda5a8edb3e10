"""The HTTP interface: routes, their answers, their errors.

POST /v1/embeddings        images -> features, in OpenAI's shape
POST /v1/augmentations     pairs of images -> how their augmentations differ
GET  /v1/models, /v1/models/{id}   what is served
/v2/...                    the open inference protocol, see `kserve`
GET  /health, /health/live, /health/ready, /version, /metrics, /docs
/                          the demo where it was asked for, else /docs

HEAD is answered wherever GET is, OPTIONS with what is allowed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from augself_hub import __version__
from augself_hub.differences import records
from serving.http import bodies, document, kserve
from serving.http.access_log import AccessLog, note
from serving.http.bodies import Item, read, refuse_query
from serving.http.callers import Callers
from serving.http.deadline import before_deadline
from serving.http.exchange import HOLD
from serving.http.gate import Gate
from serving.http.keys import Keys
from serving.http.late_demo import LateDemo
from serving.http.negotiation import JSON, NPY, negotiated
from serving.http.paths import OURS, inner_path
from serving.http.problems import ANSWERED, Problem, problem_of
from serving.http.schemas import (
    AugmentationAnswer,
    AugmentationOptions,
    AugmentationRequest,
    EmbeddingAnswer,
    EmbeddingFields,
    EmbeddingRequest,
    ModelList,
    ModelRecord,
)
from serving.http.urls import AllowedHosts, Fetcher
from serving.inference.models import Model, Models
from serving.inference.service import Service
from serving.inference.source import ModelSource
from serving.limits import Limits
from serving.metrics import Metrics
from serving.settings import ServerSettings

_MOST_IGNORED = 8  # fields are named in the answer
_PLAIN = re.compile(r"[\w.-]{1,64}", re.ASCII)


def create_app(sources: Sequence[ModelSource], settings: ServerSettings | None = None) -> Gate:
    """The whole server as one ASGI application, its gate outside; its models loaded unless lazy.

    Args:
        sources: the models; the first is the default.

    Raises:
        MissingExtra: the demo was asked for without Gradio.
        UsageError: two models of one name, there or under /v2, or settings that cannot be.
        AugSelfError: a model cannot be loaded, the access log cannot be written.
    """
    settings = settings or ServerSettings()
    limits, metrics, keys = settings.limits, Metrics(), Keys(settings.tokens)
    callers = Callers(settings.host, settings.allow_hosts, settings.allow_origins)
    models = Models(
        sources, metrics, limits.max_queue_size, settings.max_batch_size, settings.memory_limit
    )
    kserve.refuse_shared_names(models)
    hosts = AllowedHosts.parse(settings.url_hosts)
    fetcher = Fetcher(hosts, limits, metrics) if settings.url_hosts else None
    service = Service(models, limits, metrics, settings.decoders)
    demo = LateDemo(service, settings.table, keys, settings.root_path) if settings.demo else None
    log = AccessLog(settings.access_log, metrics) if settings.access_log else None
    if not settings.lazy:
        models.preload()
    app = _application(service, fetcher, demo)
    document.describe(app, keyed=bool(settings.tokens))
    described = {**service.described, "keys": len(settings.tokens), "demo": settings.demo}
    return Gate(
        app,
        limits,
        metrics,
        keys,
        callers,
        log,
        request_ids=settings.request_ids,
        root_path=settings.root_path,
        described=described,
    )


def _application(service: Service, fetcher: Fetcher | None, demo: LateDemo | None) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with contextlib.nullcontext() if demo is None else demo.running():
            yield
        await service.stop()
        if fetcher is not None:
            await fetcher.close()

    app = FastAPIOffline(
        title="AugSelf Hub",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation,
        exception_handlers=_HANDLERS,
    )
    app.state.service, app.state.fetcher = service, fetcher
    _add_routes(app)
    if demo is not None:
        app.mount("/", demo)
    else:
        app.router.routes.append(Route("/", documentation, include_in_schema=False))
        app.router.routes.append(Route("/", Unrouted(), include_in_schema=False))
    return app


def _operation(route: APIRoute) -> str:
    """What generated clients call it."""
    return f"v2_{route.name}" if route.path.startswith("/v2") else route.name


def _add_routes(app: FastAPI) -> None:
    form = "multipart/form-data"
    kinds = {form: "EmbeddingForm", "image/*": "binary"}
    images = document.body(EmbeddingRequest, document.EMBEDDING, **kinds)
    pairs = document.body(AugmentationRequest, document.PAIR, **{form: "AugmentationForm"})
    either: document.Responses = {
        200: {"content": {JSON: {"example": document.EMBEDDINGS}, NPY: {}}}
    }
    app.post(
        "/v1/embeddings",
        response_model=EmbeddingAnswer,
        responses=document.errors() | either,
        openapi_extra=images | document.query(EmbeddingFields),
        tags=[document.IMAGES],
    )(embeddings)
    app.post(
        "/v1/augmentations",
        response_model=AugmentationAnswer,
        responses=document.errors(),
        openapi_extra=pairs | document.query(AugmentationOptions),
        tags=[document.IMAGES],
    )(augmentations)
    listed: dict[str, Any] = {"responses": document.plain(), "tags": [document.MODELS]}
    listed["dependencies"] = [Depends(refuse_query)]
    app.get("/v1/models", response_model=ModelList, **listed)(models)
    app.get("/v1/models/{id:path}", response_model=ModelRecord, **listed)(model)
    probed: dict[str, Any] = {"responses": document.open_to_all(), "tags": [document.OPERATION]}
    app.get("/health", **probed)(health)
    app.get("/health/live", **probed)(live)
    app.get("/health/ready", **probed)(ready)
    app.get("/version", **probed)(version)
    # Without a class of its own: the errors are JSON all the same.
    text: document.Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    counted = probed | {"responses": probed["responses"] | text}
    app.get("/metrics", response_class=Response, **counted)(metrics)
    kserve.add_routes(app)
    for route in [r for r in app.routes if isinstance(r, APIRoute) and "GET" in (r.methods or ())]:
        app.head(
            route.path,
            dependencies=route.dependencies,
            response_model=None,
            include_in_schema=False,
        )(route.endpoint)
    # Before the demo, which would answer every path.
    for first in OURS:
        for rest in ("", "/{rest:path}"):
            app.router.routes.append(Route(f"/{first}{rest}", Unrouted(), include_in_schema=False))


async def embeddings(request: Request) -> Response:
    """Features of one or more images, in the order of the request."""
    media_type = negotiated(request.headers.get("accept"), JSON, NPY)
    service: Service = request.app.state.service
    with service.metrics.stage("read"):
        parse = partial(bodies.embeddings, request, service.limits)
        options, items = await read(request, parse)
    model = service.models.named(options.model)
    width = model.source.spec.features
    if options.dimensions not in (None, width):  # its first ones alone were never trained
        message = f"embeddings of this model have {width} dimensions and are not cut: ask for "
        raise Problem(400, "unsupported_dimensions", f"{message}{width} or for none", "dimensions")
    note(request.scope, model=model.name, images=len(items))
    unknown = filter(_PLAIN.fullmatch, options.model_extra or ())
    ignored = ", ".join(itertools.islice(unknown, _MOST_IGNORED))
    headers = {"X-Ignored-Fields": ignored} if ignored else {}
    work = _features(request, service, model, items)
    features = await before_deadline(request, model, service.limits.deadline_seconds, work)
    with service.metrics.stage("encode"):
        if options.normalize:
            features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        if not np.isfinite(features).all():
            raise ValueError(f"features of {model.name} are not finite")
        if media_type == NPY:
            buffer = io.BytesIO()
            np.save(buffer, features.astype("<f4"), allow_pickle=False)
            return Response(buffer.getvalue(), media_type=NPY, headers=headers)
        rows: list[Any] = features.tolist()
        if options.encoding_format == "base64":
            rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in features]
        answer = {
            "object": "list",
            "model": model.name,
            "data": [
                {"object": "embedding", "index": i, "embedding": r} for i, r in enumerate(rows)
            ],
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
        # Not JSONResponse: the standard library takes 66 ms for 64 rows of 2,048 numbers.
        return Response(to_json(answer), media_type=JSON, headers=headers)


async def augmentations(request: Request) -> Response:
    """How the augmentations of the second image of each pair differ from the first's."""
    negotiated(request.headers.get("accept"), JSON)
    service: Service = request.app.state.service
    with service.metrics.stage("read"):
        parse = partial(bodies.pairs, request, service.limits)
        options, pairs = await read(request, parse)
    model = service.models.named(options.model)
    note(request.scope, model=model.name, images=2 * len(pairs))
    work = _differences(request, service, model, pairs)
    data = await before_deadline(request, model, service.limits.deadline_seconds, work)
    with service.metrics.stage("encode"):
        return JSONResponse({"object": "list", "model": model.name, "data": data})


async def models(request: Request) -> JSONResponse:
    """What is served."""
    service: Service = request.app.state.service
    records = [_record(model, service.limits) for model in service.models.all.values()]
    return JSONResponse(ModelList(data=records).model_dump())


async def model(request: Request, id: str) -> JSONResponse:
    """One of them."""
    service: Service = request.app.state.service
    return JSONResponse(_record(service.models.named(id), service.limits).model_dump())


async def health(request: Request) -> dict[str, str]:
    """As /health/ready."""
    return await ready(request)


async def version() -> dict[str, str]:
    """Of this server."""
    return {"version": __version__}


async def documentation(request: Request) -> RedirectResponse:
    """Where there is no demo, / leads to /docs."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs", 307)


async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


async def ready(request: Request) -> dict[str, str]:
    """Every loaded model ran lately and accepts work."""
    if not request.app.state.service.ready:
        raise Problem(503, "not_ready", "a model is lost, or all decoders are: try again later")
    return {"status": "ready"}


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(request.app.state.service.text_metrics(), media_type=CONTENT_TYPE_LATEST)


class Unrouted:
    """Whatever else is under our paths: 405 where another method would do, else 404."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = {
            method
            for route in scope["app"].routes
            if route.matches(scope)[0] is Match.PARTIAL
            for method in route.methods
        }
        allowed = sorted({*methods, "OPTIONS"} if methods else ())
        if allowed and scope["method"] == "OPTIONS":
            await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(
                scope, receive, send
            )
            return
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
        raise HTTPException(404)


async def _features(
    request: Request, service: Service, model: Model, items: list[Item]
) -> np.ndarray:
    """Images are fetched and decoded before any of them is queued."""
    async with service.models.acquired(model) as batcher:
        files = await _fetched(request, items)
        images = await service.images(files, model.source.preprocessing)
        return await asyncio.wrap_future(batcher.submit(images))


async def _differences(
    request: Request, service: Service, model: Model, pairs: list[tuple[Item, Item]]
) -> list[dict[str, Any]]:
    """All first images, then all second ones, so that one split gives both sides."""
    items = [a for a, _ in pairs] + [b for _, b in pairs]
    async with service.models.acquired(model) as batcher:
        files = await _fetched(request, items)
        images = await service.images(files, model.source.preprocessing)
        found = await service.predict_pairs(batcher, images)
    answers = enumerate(records(model.source.spec, found))
    return [{"index": i, **record} for i, record in answers]


async def _fetched(request: Request, items: list[Item]) -> list[Item]:
    fetcher: Fetcher | None = request.app.state.fetcher
    return items if fetcher is None else await fetcher.fetched(items, request.scope[HOLD])


def _record(model: Model, limits: Limits) -> ModelRecord:
    source = model.source
    heads = {kind: head for kind, (_, head) in source.spec.answering().items()}.items()
    return ModelRecord(
        id=model.name,
        dimension=source.spec.features,
        convention=source.spec.convention,
        augmentations={kind: [d.name for d in head.dimensions] for kind, head in heads},
        units={kind: {d.name: d.unit for d in head.dimensions} for kind, head in heads},
        limits=limits.record(),
        sha256=source.sha256,
        state=model.state,
        memory_bytes=0 if model.batcher is None else model.bytes,
        provider=model.provider,
        precision=source.precision,
        decode=source.decode,
    )


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    """Whatever went wrong below the routes; of a bug the log has the traceback."""
    problem = problem_of(error)
    note(request.scope, error=problem.code)
    return problem.response(inner_path(request.scope))


_HANDLERS: dict[Any, Any] = dict.fromkeys(ANSWERED, _on_error)
