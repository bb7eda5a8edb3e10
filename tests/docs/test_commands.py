"""Every command in the documentation exists, with the options and arguments it is given."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from augself_hub.cli import augself

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "augself_hub/pretrained/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "research").glob("*.md")),
]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page and line, words) of every shell block and of the blocks at the head of examples."""
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield f"{page.relative_to(ROOT)}: {' '.join(words)}", words
    for program in sorted((ROOT / "docs/examples").glob("*.py")):
        for line in re.findall(r"^    (augself .*|python docs.*)", program.read_text(), re.M):
            yield f"{program.name}: {line}", shlex.split(line)


COMMANDS = dict(commands())


def test_they_were_found():
    assert len([words for words in COMMANDS.values() if words[0] == "augself"]) > 40


@pytest.mark.parametrize("where", [w for w, words in COMMANDS.items() if words[0] == "augself"])
def test_a_command_takes_what_it_is_given(where):
    """Names of options, their choices, and the number of arguments; files need not be there."""
    _, name, *words = COMMANDS[where]
    command = augself.get_command(click.Context(augself), name)
    assert command is not None, f"there is no augself {name}"
    context = click.Context(command)
    given, arguments, _ = command.make_parser(context).parse_args(words)
    assert arguments == []
    for parameter in command.get_params(context):
        value = given.get(parameter.name)
        if parameter.required and "list_recipes" not in given:
            assert value is not None, f"{parameter.name} is missing"
        if value is not None and not isinstance(
            parameter.type, click.Path | click.types.BoolParamType
        ):
            parameter.type_cast_value(context, value)


@pytest.mark.parametrize("where", [w for w, words in COMMANDS.items() if words[0] == "python"])
def test_a_program_that_is_named_is_there(where):
    words = COMMANDS[where][1:]
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest") or find_spec(words[1]) is not None
    elif words[0] == "-c":
        compile(words[1], where, "exec")
    else:
        assert (ROOT / words[0]).is_file()


def test_help_loads_nothing_that_takes_time():
    """`augself --help` imports every command, and none of them what it works with."""
    heavy = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "onnxruntime", "fastapi"}
    script = (
        "import sys; from augself_hub.cli import augself\n"
        "augself.main(['--help'], standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *shown, modules = done.stdout.splitlines()
    assert "pretrain" in "\n".join(shown)
    assert heavy & set(modules.split()) == set()
