"""Which provider runs a graph, and never silently another one.

    cpu             the CPU
    cuda, tensorrt  that provider, or a refusal that names what is missing
    auto            CUDA where an NVIDIA driver is installed, else the CPU; where there is a driver
                    and CUDA still cannot be had, a warning says why

ONNX Runtime's list of available providers tells what was compiled in, not what works. So its
library is loaded first, which yields the missing dependency's name, and the session is asked
afterwards what it got.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from augself_hub.errors import AugSelfError, MissingExtra, ModelFolderError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_WINDOWS = sys.platform == "win32"
_DRIVER = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
_LIBRARY = "onnxruntime_providers_{}.dll" if _WINDOWS else "libonnxruntime_providers_{}.so"
_ON_CPU = "running on the CPU, CUDA cannot be used: %s"
logger = logging.getLogger(__name__)


def open_sessions(graphs: Sequence[Path], device: str, threads: int) -> list[InferenceSession]:
    """One session a graph, all on the same device.

    Raises:
        MissingExtra: there is no ONNX Runtime.
        ModelFolderError: a graph cannot be loaded.
        AugSelfError: cuda or tensorrt cannot be had; says what is missing.
    """
    chosen = _choose(device)
    try:
        return [_session(graph, chosen, threads) for graph in graphs]
    except AugSelfError as error:
        if device == chosen or chosen == "cpu":
            raise
        logger.warning(_ON_CPU, error)
        return [_session(graph, "cpu", threads) for graph in graphs]


def _choose(device: str) -> str:
    """cpu, cuda, tensorrt or auto -> the device to try."""
    reason = _two_installations()
    if reason and device in ("cpu", "auto"):
        logger.warning("%s", reason)
    if device == "cpu" or (device == "auto" and _load_error(_DRIVER)):
        return "cpu"
    wanted = "cuda" if device == "auto" else device
    reason = reason or _missing(wanted)
    if reason is None:
        return wanted
    if device == "auto":
        logger.warning(_ON_CPU, reason)
        return "cpu"
    raise AugSelfError(f"--device {device} cannot be used: {reason}")


def _session(graph: Path, device: str, threads: int) -> InferenceSession:
    """A session of one graph on exactly this device."""
    ort, provider = _onnxruntime(), _PROVIDERS[device]
    providers = list(dict.fromkeys((provider, _PROVIDERS["cpu"])))
    try:
        # Without enable_fallback=0 a failing provider is replaced later, in the middle of a run.
        session = ort.InferenceSession(
            str(graph), _options(threads), providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{graph} cannot be loaded: {reason}") from error
    if session.get_providers()[0] != provider:
        raise AugSelfError(f"--device {device} cannot be used: ONNX Runtime took another provider")
    return session


def _options(threads: int) -> SessionOptions:
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "serve") from error
    return onnxruntime


def _missing(device: str) -> str | None:
    """Why a provider's library does not load, or None where it does."""
    ort = _onnxruntime()
    if _PROVIDERS[device] not in ort.get_available_providers():
        return "the installed ONNX Runtime has no such provider: pip install 'augself-hub[cuda]'"
    ort.preload_dlls(directory="")
    library = Path(str(ort.__file__)).parent / "capi" / _LIBRARY.format(device)
    return _load_error(str(library))


def _load_error(library: str) -> str | None:
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _two_installations() -> str | None:
    """Two ONNX Runtimes overwrite each other's files: which one runs is chance."""
    if not (_installed("onnxruntime") and _installed("onnxruntime-gpu")):
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed: "
        "pip uninstall both, then pip install onnxruntime-gpu"
    )


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
