"""Tensors on the wire, by the open inference protocol: JSON, and binary data behind it.

    {"id": "1", "inputs": [{"name", "shape", "datatype", "data"}], "outputs": [{"name"}]}

An input with the parameter binary_data_size has no data: its bytes follow the JSON, in the order of
the inputs, little-endian and row-major. The header Inference-Header-Content-Length says where the
JSON ends. Answers are made likewise.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from pydantic import ValidationError
from pydantic_core import to_json

from serving.http.bodies import parsed_json, schema_problem
from serving.http.negotiation import JSON
from serving.http.problems import Problem
from serving.http.schemas import InferInput, InferOutput, InferRequest
from serving.limits import Limits

HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
DATATYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
JSON_BYTES = 2**20  # parsed in one step, during which nobody is answered
_LISTS = 60_000  # of lists, too: nested to the colours, an image of 224 pixels has 50,401


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph; its shape without the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        id: comes back in the answer, if there is one.
        inputs: N rows each, in the graph's order.
        outputs: name -> whether it is wanted as binary data, in the order asked.
    """

    id: str | None
    inputs: list[np.ndarray]
    outputs: dict[str, bool]


def read_tensors(
    body: bytes,
    header: str | None,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    limits: Limits,
) -> Asked:
    """A request's body -> what it asks.

    Args:
        header: Inference-Header-Content-Length, if it was sent.
        inputs, outputs: of the graph.

    Raises:
        Problem: 400 names the tensor that is not as the graph wants it; 413: too many rows or too
            much JSON.
    """
    size = _json_size(header, len(body))
    request = _parsed(body[:size])
    parts = _binary_parts(request.inputs, memoryview(body)[size:])
    names = [given.name for given in request.inputs]
    if sorted(names) != sorted(tensor.name for tensor in inputs):
        wanted = " and ".join(tensor.name for tensor in inputs)
        raise Problem(400, "bad_inputs", f"the inputs must be {wanted}, each once", "inputs")
    places = [names.index(tensor.name) for tensor in inputs]
    arrays = [
        _array(request.inputs[i], parts[i], tensor, f"inputs[{i}]", limits)
        for i, tensor in zip(places, inputs, strict=True)
    ]
    if len({len(array) for array in arrays}) > 1:
        raise Problem(400, "wrong_shape", "the inputs must have the same number of rows", "inputs")
    return Asked(request.id, arrays, _wanted_outputs(request, [t.name for t in outputs]))


def answer(model: str, asked: Asked, results: Mapping[str, np.ndarray]) -> Response:
    """Name -> float32 rows, as they were asked for."""
    outputs, parts = [], []
    for name, binary in asked.outputs.items():
        values = results[name].astype("<f4")
        if not np.isfinite(values).all():
            raise ValueError(f"{model}: values of {name} are not finite")
        record: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            parts.append(values.tobytes())
            record["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            record["data"] = values.ravel().tolist()
        outputs.append(record)
    head: dict[str, Any] = {} if asked.id is None else {"id": asked.id}
    head |= {"model_name": model, "outputs": outputs}
    text = to_json(head)
    if not parts:
        return Response(text, media_type=JSON)
    return Response(b"".join([text, *parts]), media_type=BINARY, headers={HEADER: str(len(text))})


def _json_size(header: str | None, total: int) -> int:
    size = total
    if header is not None:
        size = int(header) if header.isdecimal() and len(header) <= 18 else total + 1
    if size > total:
        message = f"{HEADER} must be the bytes of JSON at the beginning of the body"
        raise Problem(400, "bad_header_length", message)
    if size > JSON_BYTES:
        message = f"more than the {JSON_BYTES} bytes of JSON allowed: send tensors as binary data"
        raise Problem(413, "json_too_large", message)
    return size


def _parsed(text: bytes) -> InferRequest:
    if text.count(b"[") + text.count(b"{") > _LISTS:
        message = "the JSON has more lists than any request: send tensors flat, or as binary data"
        raise Problem(413, "too_many_values", message)
    try:
        return InferRequest.model_validate(parsed_json(text, len(text), strict=True))
    except ValidationError as error:
        raise schema_problem(error, 400) from None


def _binary_parts(inputs: Sequence[InferInput], rest: memoryview) -> list[memoryview | None]:
    """Each input's bytes; None where it has none."""
    parts: list[memoryview | None] = []
    for i, given in enumerate(inputs):
        size = _parameter(given, "binary_data_size", int, f"inputs[{i}]")
        if size is None:
            parts.append(None)
            continue
        if not 0 <= size <= len(rest):
            message = f"binary_data_size is {size}, but {len(rest)} bytes follow"
            raise Problem(400, "bad_binary_size", message, f"inputs[{i}]")
        parts.append(rest[:size])
        rest = rest[size:]
    if rest:
        message = f"{len(rest)} bytes follow that no binary_data_size names"
        raise Problem(400, "bad_binary_size", message, "inputs")
    return parts


def _parameter(given: InferInput | InferOutput, name: str, kind: type, param: str) -> Any:
    """The one parameter a tensor may have. Others would change what is meant: refused."""
    parameters = given.parameters or {}
    value = parameters.get(name)
    if parameters.keys() - {name} or not (value is None or type(value) is kind):
        message = f"the only parameter known here is {name}, of type {kind.__name__}"
        raise Problem(400, "bad_parameter", message, f"{param}.parameters")
    return value


def _array(
    given: InferInput, binary: memoryview | None, tensor: Tensor, param: str, limits: Limits
) -> np.ndarray:
    """All values of an input, in the shape and the type that the graph takes."""
    if given.datatype != tensor.datatype:
        message = f"the datatype of {tensor.name} is {tensor.datatype}"
        raise Problem(400, "wrong_datatype", message, param)
    if given.shape[1:] != list(tensor.shape) or given.shape[0] < 1:
        sides = ", ".join(["N", *map(str, tensor.shape)])
        message = f"the shape of {tensor.name} is [{sides}], N at least 1"
        raise Problem(400, "wrong_shape", message, param)
    if given.shape[0] > limits.items:
        message = f"{given.shape[0]} rows, more than the {limits.items} allowed"
        raise Problem(413, "too_many_items", message, param)
    dtype = DATATYPES[tensor.datatype]
    if given.data is not None and binary is None:
        values = _numbers(given.data, given.shape, dtype, param)
    elif given.data is None and binary is not None:
        values = _unpacked(binary, given.shape, dtype, param)
    else:
        raise Problem(400, "bad_data", "give either data or binary_data_size", param)
    return values.reshape(given.shape)


def _unpacked(binary: memoryview, shape: list[int], dtype: np.dtype, param: str) -> np.ndarray:
    """Binary data -> all its values."""
    size = math.prod(shape) * dtype.itemsize
    if len(binary) != size:
        message = f"binary_data_size is {len(binary)}, but a tensor of this shape has {size}"
        raise Problem(400, "bad_binary_size", message, param)
    values = np.array(np.frombuffer(binary, dtype))  # aligned, as the body need not be
    if not np.isfinite(values).all():
        raise Problem(400, "not_finite", "there are values that are not finite", param)
    return values


def _numbers(data: list[Any], shape: list[int], dtype: np.dtype, param: str) -> np.ndarray:
    """Numbers given flat or nested like the shape -> all of them, in range."""
    limits = np.iinfo(dtype) if dtype.kind == "u" else np.finfo(dtype)
    kinds = {int} if dtype.kind == "u" else {int, float}
    flat = data
    for side in shape[1:]:  # what is nested otherwise stays as it is, and is no number
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {side}:
            break
        flat = list(itertools.chain.from_iterable(flat))
    if len(flat) == math.prod(shape) and set(map(type, flat)) <= kinds:
        try:
            values = np.array(flat, np.float64)
        except OverflowError:  # a whole number beyond any float
            values = np.array(np.inf)
        if ((values >= float(limits.min)) & (values <= float(limits.max))).all():
            return values.astype(dtype)
    message = f"data must be {math.prod(shape)} numbers of the datatype, flat or nested"
    raise Problem(400, "bad_data", message, param)


def _wanted_outputs(request: InferRequest, known: Sequence[str]) -> dict[str, bool]:
    """Name -> as binary data? All of them where none is asked for."""
    default = (request.parameters or {}).get("binary_data_output")
    if type(default) not in (bool, type(None)):
        raise Problem(400, "bad_parameter", "binary_data_output is true or false", "parameters")
    wanted: dict[str, bool] = {}
    for i, output in enumerate(request.outputs or []):
        binary = _parameter(output, "binary_data", bool, f"outputs[{i}]")
        if output.name not in known or output.name in wanted:
            message = f"the outputs are {', '.join(known)}, each at most once"
            raise Problem(400, "bad_outputs", message, f"outputs[{i}]")
        wanted[output.name] = bool(default) if binary is None else binary
    return wanted or dict.fromkeys(known, bool(default))
