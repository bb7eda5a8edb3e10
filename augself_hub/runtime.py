"""The one place that imports ONNX Runtime: `from augself_hub.runtime import onnxruntime`.

From 1.29 on its Linux wheels report every session to their maker, unless the environment says not
to before the library is loaded: it looks up a host, and keeps a device's id and a database in
~/.cache. `augself_hub` sets that environment when it is imported. Where another program loaded ONNX
Runtime before that, its events are switched off here.

Its wheels (onnxruntime, onnxruntime-gpu, onnxruntime-openvino ...) hold one module. Of two in one
environment the files of whichever came last are there, until one is removed and takes them along.

Raises MissingExtra where no ONNX Runtime is installed, AugSelfError where there are two or a broken
one; both say what to install.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from augself_hub.errors import RUNTIME_INSTALL, AugSelfError, MissingExtra

__all__ = ["installed", "onnxruntime", "with_quantization"]


def installed() -> list[str]:
    """The packages in this environment that hold the module, by name."""
    # By file names: the names in their metadata take 0.2 s to read in an environment of 200.
    places = (Path(place) for place in sys.path if Path(place).is_dir())
    found = {path.name.split("-")[0] for p in places for path in p.glob("onnxruntime*.dist-info")}
    packages = map(metadata.distribution, found)
    return sorted(
        package.name
        for package in packages
        if any(str(file) == "onnxruntime/__init__.py" for file in package.files or ())
    )


def _imported() -> Any:
    found = installed()
    if len(found) > 1:
        raise AugSelfError(
            f"{' and '.join(found)} are both installed and hold the same files: "
            f"pip uninstall -y {' '.join(found)}, then {RUNTIME_INSTALL}, [cpu] or [openvino]"
        )
    try:
        import onnxruntime
    except ImportError as error:
        if not found:
            raise MissingExtra("onnxruntime", "gpu") from error
        reason = str(error)
    else:
        if hasattr(onnxruntime, "InferenceSession"):
            return onnxruntime
        reason = "files are missing, as after another ONNX Runtime was uninstalled"
    (name,) = found or ["onnxruntime"]
    raise AugSelfError(
        f"{name} cannot be used ({reason}): pip install --force-reinstall --no-deps {name}"
    )


onnxruntime = _imported()
onnxruntime.disable_telemetry_events()


def with_quantization() -> Any:
    """The same module with its tools for smaller graphs loaded: `.quantization`, with
    `.shape_inference`, and `.transformers.float16`.
    """
    import onnxruntime.quantization.shape_inference
    import onnxruntime.transformers.float16

    return onnxruntime
