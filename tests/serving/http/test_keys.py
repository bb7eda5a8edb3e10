"""Tokens: several, from three places, compared in constant time."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest

from augself_hub.errors import UsageError
from serving.http.api import create_app
from serving.http.keys import MAX_LENGTH, Keys, read_tokens
from serving.inference.source import ModelSource
from serving.settings import ServerSettings


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("authorization", "admitted"),
    [
        (basic("anybody:two"), True),
        (basic(":one"), True),
        (basic("one"), False),
        (basic("one:"), False),
        (basic("two:one:x"), False),
        ("Basic one", False),
        ("Basic /w==", False),
        ("Bearer " + basic(":one")[6:], False),
        ("Bearer one", True),
        ("bearer two", True),
        ("Bearer three", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("one", False),
        ("", False),
        ("Bearer " + "x" * 60_000, False),
        ("Bearer \xff\udcff", False),
    ],
)
def test_any_one_of_the_tokens_opens(authorization, admitted):
    assert Keys(["one", "two"]).admit(authorization) is admitted


def test_without_tokens_everybody_may_come():
    assert Keys().admit("")


@pytest.mark.parametrize("token", ["", " ", "a b", "ü", "x" * (MAX_LENGTH + 1), "a\n"])
def test_a_token_that_no_client_could_send_is_refused(token):
    with pytest.raises(UsageError, match="no client could send it"):
        Keys([token])


def test_every_token_is_compared_whatever_was_found(monkeypatch):
    """Neither the first match nor a wrong scheme ends the comparison early."""
    from serving.http import keys

    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: (compared.append(b), a == b)[1])
    door = Keys(["one", "two", "three"])
    for authorization in ("Bearer one", "Bearer none", "Basic one"):
        compared.clear()
        door.admit(authorization)
        assert len(compared) == 3


def test_a_file_has_one_token_a_line(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# of the shop\none\n\n  two  \r\n#three\n")
    assert read_tokens(path) == ["one", "two"]
    path.write_text("\ufeffone\r\n", encoding="utf-8")  # as some editors write it
    assert read_tokens(path) == ["one"]


@pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff\xfe\x00"])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    """An empty file must not leave the door open."""
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="write"):
        read_tokens(path)


def test_the_server_takes_tokens_from_all_three_places(start_server, tmp_path):
    path = tmp_path / "tokens"
    path.write_text("filed\n")
    server = start_server("--token", "given", "--token", "too", "--tokens-file", str(path))
    models = f"{server.url}/v1/models"
    for token in (None, "wrong", "x" * 9999):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(models, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for token in ("given", "too", "filed"):
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(models, headers=headers).status_code == 200
    assert httpx.get(f"{server.url}/health/live").status_code == 200


def test_the_environment_holds_several_tokens(start_server):
    server = start_server(AUGSELF_TOKEN="one two")
    for token, status in (("one", 200), ("two", 200), ("one two", 401)):
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status


def test_a_key_is_wanted_wherever_the_application_is_mounted(tiny_model):
    """Another server may put all of it below a path of its own."""
    gate = create_app([ModelSource("tiny", tiny_model, "cpu")], ServerSettings(tokens=("one",)))

    async def ask(root: str, path: str, **headers: str) -> int:
        transport = httpx.ASGITransport(gate, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get(root + path, headers=headers)).status_code

    for root in ("", "/below"):
        for path in ("/v1/models", "/v2", "/v2/models/tiny", "/v2/nothing"):
            assert asyncio.run(ask(root, path)) == 401
            known = path != "/v2/nothing"
            answer = asyncio.run(ask(root, path, Authorization="Bearer one"))
            assert answer == (200 if known else 404)
        assert asyncio.run(ask(root, "/v2/health/live")) == 200
