"""Traces by OpenTelemetry: to a collector of our own where OTEL_* says so, and nowhere else."""

from __future__ import annotations

import http.server
import json
import sys
import threading

import httpx
import pytest

from augself_hub.errors import MissingExtra, UsageError
from serving import tracing

pytest.importorskip("opentelemetry.sdk", reason="pip install 'augself-hub[tracing]'")


@pytest.fixture
def collector():
    """Takes OTLP over HTTP -> its address, the paths it was asked at, the spans."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    asked: list[str] = []
    spans: list = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend((names["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked, spans
        server.shutdown()


def test_a_request_is_a_span_of_the_callers_trace(
    start_server, collector, tmp_path, pixels, encoded
):
    address, asked, spans = collector
    log = tmp_path / "log"
    server = start_server(
        "--access-log", str(log), "--root-path", "/images",
        OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_SERVICE_NAME="pictures",
    )  # fmt: skip
    trace, parent = "ab" * 16, "cd" * 8
    with httpx.Client(base_url=server.url) as client:
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        answer = client.post("/v1/embeddings", content=encoded(pixels(1)), headers=headers)
        client.get("/images/v1/models/tiny?/health")  # no way to hide
        client.post("/v1/embeddings", content=b"x" * 9)
        for path in ("/health", "/health/live", "/metrics", "/images/metrics", "/v2/health/ready"):
            client.get(path)
    assert server.stop() == 0  # what is left is sent at the end
    assert set(asked) == {"/v1/traces"}
    assert {name for name, _ in spans} == {"pictures"}
    named = [span.name for _, span in spans]
    assert named == ["POST /v1/embeddings", "GET /v1/models", "POST /v1/embeddings"]
    first = spans[0][1]
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (trace, parent)
    assert answer.headers["traceresponse"] == f"00-{trace}-{first.span_id.hex()}-01"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    line = next(line for line in lines if line["path"] == "/images/v1/embeddings")
    assert (line["trace_id"], line["span_id"]) == (trace, first.span_id.hex())


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "a=b"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_loaded_unless_it_is_asked_for(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = object()
    assert tracing.traced(app, str)[0] is app  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp, console and none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_is_not_there_is_refused(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        tracing.asked()


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    monkeypatch.setattr("augself_hub.lazy.installed", lambda package: False)
    with pytest.raises(MissingExtra, match=r"augself-hub\[tracing\]"):
        tracing.traced(object(), str)  # type: ignore[arg-type]


def test_spans_on_the_console(start_server):
    server = start_server(OTEL_TRACES_EXPORTER="console")
    httpx.get(f"{server.url}/v1/models")
    assert server.stop() == 0
    assert '"name": "GET /v1/models"' in server.process.stdout.read()
