"""What can be checked of docs/deploy without Docker, a GPU or a proxy."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serving.commands import serve
from serving.limits import Limits

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs/deploy"
OPTIONS = {name for option in serve.params for name in option.opts} | {"--help"}


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "augself.service")
    return parser["Service"]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, its arguments), lines that go on joined."""
    text = (DEPLOY / dockerfile).read_text().replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [tuple(line.split(maxsplit=1)) for line in lines]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where it stands, the arguments of one `augself serve`)."""
    for name in ("Dockerfile", "Dockerfile.cuda"):
        entry = next(given for word, given in instructions(name) if word == "ENTRYPOINT")
        yield name, yaml.safe_load(entry)[2:]
    yield "compose.yaml", compose()["services"]["augself"]["command"]
    yield "augself.service", shlex.split(unit()["ExecStart"])[2:]
    for path in (DEPLOY / "README.md", ROOT / "docs/serve.md", ROOT / "README.md"):
        for line in path.read_text().splitlines():
            if found := re.search(r"augself serve ([^`#]*)|docker run .* augself\S* (.*)", line):
                yield f"{path.name}: {line}", shlex.split(found[1] or found[2] or "")


COMMANDS = dict(commands())


@pytest.mark.parametrize("where", COMMANDS)
def test_every_option_given_exists(where):
    options = [word.split("=")[0] for word in COMMANDS[where] if word.startswith("--")]
    assert set(options) <= OPTIONS, where


def test_the_commands_were_found():
    assert len(COMMANDS) > 8 and all(COMMANDS[f] for f in ("compose.yaml", "augself.service"))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_dockerfile_copies_what_there_is_and_installs_extras_that_exist(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    words = dict(instructions(name))
    for word, given in instructions(name):
        if word == "COPY":
            *sources, _ = given.split()
            assert all((ROOT / source).exists() for source in sources)
        for group in re.findall(r'pip install .*"\.\[(.*?)\]"', given):
            assert set(group.split(",")) <= set(extras)
    assert words["USER"] == "augself" and words["EXPOSE"] == "7860"
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {given.split()[0] for word, given in instructions(name) if word == "COPY"}
    assert set(packages) <= copied


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_a_proxy_configuration_is_balanced_and_leads_to_the_server(name):
    text = re.sub(r"#.*", "", (DEPLOY / name).read_text())
    depth = [0]
    for sign in re.findall(r"[{}]", text):
        depth.append(depth[-1] + (1 if sign == "{" else -1))
    assert min(depth) == depth[-1] == 0
    assert ":7860" in text
    if name == "nginx.conf":
        lines = (line.strip() for line in text.splitlines())
        assert all(line == "" or line[-1] in ";{}" for line in lines)


def seconds(text: str, name: str) -> float:
    return float(re.findall(rf"{name} (\d+)s", text)[0])


@pytest.mark.parametrize(
    ("name", "body", "headers", "upload", "answer"),
    [
        ("nginx.conf", r"client_max_body_size (\d+)m", "client_header_timeout",
         "client_body_timeout", "proxy_read_timeout"),
        ("Caddyfile", r"max_size (\d+)MiB", "read_header", "read_body", "response_header_timeout"),
    ],
)  # fmt: skip
def test_a_proxy_lets_through_what_the_server_allows(name, body, headers, upload, answer):
    """What is too much is the server's to say, in JSON; headers are the proxy's alone."""
    text, limits = (DEPLOY / name).read_text(), Limits()
    assert int(re.findall(body, text)[0]) * 2**20 > limits.body_bytes
    assert seconds(text, headers) <= limits.upload_seconds <= seconds(text, upload)
    assert seconds(text, answer) > limits.upload_seconds + limits.deadline_seconds


def test_there_is_time_to_answer_what_was_accepted():
    longest = Limits().deadline_seconds + 5
    assert int(unit()["TimeoutStopSec"]) > longest
    assert int(compose()["services"]["augself"]["stop_grace_period"].rstrip("s")) > longest


def test_the_arithmetic_of_cores_is_the_measured_figure_times_the_rate():
    table = (ROOT / "docs/performance.md").read_text()
    measured = float(re.findall(r"decode and resize \(ours\).*?\| ([\d.]+) ms", table)[0])
    text = (DEPLOY / "README.md").read_text()
    assert f"{measured:g} ms for a 500x375 JPEG" in text
    assert f"{1000 / measured:.0f} of them a second" in text
    for rate, cores, half in re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M):
        rate = float(rate.replace(",", ""))
        assert float(cores) == pytest.approx(rate * measured / 1000)
        assert float(half) == pytest.approx(float(cores) / 2)
