"""What a benchmark has found: printed as it is found, and kept for bench.py."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, features

from augself_hub.cores import usable_cores
from augself_hub.folder import versions

SETS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16"),
)


class Findings:
    """Paragraphs and tables in markdown, and the bars of one chart.

    Attributes:
        parts: markdown, in order.
        unit: of the chart.
        bars: name -> the figure of every round.
    """

    def __init__(self, unit: str) -> None:
        self.parts: list[str] = []
        self.unit = unit
        self.bars: dict[str, list[float]] = {}

    def say(self, text: str) -> None:
        """Print a paragraph and keep it."""
        print(f"{text}\n", flush=True)
        self.parts.append(text)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table and keep it."""
        lines = [heads, ["---"] * len(heads), *rows]
        self.say("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def chart(self, bars: Mapping[str, Sequence[float]]) -> None:
        """Add bars."""
        self.bars |= {name: list(values) for name, values in bars.items()}

    def write(self, path: Path | None) -> None:
        """Keep it all as JSON, where it is wanted."""
        if path is not None:
            path.write_text(json.dumps(vars(self), indent=1) + "\n")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The middle one is the median; of a single value all three are that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: Sequence[float], unit: str = "") -> tuple[str, str]:
    """Two cells: the median, and the quartiles between which half of the rounds lie."""
    low, middle, high = map(_figure, quartiles(values))
    return f"{middle} {unit}".strip(), f"{low} to {high}"


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:#.3g}"


def machine() -> str:
    """Processor, what it can do with few bits, usable cores, versions."""
    libraries = {**versions(), "Pillow": Image.__version__}
    libraries["libjpeg-turbo"] = str(features.version("libjpeg_turbo"))
    named = ", ".join(f"{name} {version}" for name, version in libraries.items())
    processor = _processor().get("model name", platform.machine())
    return f"{processor} ({' '.join(instructions())}), {usable_cores()} cores; {named}"


def instructions() -> list[str]:
    """Of SETS, those that the processor has."""
    flags = _processor().get("flags", "").split()
    return [name for name in SETS if name in flags]


def _processor() -> dict[str, str]:
    """What Linux says of the last core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
