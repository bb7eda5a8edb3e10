"""Request bodies: JSON with data: URLs, multipart forms, raw images -> options and image bytes.

Nothing here decodes an image or fetches one: see `urls` for hosts that were allowed. A large body
is read on a thread of its own, in steps none of which keeps the interpreter to itself for long: the
event loop answers meanwhile.
"""

from __future__ import annotations

import asyncio
import binascii
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.http.problems import Problem
from serving.http.schemas import (
    AugmentationOptions,
    AugmentationRequest,
    EmbeddingFields,
    EmbeddingOptions,
    EmbeddingRequest,
)
from serving.limits import Limits

Record = TypeVar("Record", bound=BaseModel)
Asked = TypeVar("Asked")
Result = TypeVar("Result")
_SLICE = 2**20  # bytes looked through, parsed or decoded at one go, where that can be
_LONGEST_HEAD = 1024  # characters of a data: URL before its comma
_INLINE = 64 * 1024  # bytes that are read sooner than a thread is asked
_READER = ThreadPoolExecutor(1, "read")  # one: several would keep the loop from its turn
_ASCII = bytes(range(128))
_LETTERS = 2 * 2**20  # bytes of letters beyond ASCII
_OPTION_FIELDS = 8  # more form fields than the options there are
_MOST_NAMED = 32  # fields that are looked for, to say which one is there twice
_UNNAMED = ("", "application/octet-stream")  # such a body is taken for an image and sniffed


@dataclass(frozen=True)
class Item:
    """One image of a request: where it was (`input[3]`), and its bytes or its data: URL."""

    param: str
    content: bytes | str

    def data(self) -> bytes:
        """The image file.

        Raises:
            Problem: 400, not a data: URL with base64 data.
        """
        if isinstance(self.content, bytes):
            return self.content
        # Line breaks, which MIME's base64 has after 76 characters, are no part of the data.
        text = self.content.replace("\n", "").replace("\r", "")
        begin = text.find(",", 0, _LONGEST_HEAD) + 1
        if not (text.startswith("data:") and text[:begin].endswith(";base64,")):
            message = "not a data: URL (data:image/jpeg;base64,...), and no other is read here"
            raise Problem(400, "bad_data_url", message, self.param)
        try:
            if -1 < text.find("=", begin) < len(text) - 2:
                raise ValueError("padding inside")  # at the end of a slice it would pass
            parts = (text[at : at + _SLICE] for at in range(begin, len(text), _SLICE))
            return b"".join(binascii.a2b_base64(part, strict_mode=True) for part in parts)
        except ValueError:
            message = (
                "not valid base64: send the standard letters, not those for URLs, and = at the end "
                "up to a multiple of 4"
            )
            raise Problem(400, "bad_base64", message, self.param) from None


async def read(request: Request, parse: Callable[[str, bytes], Result]) -> Result:
    """`parse(media type, body)` of a request, of a large body on the readers' thread.

    Compressed bodies are refused: their size says nothing.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_encoding", "compressed bodies are not read: send it plain")
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await request.body()
    if len(body) <= _INLINE:
        return parse(kind, body)
    return await asyncio.get_running_loop().run_in_executor(_READER, parse, kind, body)


def embeddings(
    request: Request, limits: Limits, kind: str, body: bytes
) -> tuple[EmbeddingOptions, list[Item]]:
    """The body of POST /v1/embeddings -> its options and 1 to `limits.items` images."""
    if kind == "application/json":
        asked = _validated(EmbeddingRequest, body, limits)
        items = [Item(f"input[{i}]", url) for i, url in enumerate(asked.input)]
        return _with_query(asked, EmbeddingFields, request), _counted(items, limits, "input")
    if kind == "multipart/form-data":
        form = _form(request, body, limits.items + _OPTION_FIELDS)
        items = [Item(f"image[{i}]", data) for i, data in enumerate(form.pop("image", []))]
        if not items:
            message = "there is no image: a form has its images in fields called image"
            raise Problem(400, "no_images", message, "image")
        return _options(EmbeddingFields, request, form), _counted(items, limits, "image")
    if kind.startswith("image/") or kind in _UNNAMED:
        return _options(EmbeddingFields, request), [Item("image", body)]
    raise _unsupported()


def pairs(
    request: Request, limits: Limits, kind: str, body: bytes
) -> tuple[AugmentationOptions, list[tuple[Item, Item]]]:
    """The body of POST /v1/augmentations -> its options and 1 to `limits.items` pairs."""
    if kind == "application/json":
        asked = _validated(AugmentationRequest, body, limits)
        items = [
            (Item(f"pairs[{i}].a", pair.a), Item(f"pairs[{i}].b", pair.b))
            for i, pair in enumerate(asked.pairs)
        ]
        return _with_query(asked, AugmentationOptions, request), _counted(items, limits, "pairs")
    if kind == "multipart/form-data":
        form, pair = _form(request, body, 2 + _OPTION_FIELDS), []
        for name in ("image_a", "image_b"):  # fewer or more are a mistake
            found = form.pop(name, [])
            if len(found) != 1:
                raise Problem(422, "bad_pair", f"{len(found)} fields {name}, 1 is wanted", name)
            pair.append(Item(name, found[0]))
        return _options(AugmentationOptions, request, form), [(pair[0], pair[1])]
    raise _unsupported()


def _unsupported() -> Problem:
    message = "this Content-Type is not read: send application/json, multipart/form-data or image/*"
    return Problem(415, "unsupported_content_type", message)


def _counted(items: list[Asked], limits: Limits, param: str) -> list[Asked]:
    if not items:
        raise Problem(400, "no_images", "there is no image", param)
    if len(items) > limits.items:
        message = f"{len(items)} items, more than the {limits.items} allowed"
        raise Problem(413, "too_many_items", message, param)
    return items


def _validated(record: type[Record], body: bytes, limits: Limits) -> Record:
    """JSON -> a request. 400 where it is not JSON, 422 where it is not this request."""
    parsed = parsed_json(body, 10_000 + 8 * limits.items)
    try:
        return record.model_validate(parsed)
    except ValidationError as error:
        raise schema_problem(error) from None


def parsed_json(body: bytes, values: int, strict: bool = False) -> Any:
    """JSON -> Python's values. Raises the 400 where it is none.

    413 where it has more in it than any request, since parsing is one step that cannot be
    interrupted: values take 150 times their text, and what is no plain text takes its time.

    Args:
        values: at most so many [, { and commas.
        strict: NaN and Infinity are not JSON.
    """
    escapes = 10_000 + len(body) // 32  # some clients escape a slash or a plus
    allowed = {  # what there may be too much of -> the characters it shows by, how many
        "values": (b"[{,", values),
        "escapes": (b"\\", escapes),
        "blanks": (b" \t\r\n", 100_000 + len(body) // 8),
    }
    ascii_only, letters, quotes = body.isascii(), 0, 0
    for start in range(0, len(body), _SLICE):
        part = body[start : start + _SLICE]
        for what, (characters, left) in allowed.items():
            left -= sum(part.count(character) for character in characters)
            if left < 0:
                raise Problem(413, "too_many_values", f"the JSON has more {what} than any request")
            allowed[what] = (characters, left)
        letters += 0 if ascii_only else len(part.translate(None, _ASCII))
        quotes += part.count(b'"')
        if letters > _LETTERS:
            message = "the JSON has more letters beyond ASCII than any request"
            raise Problem(413, "too_many_values", message)
    try:
        parsed = from_json(body, allow_inf_nan=not strict)
    except ValueError as error:
        place = re.search(r" at line \d+ column \d+$", str(error))
        message = f"the body is not JSON{place[0] if place else ''}"
        raise Problem(400, "bad_json", message) from None
    # Every text has two quotes, and of two fields with one name the parser has kept the last alone.
    escaped = _escaped_quotes(body) if allowed["escapes"][1] < escapes else 0
    if quotes - escaped > 2 * _texts(parsed):
        names: Iterable[str] = parsed if isinstance(parsed, dict) else ()
        some = itertools.islice(names, _MOST_NAMED)
        twice = next((name for name in some if body.count(f'"{name}"'.encode()) > 1), None)
        message = "a field of the JSON is given more than once"
        raise Problem(400 if strict else 422, "given_twice", message, twice and twice[:100])
    return parsed


def _escaped_quotes(body: bytes) -> int:
    """Those inside texts. Two backslashes are one letter, and a quote behind them ends the text."""
    count = start = 0
    while start < len(body):
        end = start + _SLICE
        while body[end - 1 : end] == b"\\":  # cut none from what it escapes
            end += 1
        count += body[start:end].replace(b"\\\\", b"").count(b'\\"')
        start = end
    return count


def _texts(parsed: Any) -> int:
    """Texts in parsed JSON, names of fields among them."""
    count = 0
    waiting: list[list[Any]] = [[parsed]]
    while waiting:
        level = waiting.pop()
        for one in level:
            if isinstance(one, str):
                count += 1
            elif isinstance(one, dict):
                count += len(one)
                waiting.append(list(one.values()))
            elif isinstance(one, list):
                waiting.append(one)
    return count


def _options(
    record: type[Record], request: Request, form: Mapping[str, list[bytes]] = MappingProxyType({})
) -> Record:
    """Of the query and the fields of a form: every name once."""
    given = [
        (name[:100], part[:1000].decode(errors="replace"))
        for name, parts in form.items()
        for part in parts
    ]
    fields: dict[str, str] = {}
    for name, value in [*given, *request.query_params.multi_items()]:
        if name in fields:
            raise _twice(name)
        if name not in record.model_fields:
            message = f"this is not known here: there are {', '.join(record.model_fields)}"
            raise Problem(422, "extra_forbidden", message, name[:100])
        fields[name] = value
    try:
        return record.model_validate_strings(fields)
    except ValidationError as error:
        raise schema_problem(error) from None


def _with_query(asked: Record, options: type[BaseModel], request: Request) -> Record:
    """What the JSON asks for, and what the query adds to it."""
    given = _options(options, request)
    if twice := given.model_fields_set & asked.model_fields_set:
        raise _twice(min(twice))
    return asked.model_copy(update=given.model_dump(exclude_unset=True))


def _twice(name: str) -> Problem:
    return Problem(422, "given_twice", "this is given more than once", name[:100])


def refuse_query(request: Request) -> None:
    """For routes that have no options. Raises the 422 that names the first."""
    if given := [name for name, _ in request.query_params.multi_items()]:
        message = "this route has no options: leave the query out"
        raise Problem(422, "extra_forbidden", message, given[0][:100])


def schema_problem(error: ValidationError, status: int = 422) -> Problem:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    param = "".join(steps).lstrip(".")[:100] or None
    # The library's own sentence names our class.
    message = "this must be an object" if first["type"] == "model_type" else first["msg"]
    return Problem(status, first["type"], message, param)


def _form(request: Request, body: bytes, max_parts: int) -> dict[str, list[bytes]]:
    """A multipart form: field -> the bytes of its parts. File names are ignored."""
    parts: dict[str, list[bytes]] = {}
    headers: list[tuple[bytearray, bytearray]] = []  # of the part that is read
    data = bytearray()
    count, ended = 0, []

    def begin() -> None:
        nonlocal count, data
        count += 1
        if count > max_parts:
            message = f"the form has more than the {max_parts} fields allowed"
            raise Problem(413, "too_many_items", message)
        headers.clear()
        data = bytearray()

    def end() -> None:
        named = {bytes(name).lower(): bytes(value) for name, value in headers}
        _, options = parse_options_header(named.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        parts.setdefault(name, []).append(bytes(data))

    _, parameters = parse_options_header(request.headers["content-type"])
    if not parameters.get(b"boundary"):
        raise Problem(400, "bad_multipart", "the Content-Type names no boundary")
    try:
        callbacks: Any = {
            "on_part_begin": begin,
            "on_header_begin": lambda: headers.append((bytearray(), bytearray())),
            "on_header_field": lambda text, i, j: headers[-1][0].extend(text[i:j]),
            "on_header_value": lambda text, i, j: headers[-1][1].extend(text[i:j]),
            "on_part_data": lambda part, i, j: data.extend(memoryview(part)[i:j]),
            "on_part_end": end,
            "on_end": lambda: ended.append(True),
        }
        parser = MultipartParser(parameters[b"boundary"], callbacks)
        for start in range(0, len(body), _SLICE):
            parser.write(body[start : start + _SLICE])
        parser.finalize()
    except FormParserError:
        raise Problem(400, "bad_multipart", "the form cannot be read") from None
    if not ended:
        raise Problem(400, "bad_multipart", "the form ends before its last boundary")
    return parts
