"""`augself serve`: every option has an effect, and its help shows them in groups."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import httpx
import pytest
from click.testing import CliRunner

from augself_hub.cli import augself
from serving.commands import serve
from serving.inference.engine import MAX_BATCH
from serving.settings import ServerSettings

GROUPS = ("Models", "Address", "Limits", "Performance", "Security", "Logs")


def started(monkeypatch, *options: str) -> dict:
    """What the command hands on: settings, sources, address, logs. Nothing is served."""
    seen: dict = {}

    def create_app(sources, settings):
        seen.update(vars(settings), sources=sources)
        return settings.host

    monkeypatch.setattr("serving.http.api.create_app", create_app)
    monkeypatch.setattr(
        "serving.http.server.run",
        lambda app, address: seen.update(vars(address), bound=app, told=app == address.host),
    )
    monkeypatch.setattr("serving.commands.configure", lambda *logs: seen.update(logs=logs))
    done = CliRunner().invoke(serve, options)
    assert done.exit_code == 0, done.exception
    return seen


# Option -> what to give and what comes of it in the server's settings, its sources, or its address.
# That those do what they say is shown where they live: test_models, test_keys, test_urls ...
EFFECTS = {
    "model": ("{model}", lambda s: s["sources"][0].name == "tiny"),
    "device": ("cpu", lambda s: s["sources"][0].device == "cpu"),
    "precision": ("fp32", lambda s: s["sources"][0].precision == "fp32"),
    "decode": ("fast", lambda s: s["sources"][0].decode == "fast"),
    "threads": ("1", lambda s: s["sources"][0].threads == 1),
    "lazy": (None, lambda s: s["lazy"]),
    "memory-limit": ("123", lambda s: s["memory_limit"] == 123),
    "demo": (None, lambda s: s["demo"]),
    "demo-table": ("{folder}", lambda s: s["demo"] and s["table"]),
    "limit": ("items=3", lambda s: s["limits"].items == 3),
    "decoders": ("3", lambda s: s["decoders"] == 3),
    "max-batch-size": ("3", lambda s: s["max_batch_size"] == 3),
    "max-batch": ("3", lambda s: s["max_batch_size"] == 3),
    "host": ("127.0.0.2", lambda s: s["host"] == "127.0.0.2" and s["told"]),
    "port": ("123", lambda s: s["port"] == 123),
    "uds": ("{folder}/s", lambda s: s["uds"] and s["host"] != s["bound"]),
    "root-path": ("/images", lambda s: s["root_path"] == "/images"),
    "log-format": ("json", lambda s: s["logs"] == ("json", "info")),
    "log-level": ("error", lambda s: s["logs"] == ("text", "error")),
    "token": ("abc", lambda s: s["tokens"] == ("abc",)),
    "tokens-file": ("{tokens}", lambda s: s["tokens"] == ("one", "two")),
    "allow-host": ("a.org", lambda s: s["allow_hosts"] == ("a.org",)),
    "allow-origin": ("https://a.org", lambda s: s["allow_origins"] == ("https://a.org",)),
    "allow-url-host": ("a.org", lambda s: s["url_hosts"] == ("a.org",)),
    "access-log": ("-", lambda s: s["access_log"] == "-"),
}


def test_no_option_is_without_its_effect():
    options = {option.opts[0].removeprefix("--") for option in serve.params}
    # Those have tests of their own: test_configuration.py, http/test_address.py.
    assert options == {*EFFECTS, "print-config", "tls-certificate", "tls-key"}


@pytest.mark.parametrize("option", EFFECTS)
def test_an_option_reaches_the_server(monkeypatch, tiny_model, tmp_path, option):
    (tmp_path / "tokens").write_text("one\ntwo\n")
    names = {"model": tiny_model, "folder": tmp_path, "tokens": tmp_path / "tokens"}
    value, effect = EFFECTS[option]
    given = [f"--{option}", *([] if value is None else [value.format(**names)])]
    assert effect(started(monkeypatch, *given))
    if option != "precision":  # fp32 is all that this model has
        assert not effect(started(monkeypatch))


def test_every_setting_is_read_by_the_server():
    """No field of the settings that only the command line knows."""
    from inspect import getsource

    from serving.http import api

    source = getsource(api.create_app)
    unread = [
        name for name in vars(ServerSettings()) if not re.search(rf"settings\.{name}\b", source)
    ]
    assert unread == []


def test_help_shows_the_options_in_groups():
    text = CliRunner().invoke(serve, ["--help"]).output
    headings = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headings == [*GROUPS, "Help"]
    assert all(f"--{option}" in text for option in EFFECTS)
    assert "--max-batch " not in text  # its name in 0.1


def test_names_of_0_1_are_taken_with_a_notice(monkeypatch, caplog):
    old = ("--max-batch", "3", "--limit", "slots=5", "--limit", "waiting_images=300")
    seen = started(monkeypatch, *old)
    assert seen["max_batch_size"] == 3
    limits = seen["limits"]
    assert (limits.max_concurrent_requests, limits.max_queue_size) == (5, 300)
    assert [record.getMessage() for record in caplog.records] == [
        "--max-batch is called --max-batch-size now",
        "the limit slots is called max_concurrent_requests now",
        "the limit waiting_images is called max_queue_size now",
    ]
    both = started(monkeypatch, "--max-batch", "3", "--max-batch-size", "4")
    assert both["max_batch_size"] == 4
    monkeypatch.setenv("AUGSELF_SERVE_MAX_BATCH", "6")
    (command,) = (c for c in [augself.get_command(click.Context(augself), "serve")] if c)
    assert command.make_context("serve", []).params["max_batch"] == 6


def test_the_default_batch_is_the_largest():
    (option,) = (option for option in serve.params if option.name == "max_batch_size")
    assert option.default == option.type.max == MAX_BATCH == ServerSettings().max_batch_size


def test_decoders_and_batches_have_the_size_asked_for(start_server, pixels, encoded):
    server = start_server("--decoders", "3", "--max-batch-size", "2")
    files = [("image", encoded(pixels(n))) for n in range(4)]
    with httpx.Client(base_url=server.url) as client:
        for _ in range(4):
            assert client.post("/v1/embeddings", files=files[:1]).status_code == 200
        metrics = client.get("/metrics").text
    assert "augself_decoders 3.0" in metrics
    for stage in ("read", "decode", "queue", "model", "encode"):
        (count,) = re.findall(rf'augself_stage_seconds_count{{stage="{stage}"}} (\S+)', metrics)
        assert float(count) == 4


def test_int8_that_is_not_there_is_refused_before_anything_is_served(tiny_model):
    command = [sys.executable, "-m", "augself_hub.cli", "serve", "--lazy", "--precision", "int8"]
    command += ["--model", str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "augself export" in done.stderr.splitlines()[-1]
