"""Results for people: tables in markdown, charts as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.compare import Difference
from training.evaluation.published import LABEL
from training.evaluation.results import Result
from training.monitoring.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WITHOUT, WITH, PAPER = "#7a7a7a", "#0b6fb8", "#c0622d"
METHODS = {"SimSiam": "D", "MoCo v2": "s"}
COLUMNS = ("task", "measure", "value", "95%", "baseline", "unit")
DIFFERENCE_COLUMNS = (
    *("task", "measure", "without AugSelf", "with AugSelf", "difference"),
    *("95% over images or tasks", "95% over seeds"),
    *(f"{method} ({LABEL})" for method in METHODS),
)
# The strength of each augmentation whose invariance the chart shows.
_MIDDLE = {"crop": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
_MIDDLE |= {"blur": 1, "sol": 0.5, "rot": 1, "flip": 1}


def number(value: float | None) -> str:
    """Three to four digits; empty where nothing was measured."""
    return "" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def rows_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A row each, of COLUMNS."""
    return [
        (
            result.task,
            result.name,
            number(result.value),
            "" if result.margin_of_error is None else f"+-{number(result.margin_of_error)}",
            number(result.baseline),
            result.unit,
        )
        for result in results
    ]


def difference_rows(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """A row each, of DIFFERENCE_COLUMNS."""
    return [
        (
            d.task,
            d.name,
            _mean(d.without),
            _mean(d.with_),
            _signed(d.difference),
            _interval(d.over_images),
            _interval(d.over_seeds),
            *(_published(d, method) for method in METHODS),
        )
        for d in differences
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values))


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) >= 1 else f"{value:+.3f}"


def _published(difference: Difference, method: str) -> str:
    pair = difference.published.get(method)
    return "" if pair is None else f"{pair[0]:.2f} -> {pair[1]:.2f}"


def difference_chart(differences: Sequence[Difference], stem: Path) -> None:
    """stem.png and stem.svg: both sides' values, and their difference with its interval.

    Only percentages are drawn; the paper's differences are hollow marks.
    """
    shown = [d for d in differences if d.unit == "%"][::-1]
    if not shown:
        return
    figure = new_figure(9.5, 1.4 + 0.42 * len(shown))
    values, change = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [f"{d.task}\n{d.name}" for d in shown]
    values.set_yticks(range(len(shown)), names, fontsize=8)
    for row, d in enumerate(shown):
        a, b = sum(d.without) / len(d.without), sum(d.with_) / len(d.with_)
        values.plot([a, b], [row, row], color="#bbbbbb", linewidth=2, zorder=1)
        values.scatter([a], [row], color=WITHOUT, zorder=2)
        values.scatter([b], [row], color=WITH, zorder=3)
        bounds = d.over_seeds or d.over_images
        if bounds is not None:
            change.plot(bounds, [row, row], color=WITH, linewidth=2)
        change.scatter([d.difference], [row], color=WITH, zorder=3)
        for method, (without, with_) in d.published.items():
            change.scatter(
                [with_ - without], [row - 0.22], marker=METHODS[method], facecolors="none",
                edgecolors=PAPER, zorder=2,
            )  # fmt: skip
    values.set(xlabel="%", title="without and with AugSelf", ylim=(-0.7, len(shown) - 0.3))
    change.set(xlabel="points", title="difference, 95% interval")
    change.axvline(0, color="black", linewidth=0.8)
    for axes in (values, change):
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _legend(figure, any(d.published for d in shown))
    _save(figure, stem)


def _legend(figure: Figure, with_paper: bool) -> None:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
    marks = [
        Line2D([], [], color=WITHOUT, label="without AugSelf", **dot),
        Line2D([], [], color=WITH, label="with AugSelf", **dot),
    ]
    hollow: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markeredgecolor": PAPER}
    for method, marker in METHODS.items() if with_paper else ():
        marks.append(Line2D([], [], marker=marker, label=f"{method}: {LABEL}", **hollow))
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def tradeoff_chart(sides: Mapping[str, Sequence[Result]], stem: Path) -> None:
    """stem.png and stem.svg: for each augmentation, how much features ignore and still know of it.

    Across: invariance at the middle strength (`invariance.Invariance`). Up: how much of the
    difference of two views a probe reads (R^2, or accuracy beyond the commonest class).
    """
    datasets = list(
        dict.fromkeys(r.dataset for results in sides.values() for r in results if _of_two_views(r))
    )
    if not datasets:
        return
    colors = (WITHOUT, WITH)[-len(sides) :]
    figure = new_figure(4.6 * len(datasets) + 0.6, 4.6)
    panels = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        for color, (name, results) in zip(colors, sides.items(), strict=True):
            _points(axes, [r for r in results if r.dataset == dataset], name, color)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="invariance (1: the change is not seen)", title=dataset)
    panels[0].set_ylabel("awareness (1: the difference is read exactly)")
    panels[0].legend(fontsize=8, loc="best", title="model", title_fontsize=8)
    _save(figure, stem)


def _of_two_views(result: Result) -> bool:
    return result.task == "awareness, two views"


def _points(axes: Axes, results: Sequence[Result], name: str, color: str) -> None:
    known = knowledge(results)
    ignored = {
        r.details["kind"]: r.details["invariance"]
        for r in results
        if r.task == "invariance" and _MIDDLE.get(r.details["kind"]) == r.details["strength"]
    }
    both = [kind for kind in ignored if kind in known]
    axes.scatter([ignored[k] for k in both], [known[k] for k in both], color=color, label=name)
    for kind in both:
        axes.annotate(
            kind, (ignored[kind], known[kind]), xytext=(4, 4), textcoords="offset points",
            fontsize=8, color=color,
        )  # fmt: skip


def knowledge(results: Sequence[Result]) -> dict[str, float]:
    """Augmentation -> share of the difference that is read; colour by its four dimensions.

    Where the commonest class is the only one in the test, nothing is there to be read.
    """
    read: dict[str, list[float]] = {}
    for r in filter(_of_two_views, results):
        kind, dimension = r.details["kind"], r.details["dimension"].partition(" ")[2]
        baseline = r.baseline or 0.0
        if r.metric != "r_squared" and baseline == 100:
            continue
        share = r.value if r.metric == "r_squared" else (r.value - baseline) / (100 - baseline)
        read.setdefault(dimension if kind == "color" else kind, []).append(share)
    return {kind: sum(values) / len(values) for kind, values in read.items()}


def _save(figure: Figure, stem: Path) -> None:
    figure.savefig(stem.with_suffix(".png"), dpi=130)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
