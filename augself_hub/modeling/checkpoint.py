"""A foreign checkpoint file -> plain tensors, without trusting the file.

Only tensors are unpickled, no archive may unpack to more than its own size, and no tensor may claim
more memory than the file holds.
"""

from __future__ import annotations

import mmap
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from augself_hub.errors import CheckpointError

State = dict[str, Tensor]
_BYTEARRAY = b"\nbytearray\n"  # as a pickle names it
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A .safetensors file, or a file of torch.save -> its dictionary. Nothing in it is executed.

    The values of a .pth may be anything torch's weights-only unpickler knows: see `state_of`.

    Raises:
        CheckpointError: not a file, damaged, or more in it than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: give a .pth or .safetensors checkpoint")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file fails in any of a dozen ways
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, or holds more than tensors, which might run "
            "code and is not unpickled; of a whole network save the state_dict()"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary")
    return content


def _load_pth(path: Path) -> Any:
    archive = zipfile.is_zipfile(path)  # else the format of PyTorch before 1.6
    if archive:
        _check_archive(path)
        with zipfile.ZipFile(path) as members:
            pickles = [m for m in members.namelist() if m.endswith(".pkl")]
            counts = any(_BYTEARRAY in members.read(name) for name in pickles)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            counts = data.find(_BYTEARRAY) >= 0
    if counts:  # torch's unpickler calls it, also with a number: 100 bytes took any memory
        raise CheckpointError(f"{path} makes a bytearray, which no state dict does: refused")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def _check_archive(path: Path) -> None:
    """torch.save compresses nothing, so what unpacks to more than the file was made to."""
    packed = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if (unpacked := sum(member.file_size for member in members)) > packed:
            raise CheckpointError(f"{path} has {packed} bytes and unpacks to {unpacked}: refused")
        for name in (member.filename for member in members):
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise CheckpointError(f"{path} has a member outside itself, {name!r}: refused")
        if damaged := archive.testzip():  # torch does not look at the checksums
            raise CheckpointError(f"{path} is damaged in {damaged!r}: get it again")


def state_of(value: Any, path: Path) -> State:
    """A state dict out of a checkpoint: names -> tensors on the CPU.

    The prefixes `module.` (DistributedDataParallel) and `_orig_mod.` (torch.compile) are taken off.

    Args:
        path: the file `value` came from; its size bounds what the tensors may claim.

    Raises:
        CheckpointError: anything but a dictionary of dense tensors no larger than the file.
    """
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} has a {type(value).__name__} where a state dict belongs")
    state = dict(_tensors(value, path))
    if len(state) < len(value):
        raise CheckpointError(f"{path} has a weight twice: with the prefix module. and without")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > path.stat().st_size:  # a stride of 0 makes terabytes of four bytes
        raise CheckpointError(f"{path} claims {claimed} bytes of weights, more than it has")
    return state


def _tensors(value: dict[Any, Any], path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path} has a {kind} at {name!r}, where a weight belongs")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path} has no plain dense tensor at {name!r}")
        yield _WRAPPERS.sub("", str(name)), tensor
