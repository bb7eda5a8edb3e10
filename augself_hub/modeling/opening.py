"""A folder of a stock image encoder -> its network: every weight arrives, or it is refused by name.

The one place where transformers opens anything. It is shown a folder of links to the configuration
and the safetensors and to nothing else, after both were read as a stranger's: no adapter, pickle or
code beside them can be picked up, and no configuration asks for more than the weights hold.

    transformers' image encoders   as they are; of a classifier without its head
    CLIP, SigLIP                   whole or their vision model: the vision tower
    timm (TimmWrapperModel)        as timm pushes them to the Hub, or as transformers saves them
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils import logging as transformers_logging

from augself_hub.configs import read_json, refuse_code
from augself_hub.errors import AugSelfError, MissingExtra, ModelFolderError, UsageError
from augself_hub.folder import no_room

LOAD_SECONDS = 120.0  # to build a network of shapes, without memory
SPARE = 16_000_000  # weights that may be missing from a file: a ViT's pooler
LARGEST = 1 << 20  # whole number in a configuration: labels, tokens
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_TOWERS: dict[str, type[PreTrainedModel]] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
_OTHER_TOWER = re.compile(
    r"(text_model|logit_scale|logit_bias|visual_projection|text_projection)\b"
)
_CLASSIFIER = re.compile(r"(timm_model\.)?(\w*classifier|head|head_dist|fc|lm_head)\b")
_REPEATED = re.compile(r"(num|n)_\w*(layers?|blocks?|groups?|stages?)|\w*depths?|layers|num_layers")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"

log = logging.getLogger(__name__)


def open_network(
    folder: Path, dtype: torch.dtype | str = torch.float32, strict: bool = False
) -> PreTrainedModel:
    """The network of a folder, in evaluation mode.

    Args:
        dtype: or "auto": as the configuration says, else as the weights are.
        strict: also refuse a classifier's head and CLIP's other tower; else they are left out.

    Raises:
        ModelFolderError: names the file, and the weight or the field that is missing, unexpected,
            of another shape, not finite, or too large.
        MissingExtra: a folder of timm's, and timm is not installed.
    """
    refuse_code(folder)
    config = read_json(folder / "config.json")
    files, shapes = _weights(folder)
    _refuse_excess(folder / "config.json", config, len(shapes))
    network: PreTrainedModel
    with tempfile.TemporaryDirectory(prefix="augself-open-") as stage, _quiet():
        _show(Path(stage), config, files, folder, list(shapes))
        try:
            loader, built = _build(Path(stage), config)
            # More weights than there are would take memory for what does not arrive.
            wanted = sum(v.numel() for v in (*built.parameters(), *built.buffers()))
            there = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
            if wanted > there + SPARE:
                raise ModelFolderError(
                    f"{folder / 'config.json'} describes {wanted:,} weights, the folder has "
                    f"{there:,}"
                )
            network, report = loader.from_pretrained(
                stage,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
        except AugSelfError:
            raise
        except Exception as error:  # transformers, safetensors and torch each raise their own
            if "requires the timm library" in str(error):
                raise MissingExtra("timm", "train") from error
            reason = " ".join(str(error).replace(stage, str(folder)).split())
            raise ModelFolderError(f"{folder}: the encoder cannot be loaded: {reason}") from error
    _refuse_incomplete(folder, network, report, strict)
    refuse_not_finite(network, str(folder))
    network.eval()
    return network


def named_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """A torch dtype, its name ("float16", "torch.float16") or "auto", as transformers takes them.

    Raises:
        UsageError: no floating-point type.
    """
    if dtype == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype {dtype!r}: give float32, float16, bfloat16 or auto")
    return found


def refuse_not_finite(network: nn.Module, what: str) -> None:
    """Raises ModelFolderError where a weight is NaN or infinite; names the first."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelFolderError(f"{what}: the weight {name} is not finite (NaN or infinity)")


def refuse_unlike_stock(network: PreTrainedModel) -> None:
    """Refuse to save what stock transformers would not load again.

    Raises:
        AugSelfError: names a weight that a network of the same configuration has not, or has in
            another shape: of an adapter that was not merged, of a module that was exchanged.
    """
    with torch.device("meta"):
        stock = {n: v.shape for n, v in type(network)(network.config).state_dict().items()}
    here = {name: value.shape for name, value in network.state_dict().items()}
    for name in [*here, *stock]:
        if here.get(name) != stock.get(name):
            raise AugSelfError(
                f"the encoder's weight {name} is not a stock {type(network).__name__}'s, "
                "so that nobody else could load it: merge adapters into it "
                "(merge_and_unload) and undo other changes of its modules"
            )


def _weights(folder: Path) -> tuple[list[Path], dict[str, tuple[int, ...]]]:
    """model.safetensors, or the shards that its index names, all of them in the folder; the shape
    of every weight, read off their headers.
    """
    names = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelFolderError(f"{folder / _INDEX}: weight_map is no object")
        names = sorted({str(name) for name in index.values()})
        for name in names:
            if not re.fullmatch(r"\w[\w.-]*\.safetensors", name) or not (folder / name).is_file():
                raise ModelFolderError(
                    f"{folder / _INDEX} names {name!r}, no safetensors of the folder"
                )
    elif not (folder / _WEIGHTS).is_file():
        pickles = [p.name for end in ("*.bin", "*.pt*") for p in sorted(folder.glob(end))]
        mend = f"{pickles[0]} is a pickle: save it as safetensors" if pickles else "save one there"
        raise ModelFolderError(f"{folder}: the encoder cannot be loaded: no {_WEIGHTS} ({mend})")
    files, shapes = [folder / name for name in names], {}
    for path in files:
        try:
            with safe_open(path, "pt") as weights:
                for name in list(weights.keys()):
                    shapes[name] = tuple(weights.get_slice(name).get_shape())
        except Exception as error:  # safetensors raises its own type
            raise ModelFolderError(
                f"{folder}: the encoder cannot be loaded: {path.name}: {error}"
            ) from error
    return files, shapes


def _refuse_excess(path: Path, config: dict[str, Any], weights: int) -> None:
    """Numbers that no network of these weights can have: building it might take for ever."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, int]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, name)
        elif type(value) is int:
            yield name, value

    repeated = 0
    for name, value in walk(config, ""):
        if abs(value) > LARGEST:
            raise ModelFolderError(f"{path}: {name} is {str(value)[:40]}, more than {LARGEST}")
        if _REPEATED.fullmatch(name.rpartition(".")[2]):
            repeated += max(value, 0)
            if repeated > 4 * weights + 100:
                raise ModelFolderError(
                    f"{path}: {name} is {value}: the folder has no more than {weights} weights"
                )


def _show(
    stage: Path, config: dict[str, Any], files: list[Path], folder: Path, names: list[str]
) -> None:
    """What transformers may see of a folder: its configuration, and its weights by these names."""
    if isinstance(config.get("model_args"), dict):  # of timm: transformers gives its own as well
        without = {k: v for k, v in config["model_args"].items() if k != "num_classes"}
        config = config | {"model_args": without or None}
    (stage / "config.json").write_text(json.dumps(config))
    prefix = ""  # what DistributedDataParallel and torch.compile put before every name
    while wrapper := next(
        (w for w in WRAPPERS if all(n.startswith(prefix + w) for n in names)), ""
    ):
        if not names:
            break
        prefix += wrapper
    if prefix:
        log.info("%s: the prefix %s of every weight is taken off", folder, prefix)
        state = {n.removeprefix(prefix): v for path in files for n, v in load_file(path).items()}
        try:
            save_file(state, stage / _WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise no_room(stage, error) from error
        return
    for path in files if files[0].name == _WEIGHTS else [*files, folder / _INDEX]:
        (stage / path.name).symlink_to(path.resolve())


def _build(stage: Path, config: dict[str, Any]) -> tuple[Any, nn.Module]:
    """Who loads the network, and the network without memory; one that takes too long to build is
    interrupted.
    """
    tower = _TOWERS.get(str(config.get("model_type")))
    if tower is not None:
        log.info("of this %s its vision tower is taken", config["model_type"])
    outcome: list[nn.Module | BaseException] = []

    def work() -> None:
        try:
            with torch.device("meta"):
                if tower is None:
                    outcome.append(AutoModel.from_config(AutoConfig.from_pretrained(stage)))
                else:
                    vision: Any = tower.config_class
                    outcome.append(tower(vision.from_pretrained(stage)))
        except BaseException as error:  # for the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=work, name="build", daemon=True)
    thread.start()
    thread.join(LOAD_SECONDS)
    if thread.is_alive():
        interrupt = ctypes.py_object(TimeoutError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), interrupt)
        thread.join(LOAD_SECONDS)
        path = stage / "config.json"
        raise ModelFolderError(f"{path}: the network takes longer than {LOAD_SECONDS:g} s to build")
    network = outcome[0]
    if isinstance(network, BaseException):
        raise network
    return tower or AutoModel, network


def _refuse_incomplete(
    folder: Path, network: PreTrainedModel, report: dict[str, Any], strict: bool
) -> None:
    """transformers' own report decides."""
    config: PretrainedConfig = network.config
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    if config.model_type == "vit" and not strict:
        missing = {name for name in missing if not name.startswith("pooler.")}
    if not strict:
        tower = type(network) in _TOWERS.values()
        out = {n for n in unexpected if _CLASSIFIER.match(n) or (tower and _OTHER_TOWER.match(n))}
        if out:
            parts = sorted({name.split(".")[0] for name in out})
            log.info("%s: left out, no part of the encoder: %s", folder, ", ".join(parts))
        unexpected -= out
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "mismatched": {entry[0] if isinstance(entry, tuple) else entry
                       for entry in report["mismatched_keys"]},
    }  # fmt: skip
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise ModelFolderError(
                f"{folder / _WEIGHTS} does not fit config.json: {kind} keys "
                f"{min(map(str, names))}{more}"
            )
    if report.get("error_msgs"):
        raise ModelFolderError(f"{folder}: the encoder cannot be loaded: {report['error_msgs'][0]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what it left out, and its bars."""
    before, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
