"""The JSON files of a model folder, read as a stranger's: bounded, finite, none that runs code.

transformers takes from a configuration where to download kernels, quantised layers and classes, and
runs them. Such fields are refused by name wherever a folder is opened (`refuse_code`).
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from augself_hub.errors import ModelFolderError

MAX_BYTES = 32 << 20
MAX_DEPTH = 50
MAX_SIDE = 4096  # pixels of an image: a batch of 32 takes 1.6 GB as it comes
MAX_FEATURES = 1 << 20
# What transformers, timm and sentence-transformers read by these names, in any folder.
CONFIGURATIONS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "adapter_config.json",
    "modules.json",
    "router_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "model.safetensors.index.json",
)
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_BUILT_IN = (None, "eager", "sdpa", "batched_mm", "grouped_mm")
_RUNS_CODE = re.compile(
    r"auto_map|trust_remote_code|code_revision|custom_(pipelines?|generate|code|class)"
    r"|(quantization|compression|kernel|distributed|fusion|peft)_config|use_kernels"
    r"|allow_all_kernels|adapter_kwargs|transformers_weights|base_model_name_or_path"
    r"|tp_plan|tensor_parallel|use_pretrained_backbone|gguf_file"
)
_TIMM_LOADS = re.compile(r"pretrained.*|checkpoint.*|.*_(path|dir|cfg|url|file)|scriptable|no_jit")
_NAME = re.compile(r"[\w.-]+")
# What the modules of an image model are; others import classes that their own files name.
_MODULES = (".Transformer", ".Pooling", ".Normalize", ".CLIPModel")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a file.

    Raises:
        ModelFolderError: not there, too large or too deep, not an object, or NaN or an infinity in
            it; names the file.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    def finite(text: str) -> float:
        return value if math.isfinite(value := float(text)) else refuse(text)

    try:
        content = json.loads(_bytes_of(path), parse_constant=refuse, parse_float=finite)
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing: this is not a model folder") from None
    except RecursionError:
        raise ModelFolderError(f"{path} cannot be read: it is nested too deeply") from None
    except (ValueError, OSError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(
            f"{path} cannot be read: it is a {type(content).__name__}, no object"
        )
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
    if level:
        raise ModelFolderError(f"{path} cannot be read: it is nested too deeply")
    return content


def _bytes_of(path: Path) -> bytes:
    """Raises ModelFolderError for what is no regular file, which may never end, or is too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelFolderError(f"{path} cannot be read: it is no regular file")
    if status.st_size > MAX_BYTES:
        raise ModelFolderError(f"{path} has more than the {MAX_BYTES} bytes allowed")
    return path.read_bytes()


def number(value: Any, what: str, least: float, most: float, whole: bool = False) -> Any:
    """A number in a range, as JSON gives it.

    Args:
        what: file and field, for the message.

    Raises:
        ModelFolderError: another type (booleans are no numbers), NaN, or out of the range.
    """
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not least <= value <= most:
        kind = "whole number" if whole else "number"
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:40] + "..."
        raise ModelFolderError(f"{what} is {shown}, not a {kind} from {least:g} to {most:g}")
    return value


def renamed(record: dict[str, Any], names: dict[str, str]) -> set[str]:
    """Give fields that bear an older name the one they have now; which of them did."""
    old = names.keys() & record.keys()
    for name in old:
        record.setdefault(names[name], record.pop(name))
    return set(old)


def image_statistics(config: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """(mean, std) of three channels: `image_mean` and `image_std` of a processor's configuration.

    Raises:
        ModelFolderError: not three finite numbers each, or a std of 0 or less.
    """
    found = []
    for field, least in (("image_mean", -1e3), ("image_std", 1e-6)):
        values = config.get(field)
        if not isinstance(values, list) or len(values) != 3:
            raise ModelFolderError(f"{path}: {field} is no list of three numbers")
        found.append(tuple(float(number(v, f"{path}: {field}", least, 1e3)) for v in values))
    return found[0], found[1]


def refuse_code(folder: Path) -> None:
    """Refuse configurations by which a reader of the folder would download or run code.

    Raises:
        ModelFolderError: names file and field.
    """
    for path in sorted(p for name in CONFIGURATIONS for p in folder.rglob(name)):
        if any(part[0] == "." for part in path.relative_to(folder).parts):
            continue  # other tools' (.git, .cache)
        if path.name == "adapter_config.json":
            raise ModelFolderError(
                f"{path} is an adapter's, whose weights are not in the model: merge it "
                "(merge_and_unload) and save the model again"
            )
        if path.name == "modules.json":
            _refuse_modules(path)
            continue
        if path.name == "router_config.json":
            raise ModelFolderError(
                f"{path}: sentence-transformers would import the classes it names; remove it"
            )
        config = read_json(path)
        for field, value in _fields(config):
            if reason := _reason(field.rpartition(".")[2], value):
                shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:60]}..."
                raise ModelFolderError(f"{path}: {field} is {shown!r}: {reason}; remove the field")
        # timm.create_model takes hf-hub:, local-dir: and a checkpoint's path.
        architecture = config.get("architecture", "")
        if not isinstance(architecture, str) or not _NAME.fullmatch(architecture or "none"):
            raise ModelFolderError(f"{path}: architecture is {architecture!r}, no name of timm's")
        for name in config.get("model_args") or {}:
            if _TIMM_LOADS.fullmatch(str(name)):
                raise ModelFolderError(
                    f"{path}: model_args.{name}: timm would load something from elsewhere; "
                    "remove it"
                )


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field at every depth; `read_json` bounds the depth."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield f"{prefix}{name}", value
            yield from _fields(value, f"{prefix}{name}.")
    elif isinstance(config, list):
        for value in config:
            yield from _fields(value, prefix)


def _reason(name: str, value: Any) -> str | None:
    """Why a field is refused, or None where it is harmless."""
    if _IMPLEMENTATION.fullmatch(name):
        harmless = value is None or (isinstance(value, str) and value in _BUILT_IN)
        return None if harmless else "transformers would download and run a kernel"
    if _RUNS_CODE.fullmatch(name) and value not in (None, False, [], {}):
        return "transformers would load code, kernels or weights from elsewhere"
    if name == "backbone" and isinstance(value, str) and not _NAME.fullmatch(value):
        return "timm would load it from elsewhere"
    return None


def _refuse_modules(path: Path) -> None:
    """sentence-transformers imports whatever class a module names, and reads wherever it lies."""
    try:
        modules = [(str(m["type"]), str(m.get("path", ""))) for m in json.loads(_bytes_of(path))]
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error!r}") from error
    for kind, place in modules:
        if not (kind.startswith("sentence_transformers.") and kind.endswith(_MODULES)):
            raise ModelFolderError(
                f"{path}: type is {kind[:60]!r}: sentence-transformers would run it as code; "
                "remove it"
            )
        if (place and not _NAME.fullmatch(place)) or place.startswith("."):
            raise ModelFolderError(
                f"{path}: path is {place[:60]!r}: sentence-transformers would read what nobody "
                "has verified; name a folder beside it"
            )


def computes(path: str) -> bool:
    """Whether a file of a model folder is weights, a graph or a configuration, or would be loaded
    as one, or as code: what a manifest vouches for. Anything else is the owner's: cards, licences,
    pictures, results.
    """
    name = PurePosixPath(path)
    inside = name.parts[0] in ("augself", "onnx")
    return inside or name.name in CONFIGURATIONS or name.suffix.lower() in _COMPUTING


PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_COMPUTING = (
    *PICKLES,
    *(".safetensors", ".onnx", ".onnx_data", ".data", ".gguf", ".h5", ".msgpack", ".tflite"),
    *(".py", ".pyc", ".so", ".dll", ".dylib", ".engine", ".plan", ".pb", ".distcp"),
)
