"""The one place that imports ONNX Runtime: `from augself_hub.runtime import onnxruntime`.

From 1.29 on its Linux wheels report every session to their maker, unless the environment says not
to before the library is loaded: it looks up a host, and keeps a device's id and a database in
~/.cache. `augself_hub` sets that environment when it is imported. Where another program loaded ONNX
Runtime before that, its events are switched off here.

Raises MissingExtra where no ONNX Runtime is installed.
"""

from __future__ import annotations

from typing import Any

from augself_hub.errors import MissingExtra

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise MissingExtra("onnxruntime", "serve") from error

__all__ = ["onnxruntime", "with_quantization"]

onnxruntime.disable_telemetry_events()


def with_quantization() -> Any:
    """The same module with its tools for smaller graphs loaded: `.quantization`, with
    `.shape_inference`, and `.transformers.float16`.
    """
    import onnxruntime.quantization.shape_inference
    import onnxruntime.transformers.float16

    return onnxruntime
