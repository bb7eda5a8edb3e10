"""Fields of JSON that stand twice: held against the standard library, which tells of each pair."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.http import bodies
from serving.http.bodies import parsed_json
from serving.http.problems import Problem

NAMES = st.sampled_from(["input", "a", 'q"', "b\\", 'c\\"', "", "ü", "\u2028", ":", '":'])
TEXTS = st.text(alphabet='ab"\\:{},[]\n ü', max_size=6)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as texts, whose names may repeat."""
    pairs = st.lists(st.tuples(NAMES, values, st.sampled_from([":", " : ", ": "])), max_size=4)
    return pairs.map(
        lambda found: "{" + ",".join(f"{json.dumps(n)}{m}{v}" for n, v, m in found) + "}"
    )


DOCUMENTS = st.recursive(
    st.one_of(TEXTS.map(json.dumps), st.sampled_from(["1", "-2.5e3", "true", "null"])),
    lambda inner: st.one_of(
        objects(inner), st.lists(inner, max_size=4).map(lambda found: "[" + ",".join(found) + "]")
    ),
    max_leaves=12,
)


@pytest.fixture(params=[1, 3, 2**20])
def slices(request, monkeypatch) -> None:
    """However a body is cut to be looked through."""
    monkeypatch.setattr(bodies, "_SLICE", request.param)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(DOCUMENTS)
def test_only_what_stands_twice_is_refused(slices, text: str):
    twice = []

    def seen(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(pairs)

    wanted = json.loads(text, object_pairs_hook=seen)
    body = text.encode()
    if twice:
        with pytest.raises(Problem) as caught:
            parsed_json(body, 1000)
        assert (caught.value.status, caught.value.code) == (422, "given_twice")
    else:
        assert parsed_json(body, 1000) == wanted


def test_a_field_is_not_hidden_by_texts_that_end_with_a_backslash():
    texts = ",".join([r'"\\"'] * 4)  # whose ends look like escaped quotes
    with pytest.raises(Problem, match="more than once"):
        parsed_json(f'{{"a": "x", "a": "y", "b": [{texts}]}}'.encode(), 100)


def test_the_field_is_named_and_the_place_of_what_is_no_json():
    with pytest.raises(Problem) as caught:
        parsed_json(b'{"input": "a", "model": "b", "input": "c"}', 100)
    assert caught.value.param == "input"
    with pytest.raises(Problem) as caught:
        parsed_json(b'{"inputs": [], "inputs": []}', 100, strict=True)
    assert (caught.value.status, caught.value.param) == (400, "inputs")
    with pytest.raises(Problem, match=r"not JSON at line 2 column 3"):
        parsed_json(b'{"input":\n  x}', 100)
