"""The study's section of docs/results.md and its chart, from the records alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from augself_hub.errors import AugSelfError
from research.study.plan import TRAINED, Comparison, Plan
from research.study.records import (
    DEVELOPMENT,
    FINAL,
    GENERATED,
    Difference,
    Pairs,
    Record,
    accuracies,
    mean_accuracy,
    read_all,
    trivial_accuracies,
)

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
CHART = "differences.svg"
SHOTS = (1, 5)


def write(plan: Plan, folder: Path, results: Path) -> None:
    """Put the section between its marks in `results`, or at its end; the chart beside the records.

    Raises:
        AugSelfError: there are no records.
    """
    records = read_all(folder)
    if not records:
        raise AugSelfError(f"no records in {folder}: run the study first")
    pairs = Pairs.of(plan.comparisons[0], records)
    names = pairs.sets(FINAL)
    text = [
        "## The study",
        "",
        "Protocol: [protocol.md](protocol.md). Data: [data.md](data.md). Written by",
        "`python -m research.study report` from the records of the runs.",
        *_primary(plan, pairs),
        *(_chart(pairs, names, folder, results) if names else ()),
        *_secondary(pairs),
        *_controls(plan.comparisons[1:], records),
        *_references(plan, records),
        *_tuning(plan, records),
        *_runs(records),
    ]
    _replace(results, "\n".join([BEGIN, *text, END]) + "\n")


def _primary(plan: Plan, pairs: Pairs) -> Iterable[str]:
    first = plan.comparisons[0]
    yield from ("", f"### {first.title}", "")
    if not len(pairs):
        yield "No pair of runs is finished."
        return
    rows = []
    for name in pairs.sets(FINAL):
        rows.append([name, *_cells(pairs.on_set(FINAL, name)), _range(pairs.over_images([name]))])
    mean = pairs.on_all(FINAL)
    images = pairs.over_images(pairs.sets(FINAL))
    rows.append([f"**{c}**" for c in ("mean", *_cells(mean), _range(images))])
    head = ["linear probe, %", *_heads(first), "difference", "95% over seeds", "95% over images"]
    yield from _table(head, rows)
    yield from ("", _verdict(plan, pairs, mean))


def _verdict(plan: Plan, pairs: Pairs, mean: Difference) -> str:
    """What the protocol's bar says of these pairs."""
    planned = len(plan.phase(plan.comparisons[0].with_[0]).seeds)
    if pairs.diverged:
        return f"**No claim: {', '.join(pairs.diverged)} diverged.**"
    if len(pairs) < planned or mean.interval is None:
        return f"**Not finished: {len(pairs)} of {planned} pairs.**"
    intervals = {name: pairs.on_set(FINAL, name).interval for name in pairs.sets(FINAL)}
    worse = [name for name, interval in intervals.items() if interval and interval[1] < 0]
    if mean.interval[0] > 0 and not worse:
        return (
            f"**The bar is met**: {planned} pairs, the mean's interval lies above zero, and no "
            "set's lies wholly below."
        )
    why = f"{', '.join(worse)} lost" if worse else "the mean's interval does not lie above zero"
    return f"**A null result**: {planned} pairs, and {why}."


def _secondary(pairs: Pairs) -> Iterable[str]:
    if not len(pairs):
        return
    yield from ("", "### The same runs, other measures", "")
    asked = [("kNN", "kNN, final sets", FINAL, {}), ("linear probe", "linear probe", GENERATED, {})]
    asked += [("few-shot", f"5-way {s}-shot", FINAL, {"shots": s}) for s in SHOTS]
    rows = []
    for task, title, role, wanted in asked:
        for name in pairs.sets(role, task=task, **wanted):
            difference = pairs.on_set(role, name, task=task, **wanted)
            shown = f"{name} (mechanism, not transfer)" if role == GENERATED else name
            rows.append([title.removesuffix(", final sets"), shown, *_cells(difference)])
    head = ["measure", "set", "without", "with", "difference", "95% over seeds"]
    yield from _table(head, rows)
    yield from ("", *_pairs_table(pairs.with_))


def _pairs_table(records: Sequence[Record]) -> Iterable[str]:
    """What the AugSelf heads of the runs say of pairs of held-out photographs."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        for one in record.get("held_out_pairs", ()):
            name = f"{one['kind']} {one['dimension']}, {one['metric'].replace('r_squared', 'R^2')}"
            by_name.setdefault(name, []).append(one)
    rows = [
        [name, f"{np.mean([o['value'] for o in some]):.2f}", f"{some[0]['trivial']:.2f}"]
        for name, some in by_name.items()
    ]
    head = ["heads on pairs of held-out photographs", "mean over seeds", "knowing nothing"]
    return _table(head, rows) if rows else ()


def _controls(comparisons: Sequence[Comparison], records: Sequence[Record]) -> Iterable[str]:
    rows = []
    for comparison in comparisons:
        pairs = Pairs.of(comparison, records)
        cells = _cells(pairs.on_all(FINAL)) if pairs.sets(FINAL) else ["-"] * 4
        rows.append([comparison.title, *_heads(comparison), *cells, str(len(pairs))])
    yield from ("", "### Controls and a second method", "")
    head = ["question", "arm A", "arm B", "A, %", "B, %", "B - A", "95% over seeds", "pairs"]
    yield from _table(head, rows)


def _references(plan: Plan, records: Sequence[Record]) -> Iterable[str]:
    found = [r for r in records if r["kind"] not in TRAINED]
    if not found:
        return
    yield from ("", "### What knows nothing of AugSelf", "")
    sets = list(accuracies(found[0], FINAL))
    rows = []
    for arm in dict.fromkeys(r["arm"] for r in found):
        some = [r for r in found if r["arm"] == arm]
        means = [np.mean([accuracies(r, FINAL)[s] for r in some]) for s in sets]
        rows.append([arm, *(f"{m:.1f}" for m in means), f"{np.mean(means):.1f}"])
    shown = [*trivial_accuracies(found[0], FINAL).values()]
    rows.append(["commonest class", *(f"{t:.1f}" for t in shown), f"{np.mean(shown):.1f}"])
    yield from _table(["linear probe, %", *sets, "mean"], rows)


def _tuning(plan: Plan, records: Sequence[Record]) -> Iterable[str]:
    yield from ("", "### Learning rates, chosen on the development sets", "")
    rows = []
    for phase in (p for p in plan.phases if p.rates):
        for arm in phase.arms:
            some = [r for r in records if (r["phase"], r["arm"]) == (phase.name, arm)]
            by_rate = [[r for r in some if r["rate"] == rate] for rate in phase.rates]
            means = [
                np.mean([mean_accuracy(r, DEVELOPMENT) for r in s]) if s else None for s in by_rate
            ]
            rows += [
                [arm, f"{rate:g}", _tuned(mean), str(len(s))]
                for rate, mean, s in zip(phase.rates, means, by_rate, strict=True)
            ]
    yield from _table(["arm", "base rate", "mean linear probe, %", "runs"], rows)


def _tuned(mean: float | None) -> str:
    """A rate's mean accuracy; one run that diverged counts as the worst."""
    if mean is None:
        return "-"
    return f"{mean:.1f}" if math.isfinite(mean) else "diverged"


def _runs(records: Sequence[Record]) -> Iterable[str]:
    """Every run, good or bad, and its command."""
    hours = sum(sum(r["cpu_seconds"].values()) for r in records) / 3600
    yield from ("", f"### All {len(records)} runs, {hours:.1f} CPU hours", "")
    rows = []
    for record in records:
        role = DEVELOPMENT if accuracies(record, DEVELOPMENT) else FINAL
        value = "diverged" if "diverged" in record else f"{mean_accuracy(record, role):.2f}"
        minutes = sum(record["cpu_seconds"].values()) / 60
        rows.append([record["name"], f"{value} ({role})", f"{minutes:.1f}"])
    yield from _table(["run", "mean linear probe, %", "CPU minutes"], rows)
    yield from ("", "<details><summary>Their commands</summary>", "", "```")
    for record in records:
        if record["command"]:
            note = "  # with ShuffledTargets" if record["kind"] == "shuffled" else ""
            yield f"{record['command']}{note}"
    yield from ("```", "", "</details>")


def _chart(pairs: Pairs, names: Sequence[str], folder: Path, results: Path) -> Iterable[str]:
    from matplotlib.figure import Figure

    rows = [("mean", pairs.on_all(FINAL))]
    rows += [(name, pairs.on_set(FINAL, name)) for name in reversed(names)]
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, (_, d) in enumerate(rows):
        low, high = d.interval or (d.difference, d.difference)
        axes.plot([low, high], [height, height], color="tab:blue" if height else "black")
        axes.plot(d.difference, height, "o", color="tab:blue" if height else "black")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows])
    axes.set_xlabel(f"linear probe with AugSelf minus without, points; 95% over {len(pairs)} seeds")
    figure.savefig(folder / CHART, metadata={"Date": None})
    place = os.path.relpath(folder / CHART, results.parent)
    return "", f"![Differences of the linear probe by set]({place})"


def _heads(comparison: Comparison) -> list[str]:
    return [comparison.without[1], comparison.with_[1]]


def _cells(d: Difference) -> list[str]:
    return [f"{d.without:.1f}", f"{d.with_:.1f}", f"{d.difference:+.1f}", _range(d.interval)]


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _replace(results: Path, section: str) -> None:
    text = results.read_text() if results.is_file() else "# Results\n\n"
    marked = re.compile(re.escape(BEGIN) + ".*" + re.escape(END) + "\n", re.DOTALL)
    if marked.search(text):
        text = marked.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    results.write_text(text)
