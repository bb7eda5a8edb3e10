"""Exporting from Python: what `augself export` calls, too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from augself_hub.errors import UsageError
from augself_hub.folder import own_folder
from augself_hub.images import Columns, Options
from augself_hub.lazy import needs
from augself_hub.paths import path_text
from augself_hub.precision import FORMATS, QUANTIZED


def export(
    model: str | os.PathLike[str],
    *,
    format: str | None = None,
    quantize: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    require_speedup: float | None = None,
    column: Sequence[str] = (),
    split: str | None = None,
    read_as: str | None = None,
) -> dict[str, Any]:
    """Write the ONNX graphs of a model folder; refused where they differ from torch.

    Example:
        export("runs/first/model")
        export("runs/first/model", format="transformers.js")
        export("runs/first/model", quantize="int8", calibration="PHOTOS")

    Args:
        model: a model folder.
        format: transformers.js: write onnx/model.onnx, too, the encoder as that library and other
            tools of the Hub take it (pixel_values -> last_hidden_state, pooler_output).
        quantize: int8 (for CPUs) or fp16 (for GPUs): add a smaller graph, made from the one there.
        calibration: with quantize: photographs to calibrate and judge it by, any source of
            images (docs/data-sources.md).
        require_speedup: with int8: refused below, times the fp32 graph's images a second.
        column, split, read_as: how the photographs are read, as `pretrain` takes them.

    Returns:
        What was measured: the largest norm-relative difference of each part from torch; of a
        smaller graph what `quantize_folder` gives.

    Raises:
        UsageError: options that do not go together.
        AugSelfError: a graph differs, or a gate failed; the folder stays as it was.
    """
    if format not in (None, *FORMATS):
        raise UsageError(f"--format {format}: give {' or '.join(FORMATS)}, or none")
    if format is not None and quantize is not None:
        raise UsageError("--format and --quantize write different graphs: give them one by one")
    if quantize is not None and quantize not in QUANTIZED:
        raise UsageError(f"--quantize {quantize}: give {' or '.join(QUANTIZED)}")
    if quantize is not None and calibration is None:
        raise UsageError(f"--quantize {quantize} needs real photographs: --calibration SOURCE")
    if quantize is None and calibration is not None:
        raise UsageError("--calibration is read with --quantize only")
    if quantize is None and (column or split is not None or read_as is not None):
        raise UsageError("--column, --split and --read-as are of --calibration: give them with it")
    if quantize != "int8" and require_speedup is not None:
        raise UsageError("--require-speedup is measured with --quantize int8 only")
    folder = own_folder(path_text("model", model), "export")
    with needs("export"):
        if quantize is None or calibration is None:
            from augself_hub.modeling.export import export_folder

            return dict(export_folder(folder, stock=format is not None))
        from augself_hub.modeling.quantize import quantize_folder

        reading = Options(Columns.parse(tuple(column)), split, read_as)
        return quantize_folder(
            folder, quantize, path_text("calibration", calibration), require_speedup, reading
        )
