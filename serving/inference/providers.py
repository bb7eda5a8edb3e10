"""Which provider runs a graph, and never silently another one.

    cpu             the CPU
    openvino, cuda, tensorrt
                    that provider, or a refusal that names what is missing
    auto            CUDA where an NVIDIA driver is installed, else the CPU; where there is a driver
                    and CUDA still cannot be had, a warning says why; int8 runs on the CPU, bf16 on
                    OpenVINO

ONNX Runtime's list of available providers tells what was compiled in, not what works. So its
library is loaded first, which yields the missing dependency's name, and the session is asked
afterwards what it got: a provider that does not understand its options is left out without an
error.

OpenVINO compiles the encoder for the same CPU, also in bf16; the heads, which cost next to nothing,
stay on the plain provider. What it answers is held against that one (see `parity`).

On a GPU batches have one of a few fixed sizes, with buffers bound once, and each size runs before
the first request: see `Runner`. None of it has been measured; where there is a GPU
tests/serving/inference/test_gpu.py runs.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from augself_hub.errors import AugSelfError, ModelFolderError, UsageError, first_line
from augself_hub.runtime import installed, onnxruntime
from augself_hub.time_limit import LOAD_SECONDS, TimeLimit, time_limit
from serving.inference.provider_options import BUCKETS, DRIVER, OPTIONS

DEVICES = ("auto", "cpu", "openvino", "cuda", "tensorrt")
CPU, OPENVINO = "CPUExecutionProvider", "OpenVINOExecutionProvider"
ON_CPUS = (CPU, OPENVINO)
PROVIDERS = {
    "cpu": CPU,
    "openvino": OPENVINO,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_WINDOWS = sys.platform == "win32"
_LIBRARY = "onnxruntime_providers_{}.dll" if _WINDOWS else "libonnxruntime_providers_{}.so"
_ON_CPU = "running on the CPU, CUDA cannot be used: %s"
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """A graph file and what a GPU has to know of it in advance.

    Args:
        path: of the file. sha256: of the same, which names what is compiled from it.
        precision: fp32, bf16, int8 or fp16.
        inputs: name -> shape of one row.
    """

    path: Path
    sha256: str
    precision: str
    inputs: dict[str, tuple[int, ...]]


class NotFinite(ModelFolderError):
    """A graph answers with NaN or infinity."""


class Runner:
    """One graph's session: any number of rows in, every output out. Threads may share it.

    On the CPU a batch runs as it is. On a GPU it is filled up to one of `buckets` rows, since a new
    shape costs a choice of convolutions (cuda) or a compilation (tensorrt).

    Args:
        session: of the graph.
        buckets: sizes, rising; none: every size as it comes.
        memory: where buffers of the buckets lie, ONNX Runtime's name.

    Attributes:
        session: for those who ask it about itself.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        buckets: Sequence[int] = (),
        memory: str = "cuda",
        limit: TimeLimit | None = None,
    ) -> None:
        self.session = session
        self._names = [output.name for output in session.get_outputs()]
        self._buckets = [_Bucket(session, rows, memory, limit) for rows in buckets]

    def run(
        self,
        inputs: dict[str, np.ndarray],
        limit: TimeLimit | None = None,
        outputs: Sequence[str] | None = None,
        most: int = BUCKETS[-1],
    ) -> list[np.ndarray]:
        """Name -> N >= 1 rows, for every input -> N rows of each output, in the graph's order.

        Args:
            outputs: names of those that are wanted, in this order; None: all.
            most: rows at a time.

        Raises:
            NotFinite: the graph answers with NaN or infinity. ModelFolderError: with other than N
                rows of float32.
        """
        rows = len(next(iter(inputs.values())))
        options = limit.run if limit else None
        names = outputs or self._names
        parts = []
        for start in range(0, rows, most):
            part = {name: values[start : start + most] for name, values in inputs.items()}
            given = min(most, rows - start)
            if self._buckets:
                bucket = next(bucket for bucket in self._buckets if bucket.rows >= given)
                answers = bucket.run(part, options, names)
            else:
                answers = self.session.run(names, part, options)
            for name, answer in zip(names, answers, strict=True):
                # Nobody may be answered with anything else.
                if getattr(answer, "dtype", None) != np.float32 or answer.shape[:1] != (given,):
                    found = (
                        f"{getattr(answer, 'shape', '')} {getattr(answer, 'dtype', type(answer))}"
                    )
                    raise ModelFolderError(
                        f"the graph answers {given} rows with {name} {found}: export it again"
                    )
                if not np.isfinite(answer).all():
                    raise NotFinite(f"the graph's {name} are not finite: NaN or infinity")
            parts.append(list(answers))
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(answers) for answers in zip(*parts, strict=True)]


class _Bucket:
    """A batch size with buffers on the device: a run copies in, runs, copies out."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        rows: int,
        memory: str,
        limit: TimeLimit | None = None,
    ) -> None:
        self.rows = rows
        self._session, self._binding = session, session.io_binding()
        self._lock = threading.Lock()
        self._inputs = {v.name: self._buffer(v, memory) for v in session.get_inputs()}
        self._outputs = {v.name: self._buffer(v, memory) for v in session.get_outputs()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        nothing = {
            v.name: np.zeros((1, *v.shape[1:]), _TYPES[v.type]) for v in session.get_inputs()
        }
        self.run(nothing, limit.run if limit else None)  # warm

    def run(
        self,
        inputs: dict[str, np.ndarray],
        options: Any = None,
        outputs: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """At most `rows` rows in, as many out; only the outputs that are wanted are copied."""
        rows = len(next(iter(inputs.values())))
        with self._lock:
            for name, values in inputs.items():
                self._inputs[name].update_inplace(self._filled(values))
            self._binding.synchronize_inputs()
            self._session.run_with_iobinding(self._binding, options)
            self._binding.synchronize_outputs()
            wanted = self._outputs if outputs is None else outputs
            return [self._outputs[name].numpy()[:rows].copy() for name in wanted]

    def _buffer(self, value: Any, memory: str) -> Any:
        shape = [self.rows, *value.shape[1:]]
        create = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return create(shape, _TYPES[value.type], memory, 0)

    def _filled(self, values: np.ndarray) -> np.ndarray:
        """Repeats of the last row fill the batch; nobody reads what comes of them."""
        missing = self.rows - len(values)
        rest = np.repeat(values[-1:], missing, axis=0)
        return np.ascontiguousarray(np.concatenate([values, rest]) if missing else values)


def open_graphs(graphs: Sequence[Graph], device: str, threads: int) -> list[Runner]:
    """One runner a graph, all on the same device.

    Raises:
        UsageError: no such device, or one that the precision is not for.
        MissingExtra: there is no ONNX Runtime.
        ModelFolderError: a graph cannot be loaded.
        AugSelfError: the device cannot be had; says what is missing.
    """
    precision = graphs[0].precision
    device = device_of(device, precision)
    chosen = _choose(device)
    _refuse_misfit(chosen, precision)
    rest = "cpu" if chosen == "openvino" else chosen
    try:
        encoder = _runner(graphs[0], chosen, threads)
        return [encoder, *(_runner(graph, rest, threads) for graph in graphs[1:])]
    except AugSelfError as error:
        if device == chosen or chosen == "cpu":
            raise
        logger.warning(_ON_CPU, error)
        _refuse_misfit("cpu", precision)
        return [_runner(graph, "cpu", threads) for graph in graphs]


def device_of(device: str, precision: str) -> str:
    """The same device, or for auto the only one that the precision is for, where there is one.

    Raises:
        UsageError: no such device.
    """
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}: give one of {', '.join(DEVICES)}")
    only = {"int8": "cpu", "bf16": "openvino"}
    return only.get(precision, device) if device == "auto" else device


def _refuse_misfit(device: str, precision: str) -> None:
    """On the wrong processor a quantised graph is slower than fp32, or computes in fp32 anyway."""
    on_cpu = PROVIDERS[device] in ON_CPUS
    if precision == "int8" and not on_cpu:
        raise UsageError(f"int8 is for the CPU: give --precision fp32 or fp16 with {device}")
    if precision == "fp16" and on_cpu:
        raise UsageError("fp16 is for GPUs: give --precision fp32 or int8 on the CPU")
    if precision == "bf16" and device != "openvino":
        raise UsageError(f"bf16 is for --device openvino: give --precision fp32 with {device}")


def _choose(device: str) -> str:
    """cpu, openvino, cuda, tensorrt or auto -> the device to try."""
    if device == "cpu" or (device == "auto" and _load_error(DRIVER)):
        return "cpu"
    wanted = "cuda" if device == "auto" else device
    reason = _missing(wanted)
    if reason is None:
        return wanted
    if device == "auto":
        logger.warning(_ON_CPU, reason)
        return "cpu"
    raise AugSelfError(f"--device {device} cannot be used: {reason}")


def _runner(graph: Graph, device: str, threads: int) -> Runner:
    """A graph on exactly this device, warm."""
    with time_limit(graph.path, LOAD_SECONDS[device]) as limit:
        session = _session(graph, device, threads, limit)
        try:
            on_cpu = PROVIDERS[device] in ON_CPUS
            return Runner(session, () if on_cpu else BUCKETS, limit=limit)
        except Exception as error:  # what a GPU refuses shows at the first run
            raise AugSelfError(f"--device {device} cannot be used: {first_line(error)}") from error


def _session(
    graph: Graph, device: str, threads: int, limit: TimeLimit
) -> onnxruntime.InferenceSession:
    # What it is offered, best first; nodes that one cannot run go to the next.
    order = {"cpu": ("cpu",), "tensorrt": ("tensorrt", "cuda", "cpu")}
    names = order.get(device, (device, "cpu"))
    try:
        # Without enable_fallback=0 a failing provider is replaced later, in the middle of a run.
        session = onnxruntime.InferenceSession(
            str(graph.path),
            limit.load(_options(device, threads)),
            providers=[(PROVIDERS[name], OPTIONS[name](graph, threads)) for name in names],
            enable_fallback=0,
        )
    except AugSelfError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelFolderError(f"{graph.path} cannot be loaded: {first_line(error)}") from error
    if session.get_providers()[0] != PROVIDERS[device]:
        raise AugSelfError(f"--device {device} cannot be used: ONNX Runtime took another provider")
    if device == "openvino":
        nodes = {part.ep_name for part in session.get_provider_graph_assignment_info()}
        if OPENVINO not in nodes:
            raise AugSelfError(
                f"--device openvino cannot be used: it can run no part of {graph.path}"
            )
        if nodes != {OPENVINO}:
            logger.warning("the plain provider runs the parts of %s OpenVINO cannot", graph.path)
    return session


def _options(device: str, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device == "openvino":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _missing(device: str) -> str | None:
    """Why a provider's library does not load, or None where it does."""
    ort = onnxruntime
    if PROVIDERS[device] not in ort.get_available_providers():
        package, extra = " ".join(installed()), "openvino" if device == "openvino" else "cuda"
        return (
            f"the installed {package} has no such provider: pip uninstall -y {package}, then "
            f"pip install 'augself-hub[{extra}]'"
        )
    if device != "openvino":
        ort.preload_dlls(directory="")
    library = Path(str(ort.__file__)).parent / "capi" / _LIBRARY.format(device)
    return _load_error(str(library))


def _load_error(library: str) -> str | None:
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None
