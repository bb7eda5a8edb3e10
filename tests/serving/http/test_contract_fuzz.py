"""Requests made from the OpenAPI document, and their opposites: every answer is as documented."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode, checks

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def pictures() -> st.SearchStrategy[bytes]:
    """A small PNG, or what is none."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return st.one_of(st.just(file.getvalue()), st.binary(max_size=100))


schemathesis.openapi.media_type("image/*", pictures())


@pytest.fixture
def fuzzed(server):
    """Asks every operation so many times what its document allows, and what it does not."""

    def fuzz(examples: int, always_the_same: bool) -> None:
        document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in (result.ok() for result in document.get_all_operations()):
            modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
            for mode in modes:  # there is nothing to do wrong where nothing is given
                cases = operation.as_strategy(generation_mode=mode)
                ask(cases, max_examples=examples, derandomize=always_the_same)

    yield fuzz
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    assert "Traceback" not in "".join(server.log)


def ask(cases: st.SearchStrategy[schemathesis.Case], **how_many: Any) -> None:
    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), **how_many)
    @given(cases)
    def conforms(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    conforms()


def test_every_answer_is_as_documented(fuzzed):
    fuzzed(20, always_the_same=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_answer_is_as_documented_for_long(fuzzed):
    fuzzed(1000, always_the_same=False)
