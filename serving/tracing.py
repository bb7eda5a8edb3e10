"""Traces by OpenTelemetry, where the operator sets it up: without OTEL_* nothing is loaded or sent.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 augself serve     # extra: tracing

The SDK and the ASGI instrumentation are OpenTelemetry's own and read its own variables: the name of
the service, the sampler, the exporter's headers and times. A request is one span, called after its
method and route; probes and metrics are none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Scope

from augself_hub.errors import UsageError
from augself_hub.lazy import needs

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPAN = "augself.span"  # in a request's scope: its trace's id, its span's, and its flags
# Of a whole URL; what a client writes behind a question mark hides nothing.
_UNTRACED = r"^[^?]*/(health(/live|/ready)?|metrics)/?(\?.*)?$"


def asked() -> str:
    """The exporter that the environment asks for: otlp, console, or none.

    Raises:
        UsageError: another one, or a protocol that is not there.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    default = "otlp" if any(os.environ.get(name) for name in _ENDPOINTS) else "none"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or default
    if exporter not in ("otlp", "console", "none"):
        raise UsageError(f"OTEL_TRACES_EXPORTER is {exporter}: otlp, console and none are known")
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), None)
    if exporter == "otlp" and protocol not in (None, "http/protobuf"):
        raise UsageError(
            f"the protocol of OTLP is {protocol}: http/protobuf is known, on port 4318"
        )
    return exporter


def traced(app: ASGIApp, name_of: Callable[[Scope], str]) -> tuple[ASGIApp, Callable[[], None]]:
    """The application with its requests traced, if that is asked for -> it, and what ends it.

    Args:
        name_of: a request's route, as a name of ours.

    Raises:
        MissingExtra: it is asked for and not installed.
    """
    exporter = asked()
    if exporter == "none":
        return app, lambda: None
    with needs("tracing"):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    if exporter == "otlp":
        with needs("tracing"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        sink: Any = OTLPSpanExporter()
    else:
        sink = ConsoleSpanExporter()
    name = os.environ.get("OTEL_SERVICE_NAME", "augself-hub")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(sink))

    def note(span: Any, scope: Scope) -> None:
        context = span.get_span_context()
        if context.is_valid:
            scope[SPAN] = (
                f"{context.trace_id:032x}",
                f"{context.span_id:016x}",
                f"{context.trace_flags:02x}",
            )

    middleware = OpenTelemetryMiddleware(
        app,
        excluded_urls=_UNTRACED,
        default_span_details=lambda scope: (
            f"{scope['method']} {name_of(scope)}",
            {"http.route": name_of(scope)},
        ),
        server_request_hook=note,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )
    return middleware, provider.shutdown
