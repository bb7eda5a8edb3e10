"""The reference pages: of the commands, of the server's OpenAPI document, of the public names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

import augself_hub
from augself_hub.cli import augself
from serving.http.api import create_app
from serving.inference.source import ModelSource
from serving.settings import ServerSettings

Schema = dict[str, Any]


def command_line() -> str:
    """What `--help` of every command prints."""
    pages = ["# Command line", "What `--help` prints, of this version."]
    for name in ("", *augself.list_commands(click.Context(augself))):
        command = augself.get_command(click.Context(augself), name) if name else augself
        context = click.Context(command, info_name=f"augself {name}".strip(), max_content_width=96)
        pages.append(f"## {context.info_name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(pages)


def python() -> str:
    """The public names; mkdocstrings puts their docstrings here."""
    names = [name for name in augself_hub.__all__ if not name.startswith("_")]
    opening = (
        "# Python\n\nAll of it is imported from `augself_hub`; nothing is loaded before its use."
    )
    return "\n\n".join([opening, *(f"::: augself_hub.{name}" for name in names)])


def http() -> str:
    """The routes and their bodies, as the server's own OpenAPI document has them."""
    source = ModelSource.find(None, "cpu", None, "fp32", "exact")
    document = create_app([source], ServerSettings(lazy=True)).app.openapi()
    pages = ["# HTTP", "The same as a running server shows at `/docs`. [The server](../server.md)."]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            pages += list(_route(f"{method.upper()} {path}", route))
    pages.append("## Bodies")
    for name, schema in document["components"]["schemas"].items():
        pages += [f"### {name}", *_fields(schema)]
    return "\n\n".join(pages)


def _route(title: str, route: Schema) -> Iterator[str]:
    yield f"## {title}"
    yield route["description"]
    if "parameters" in route:
        yield "\n".join(["| parameter | in | type | |", "|---|---|---|---|", *_parameters(route)])
    for media_type, content in route.get("requestBody", {}).get("content", {}).items():
        yield f"**Body, `{media_type}`**"
        yield from _fields(content["schema"])
    rows = []
    for status, answer in route["responses"].items():
        content = answer.get("content", {})
        kinds, bodies = ", ".join(f"`{name}`" for name in content), ", ".join(_bodies(content))
        rows.append(f"| {status} | {answer['description']} | {kinds} | {bodies} |")
    yield "\n".join(["| answer | | type | body |", "|---|---|---|---|", *rows])


def _parameters(route: Schema) -> Iterator[str]:
    for given in route["parameters"]:
        schema = given["schema"]
        text = schema.get("description", "")
        yield f"| `{given['name']}` | {given['in']} | {_type(schema)} | {text} |"


def _bodies(content: Schema) -> Iterator[str]:
    yield from (_type(body["schema"]) for body in content.values() if "schema" in body)


def _fields(schema: Schema) -> Iterator[str]:
    """What the schema says of itself, and a table of its fields."""
    if "description" in schema:
        yield schema["description"]
    if "properties" not in schema:
        yield _type(schema)
        return
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        required = name in schema.get("required", [])
        default = "required" if required else f"`{field.get('default')}`"
        text = field.get("description", "").replace("<", "&lt;")
        rows.append(f"| `{name}` | {_type(field)} | {default} | {text} |")
    yield "\n".join(rows)


def _type(schema: Schema) -> str:
    """A schema in words; a reference becomes a link."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("format") == "binary":
        return "an image's bytes"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any value"))
