"""Options from the environment and from a file, of every command."""

from __future__ import annotations

import tomllib

import click
import pytest
from click.core import ParameterSource

from augself_hub.cli import COMMANDS, augself
from augself_hub.configuration import options_of, variable

TYPED, ENVIRONMENT = ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT
FILE, DEFAULT = ParameterSource.DEFAULT_MAP, ParameterSource.DEFAULT


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("AUGSELF_")]:
        monkeypatch.delenv(name)


def command_of(name: str) -> click.Command:
    command = augself.get_command(click.Context(augself), name)
    assert command is not None
    return command


ALL = [(name, option) for name in COMMANDS for option in options_of(command_of(name))]


def test_the_names_are_made_as_documented():
    assert variable("fit-heads", "batch-size") == "AUGSELF_FIT_HEADS_BATCH_SIZE"
    variables = [variable(*each) for each in ALL]
    assert len(set(variables)) == len(variables) > 150
    assert "AUGSELF_SERVE_PORT" in variables and "AUGSELF_EXTRACT_THREADS" in variables


@pytest.mark.parametrize(("name", "key"), ALL, ids=lambda word: word)
def test_every_option_of_every_command_by_its_precedence(monkeypatch, tmp_path, name, key):
    """What is typed, then the environment, then the file, then the default."""
    command = command_of(name)
    option = options_of(command)[key]
    flag, several = option.is_flag, option.multiple or option.nargs > 1
    values = {
        "file": False if flag else "from the file",
        "environment": "1" if flag else "variable",
        "typed": True if flag else "typed",
    }
    text = {False: "false", "from the file": '"from the file"'}[values["file"]]
    (tmp_path / "c.toml").write_text(f"[{name}]\n{key} = {text}\n")

    def taken(typed: dict, path: str | None) -> tuple:
        context = click.Context(command)
        config = next(p for p in command.params if p.name == "config")
        config.handle_parse_result(context, {"config": path} if path else {}, [])
        value, source = option.consume_value(context, typed)
        return (value[0] if several and source is not DEFAULT else value), source

    path = str(tmp_path / "c.toml")
    assert taken({}, None)[1] is DEFAULT
    assert taken({}, path) == (values["file"], FILE)
    monkeypatch.setenv(variable(name, key), values["environment"])
    expected = True if flag else values["environment"]
    found, source = taken({}, path)
    assert (found in (expected, "1"), source) == (True, ENVIRONMENT)
    typed = [values["typed"]] if several else values["typed"]
    assert taken({option.name: typed}, path) == (values["typed"], TYPED)
    monkeypatch.delenv(variable(name, key))
    monkeypatch.setenv("AUGSELF_CONFIG", path)
    assert taken({}, None) == (values["file"], FILE)


SERVE = """
[serve]
port = 8000
demo = true
model = ["a folder/with blanks", "org/b"]
limit = { items = 128, max_queue_size = 512, answer_seconds = 2.5 }
max_batch = 16
token = "secret"
[extract]
device = "cpu"
"""


def test_the_configuration_is_printed_and_can_be_read_again(augself, monkeypatch, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(SERVE)
    monkeypatch.setenv("AUGSELF_SERVE_DEVICE", "cpu")
    monkeypatch.setenv("AUGSELF_SERVE_MAX_BATCH", "8")
    monkeypatch.setenv("AUGSELF_SERVE_ALLOW_HOST", "a.org b.org")
    done = augself("serve", "--config", path, "--threads", 3, "--print-config")
    assert (done.status, done.err) == (0, "")
    assert "secret" not in done.out and f"# token: not shown; {path}" in done.out
    told = tomllib.loads(done.out)["serve"]
    assert {key: told[key] for key in ("port", "demo", "threads", "max-batch", "device")} == {
        "port": 8000, "demo": True, "threads": 3, "max-batch": 8, "device": "cpu",
    }  # fmt: skip
    assert told["model"] == ["a folder/with blanks", "org/b"]
    assert told["limit"] == ["items=128", "max_queue_size=512", "answer_seconds=2.5"]
    assert told["allow-host"] == ["a.org", "b.org"]
    for line in (f"port = 8000  # {path}", "max-batch = 8  # AUGSELF_SERVE_MAX_BATCH"):
        assert line in done.out
    assert "threads = 3  # command line" in done.out and 'decode = "exact"  # default' in done.out
    for name in ("DEVICE", "MAX_BATCH", "ALLOW_HOST"):
        monkeypatch.delenv(f"AUGSELF_SERVE_{name}")
    again = tmp_path / "again.toml"
    again.write_text(done.out)
    printed = augself("serve", "--config", again, "--print-config")
    assert tomllib.loads(printed.out)["serve"] == told | {"token": []}


def test_what_is_printed_of_a_unix_socket_can_be_read_again(augself, tmp_path):
    """--uds stands instead of host and port: a file with all three is refused."""
    printed = augself("serve", "--uds", tmp_path / "socket", "--print-config")
    assert "# host: not set" in printed.out and "# port: not set" in printed.out
    (tmp_path / "c.toml").write_text(printed.out)
    again = augself("serve", "--config", tmp_path / "c.toml", "--print-config")
    assert again.status == 0, again.err
    assert tomllib.loads(again.out) == tomllib.loads(printed.out)


def test_a_file_overrides_a_recipe(monkeypatch, tmp_path):
    """As what is typed does: a recipe fills in what was not given."""
    import training.api

    seen: dict = {}
    monkeypatch.setattr(training.api, "pretrain", lambda **given: seen.update(given) or tmp_path)
    (tmp_path / "c.toml").write_text("[pretrain]\nepochs = 3\nset = { learning_rate = 0.5 }\n")
    given = ["pretrain", "--data", "x", "--output", "y", "--recipe", "r"]
    augself.main([*given, "--config", str(tmp_path / "c.toml")], standalone_mode=False)
    assert seen["epochs"] == 3 and seen["arguments"] == {"learning_rate": 0.5}
    assert "batch_size" not in seen and seen["recipe"] == "r"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\nprt = 1", "serve has no option prt: is it port?"),
        ("[serv]\nport = 1", "serv is no command: is it serve?"),
        ("port = 1", "port is no command"),
        ("serve = 1", "write a table, [serve]"),
        ("[serve]\nport = true", "serve.port is true: write one text or number"),
        ("[serve]\nport = [1, 2]", "serve.port is [1, 2]"),
        ("[serve]\nport = 2020-01-01", 'serve.port is "2020-01-01"'),
        ("[serve]\ndemo = 1", "serve.demo is a flag: write true or false"),
        ("[serve]\nmax-batch = 1\nmax_batch = 1", "there twice"),
        ("[serve]\nlimit = { items = [1] }", "serve.limit.items is [1]"),
        ("[serve]\nconfig = 'x'", "serve has no option config"),
        ("[serve", "is no TOML"),
        ("[extract]\nports = 1\n[serv]", "serv is no command"),
    ],
)
def test_what_nobody_would_read_is_refused_by_name(augself, tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    done = augself("serve", "--config", tmp_path / "c.toml", "--print-config")
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert said in line and str(tmp_path / "c.toml") in line


def test_a_file_that_is_not_there_or_no_text(augself, tmp_path):
    assert augself("verify", "--config", tmp_path / "none").status == 2
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    done = augself("verify", "--config", tmp_path / "c.toml")
    assert done.status == 2 and "is no TOML" in done.err


@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_wrong_value_says_where_it_stands(augself, monkeypatch, tmp_path, place):
    path = tmp_path / "c.toml"
    path.write_text('[serve]\nport = "x"\n')
    if place == "environment":
        monkeypatch.setenv("AUGSELF_SERVE_PORT", "tcp://10.0.0.1:80")  # as Kubernetes may
    done = augself("serve", "--config", path)
    wanted = "(AUGSELF_SERVE_PORT)" if place == "environment" else f"({path})"
    assert done.status == 2 and wanted in done.err and "--port" in done.err


def test_variables_that_are_nobodys_are_named(augself, monkeypatch):
    monkeypatch.setenv("AUGSELF_SERVE_PROT", "1")
    monkeypatch.setenv("AUGSELF_SERVE_XYZZY", "1")
    monkeypatch.setenv("AUGSELF_DEVICE", "cpu")
    monkeypatch.setenv("AUGSELF_PORT", "tcp://10.0.0.1:80")  # Kubernetes, of a service "augself"
    monkeypatch.setenv("PORT", "8080")  # platforms set it for whoever reads it
    monkeypatch.setenv("AUGSELF_SERVE_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("AUGSELF_EXTRACT_THREADS", "1")  # another command's
    done = augself("serve", "--print-config")
    assert done.status == 0
    assert sorted(done.err.splitlines()) == [
        "warning: AUGSELF_DEVICE is set and not read: AUGSELF_SERVE_DEVICE is",
        "warning: AUGSELF_SERVE_PROT is set and not read: AUGSELF_SERVE_PORT is",
        "warning: AUGSELF_SERVE_XYZZY is set and not read: "
        "augself serve --help shows what there is",
    ]


def test_a_command_whose_name_begins_like_anothers_is_not_warned_of_its_variables(
    augself, monkeypatch
):
    monkeypatch.setenv("AUGSELF_LIST_IMAGES_JSON", "1")
    assert augself("list").err == ""


@pytest.mark.parametrize("name", ["AUGSELF_TOKEN", "AUGSELF_SERVE_TOKEN"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_token_does_not_open_the_door(augself, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    done = augself("serve", "--print-config")
    assert done.status == 2 and f"{name} is empty" in done.err


def test_the_variables_of_before_are_read(augself, monkeypatch):
    monkeypatch.setenv("AUGSELF_TOKEN", "one two")
    assert "# token: not shown; AUGSELF_TOKEN" in augself("serve", "--print-config").out
    option = options_of(command_of("evaluate"))["cache"]
    monkeypatch.setenv("AUGSELF_CACHE", "somewhere")
    assert option.consume_value(click.Context(command_of("evaluate")), {})[0] == "somewhere"


def test_debug_from_the_environment(augself, monkeypatch, tmp_path):
    assert "Traceback" not in augself("verify", tmp_path).err
    monkeypatch.setenv("AUGSELF_DEBUG", "1")
    assert "Traceback" in augself("verify", tmp_path).err


def test_a_file_as_some_editors_write_it(tmp_path, augself, tiny_model):
    """With a byte order mark, which no letter of TOML is."""
    path = tmp_path / "augself.toml"
    path.write_bytes(b"\xef\xbb\xbf[verify]\r\n")
    assert augself("verify", tiny_model, "--config", path).status == 0
