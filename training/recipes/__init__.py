"""Named runs: the settings of one run each, with what they take and what comes out.

One TOML file a scale. What stands at its top holds for all of its recipes; a table is a recipe,
`small.toml`'s `[moco]` is `small-moco`; a file without tables is one recipe. `time` and `result`
are what to expect; `data` is how the recipe's command names its images; the rest are fields of
`Settings`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augself_hub.errors import UsageError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: for --recipe.
        settings: fields of `Settings`, but for data and output.
        data: how the images are given.
        time, result: expected, or "not measured by us".
        bounds: of what is chosen where nobody gives it: seen, the images that a CPU core trains on
            at most, whatever number of epochs that makes; batch, the largest one.
    """

    name: str
    settings: dict[str, Any]
    data: str
    time: str
    result: str
    bounds: dict[str, int] = field(default_factory=dict)

    @property
    def command(self) -> str:
        place = f"--data {self.data} --output runs/{self.name}"
        return f"augself pretrain --recipe {self.name} {place}"


def recipes() -> dict[str, Recipe]:
    """Name -> recipe, in the files' order."""
    found = {}
    for path in sorted(HERE.glob("*.toml")):
        entries = tomllib.loads(path.read_text())
        tables = {n: e for n, e in entries.items() if isinstance(e, dict) and "method" in e}
        shared = {n: e for n, e in entries.items() if n not in tables}
        for table, own in (tables or {"": {}}).items():
            name, settings = f"{path.stem}-{table}".rstrip("-"), {**shared, **own}
            texts = {key: settings.pop(key) for key in ("data", "time", "result")}
            bounds = settings.pop("bounds", {})
            if "classes" in settings:
                settings["classes"] = HERE / settings["classes"]
            found[name] = Recipe(name, settings, **texts, bounds=bounds)
    return found


def recipe(name: str) -> Recipe:
    """Raises UsageError for an unknown name."""
    known = recipes()
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}: see augself pretrain --list-recipes")
    return known[name]
