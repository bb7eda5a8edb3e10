"""curves.png: how a run went, from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.monitoring.figures import new_figure
from training.monitoring.monitor import PREFIX

FEW = 30  # points that are marked one by one
_NOT_LOSSES = {"grad_norm", "learning_rate", "epoch", "step", "feature_std", "loss", "method"}
_FEATURES = {
    "feature_std": "std, trained on",
    PREFIX + "feature_std": "std, held out",
    PREFIX + "knn": "kNN",
}


def curves(history: list[dict[str, Any]], path: Path) -> None:
    """Up to five panels over the steps: loss, heads' losses, awareness, matcher, features.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    panels = [panel for panel in _panels(history) if panel[2]]
    figure = new_figure(4.5 * len(panels), 4.4)
    from matplotlib import colormaps

    every = np.ravel(figure.subplots(1, len(panels)))
    for axes, (title, unit, names) in zip(every, panels, strict=True):
        colors: Any = colormaps["tab10" if len(names) <= 10 else "tab20"]  # a list of them
        axes.set_prop_cycle(color=colors.colors)
        for name, label in names.items():
            points = np.array([(row["step"], row[name]) for row in history if name in row])
            marker = "." if len(points) < FEW else ""
            axes.plot(points[:, 0], points[:, 1], label=label, marker=marker)
        axes.set(xlabel="step", ylabel=unit, title=title)
        axes.legend(fontsize="x-small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=80)


def _panels(history: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, str]]]:
    """(title, unit, column of the log -> its label) of each."""
    rows = [row for row in history if "loss" in row]
    seen = {name for row in history for name in row}
    kinds = sorted({name for row in rows for name in row} - _NOT_LOSSES)
    measured = sorted(n for n in seen if n.startswith(PREFIX) and n not in _FEATURES)
    aware = {n: n.removeprefix(PREFIX).replace("_", " ") for n in measured}
    matched = {n: aware.pop(n) for n in measured if n.startswith(PREFIX + "matcher_")}
    return [
        ("Training", "loss", {n: n for n in ("loss", "method") if n in seen}),
        ("Heads, in training", "loss", {n: n for n in kinds}),
        (
            "Awareness, held-out pairs",
            "R^2 or accuracy",
            aware,
        ),
        ("Matcher, held-out pairs", "R^2, accuracy, AUC or share", matched),
        ("Features", "share", {n: label for n, label in _FEATURES.items() if n in seen}),
    ]
