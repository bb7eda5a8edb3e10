"""Options from the environment and from a file.

    AUGSELF_SERVE_PORT=8000 augself serve       # AUGSELF_<COMMAND>_<OPTION>
    augself serve --config augself.toml         # or AUGSELF_CONFIG=augself.toml

    [serve]                                     # a table a command, its options as they are typed
    port = 8000
    demo = true                                 # a flag
    model = ["runs/a/model", "org/b"]           # a repeatable option
    limit = { items = 128, max_queue_size = 512 }         # one of the form NAME=VALUE

The command line wins over the environment, that over the file, and the file over the defaults.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from augself_hub.errors import UsageError

FILE = "AUGSELF_CONFIG"
_PLACE = "augself.configuration"  # in a context's meta: the file
# What Kubernetes sets for a service of such a name; it is nobody's option.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def configurable(name: str, command: click.Command, commands: Collection[str]) -> click.Command:
    """A copy of a command whose options are also read from the environment and from --config.

    Args:
        name: what it is called. commands: all there are; each has its table in the file.
    """
    command = copy.copy(command)
    command.params = [_named(name, option) for option in command.params]

    def read(context: click.Context, option: click.Parameter, path: Path | None) -> None:
        if context.resilient_parsing:
            return
        _warn_of_others(name, command, commands)
        if path is not None:
            context.meta[_PLACE] = path
            context.default_map = _read(path, name, command, commands)

    command.params.append(
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar=FILE,
            is_eager=True,
            expose_value=False,
            callback=read,
            help=f"A TOML file: options in a table [{name}]. Or set {variable(name, 'OPTION')}, "
            "which goes before the file, as what is typed goes before both.",
        )
    )
    return command


def variable(command: str, option: str) -> str:
    """fit-heads, batch-size -> AUGSELF_FIT_HEADS_BATCH_SIZE."""
    return f"AUGSELF_{command}_{option}".replace("-", "_").upper()


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Those that can be set: what they are called, without the dashes -> the option."""
    return {
        max(option.opts, key=len).lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option) and option.expose_value
    }


def origin(context: click.Context, option: click.Parameter) -> str | None:
    """Where the value of an option comes from, if it was neither typed nor left alone."""
    source = context.get_parameter_source(option.name or "")
    if source is ParameterSource.ENVIRONMENT:
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
        return next((name for name in names if os.environ.get(name)), None)
    return str(context.meta.get(_PLACE)) if source is ParameterSource.DEFAULT_MAP else None


def printed(
    name: str,
    context: click.Context,
    secret: Collection[str],
    meta: str,
    unused: Collection[str] = (),
) -> str:
    """All options of a command as a file that --config reads, and where each comes from.

    Args:
        secret: options whose values are not shown. meta: the one that asked for it, left out.
        unused: those that another takes the place of, and that may not be given beside it.
    """
    lines = [f"[{name}]"]
    for key, option in options_of(context.command).items():
        value = context.params[option.name or ""]
        typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        source = "command line" if typed else origin(context, option) or "default"
        if key == meta or (option.hidden and value is None):
            continue
        if value is None or key in unused or (key in secret and value):
            hidden = key in secret and value
            lines.append(f"# {key}: {f'not shown; {source}' if hidden else 'not set'}")
        else:
            lines.append(f"{key} = {_toml(value)}  # {source}")
    return "\n".join(lines)


def _named(command: str, option: click.Parameter) -> click.Parameter:
    """The option with its variable, before those it had."""
    if not isinstance(option, click.Option) or not option.expose_value:
        return option
    option = copy.copy(option)
    had = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    own = variable(command, max(option.opts, key=len).lstrip("-"))
    option.envvar = [own, *had]
    return option


def _warn_of_others(name: str, command: click.Command, commands: Collection[str]) -> None:
    """Variables that look like this command's and are not (nor those of list-images, of list's)."""
    longer = tuple(variable(other, "") for other in commands if other.startswith(f"{name}-"))
    prefix, options = variable(name, ""), options_of(command)
    endings = {variable(name, option).removeprefix(prefix) for option in options}
    read = {v for option in options.values() for v in option.envvar or ()}
    for given, value in os.environ.items():
        if given in read or given == FILE or given.startswith(longer):
            continue
        if _SERVICE_LINK.match(value):
            continue
        if given.startswith(prefix):
            near = difflib.get_close_matches(given.removeprefix(prefix), endings, 1)
            mend = f"{prefix}{near[0]} is" if near else f"augself {name} --help shows what there is"
        elif given.startswith("AUGSELF_") and given.removeprefix("AUGSELF_") in endings:
            mend = f"{prefix}{given.removeprefix('AUGSELF_')} is"
        else:
            continue
        click.echo(f"warning: {given} is set and not read: {mend}", err=True)


def _read(
    path: Path, name: str, command: click.Command, commands: Collection[str]
) -> dict[str, Any]:
    """The command's table -> values by the parameters' names.

    Raises:
        UsageError: no TOML, or something in it that nobody reads.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    for table, values in tables.items():
        if table not in commands:
            raise UsageError(f"{path}: {table} is no command{_near(table, commands)}")
        if not isinstance(values, Mapping):
            raise UsageError(f"{path}: {table} is a command: write a table, [{table}]")
    options, given = options_of(command), {}
    for key, value in tables.get(name, {}).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise UsageError(f"{path}: {name} has no option {key}{_near(key, options)}")
        if option.name in given:
            raise UsageError(f"{path}: {key} is there twice, with - and with _")
        given[option.name or ""] = _value(option, value, f"{path}: {name}.{key}")
    return given


def _near(word: str, words: Collection[str]) -> str:
    near = difflib.get_close_matches(word.replace("_", "-"), words, 1)
    return f": is it {near[0]}?" if near else f": there are {', '.join(words)}"


def _value(option: click.Option, value: Any, place: str) -> Any:
    """As it would have been typed: text, but for flags."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{place} is a flag: write true or false")
        return value
    if option.multiple and isinstance(value, Mapping):
        return [f"{name}={_text(item, f'{place}.{name}', True)}" for name, item in value.items()]
    if option.multiple or option.nargs > 1:
        values = value if isinstance(value, list) else [value]
        return [_text(item, place) for item in values]
    return _text(value, place)


def _text(value: Any, place: str, flags: bool = False) -> str:
    if isinstance(value, str | int | float) and (flags or not isinstance(value, bool)):
        return str(value)
    raise UsageError(f"{place} is {json.dumps(value, default=str)}: write one text or number")


def _toml(value: Any) -> str:
    """Texts, numbers, flags and lists of them; JSON's texts are TOML's, but for one character."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
