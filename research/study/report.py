"""The study's section of research/results.md, its chart and its runs, from the records alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from augself_hub.errors import AugSelfError
from research.study.plan import (
    DEVELOPMENT,
    FEW_SHOT,
    FINAL,
    GENERATED,
    KNN,
    LINEAR,
    SECONDARY,
    TRAINED,
    Comparison,
    Endpoint,
    Plan,
)
from research.study.records import (
    Difference,
    Pairs,
    Record,
    accuracies,
    candidates,
    mean_accuracy,
    read_all,
    trivial_accuracies,
)

BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"
CHART, RUNS = "differences.svg", "runs.md"
SHOTS = (1, 5)


def write(plan: Plan, folder: Path, results: Path) -> None:
    """Put the section between its marks in `results`, or at its end.

    The chart and a table of all runs go beside the records.

    Raises:
        AugSelfError: there are no records.
    """
    records = read_all(folder)
    if not records:
        raise AugSelfError(f"no records in {folder}: run the study first")
    pairs = Pairs.of(plan.comparisons[0], records)
    names = pairs.sets(FINAL)
    text = [
        f"## {plan.title}",
        "",
        f"Protocol: [{plan.protocol}]({plan.protocol}). Data: [data.md](data.md). Written by",
        "`python -m research.study report` from the records of the runs.",
    ]
    hidden = plan.hidden and pairs.ended < _planned(plan)
    if hidden:
        text += [
            "",
            f"**Running: {pairs.ended} of {_planned(plan)} pairs are in.** What they have on the",
            "final sets is shown when all are: nothing is decided by a look at it.",
            *_selection(plan, records),
            *_tuning(plan, records),
        ]
    else:
        text += [
            *_primary(plan, pairs),
            *(_chart(plan, pairs, names, folder, results) if names else ()),
            *_secondary(plan, pairs),
            *_controls(plan.comparisons[1:], records),
            *_references(plan, records),
            *_selection(plan, records),
            *_tuning(plan, records),
        ]
    hours = sum(sum(r["cpu_seconds"].values()) for r in records) / 3600
    runs = f"{len(records)} runs, {hours:.1f} CPU hours"
    text += ["", f"[{runs}, each with its command]({_from(results, folder / RUNS)})."]
    (folder / RUNS).write_text(
        "\n".join([f"# {plan.title}: {runs}", *_runs(plan, records, not hidden)])
    )
    _replace(results, plan.title, "\n".join(text) + "\n")


def _from(page: Path, target: Path) -> str:
    return os.path.relpath(target, page.parent)


def _planned(plan: Plan) -> int:
    return len(plan.phase(plan.comparisons[0].with_[0]).seeds)


def _primary(plan: Plan, pairs: Pairs) -> Iterable[str]:
    first = plan.comparisons[0]
    yield from ("", f"### {first.title}", "")
    if not len(pairs):
        yield "No pair of runs is finished."
        return
    met = True
    for endpoint in plan.endpoints:
        images = endpoint.task == LINEAR
        rows = []
        for name in pairs.sets(FINAL, task=endpoint.task):
            cells = _cells(pairs.on_named(FINAL, name, endpoint.task))
            rows.append([name, *cells, *([_range(pairs.over_images([name]))] if images else [])])
        mean = pairs.on_all(FINAL, endpoint.task)
        over = [_range(pairs.over_images(pairs.sets(FINAL)))] if images else []
        rows.append([f"**{c}**" for c in ("mean", *_cells(mean), *over)])
        head = [f"{endpoint.name}, %", *_heads(first), "difference", "95% over seeds"]
        verdict, met = _verdict(plan, endpoint, pairs, met)
        table = _table([*head, "95% over images"] if images else head, rows)
        yield from (*([""] if endpoint != plan.endpoints[0] else []), *table, "", verdict)


def _verdict(plan: Plan, endpoint: Endpoint, pairs: Pairs, asked: bool) -> tuple[str, bool]:
    """What the protocol's bar says of these pairs, and whether the next endpoint is asked."""
    planned = _planned(plan)
    name = f" of {endpoint.name}" if len(plan.endpoints) > 1 else ""
    mean = pairs.on_all(FINAL, endpoint.task)
    if pairs.diverged:
        return f"**No claim: {', '.join(pairs.diverged)} diverged.**", False
    if len(pairs) < planned or mean.interval is None:
        return f"**Not finished: {len(pairs)} of {planned} pairs.**", False
    if not asked:
        return (
            f"**Described only**: an endpoint before {endpoint.name} did not meet its bar.",
            False,
        )
    worse = []
    if endpoint.no_loss:
        sets = pairs.sets(FINAL, task=endpoint.task)
        intervals = {name: pairs.on_named(FINAL, name, endpoint.task).interval for name in sets}
        worse = [name for name, interval in intervals.items() if interval and interval[1] < 0]
    if mean.interval[0] > 0 and not worse:
        also = ", and no set's lies wholly below" if endpoint.no_loss else ""
        told = f"{planned} pairs, the mean's interval lies above zero{also}."
        return f"**The bar{name} is met**: {told}", True
    why = f"{', '.join(worse)} lost" if worse else "the mean's interval does not lie above zero"
    return f"**A null result{name}**: {planned} pairs, and {why}.", False


def _secondary(plan: Plan, pairs: Pairs) -> Iterable[str]:
    """What decides nothing: other tasks on the final sets, and every task on other sets."""
    if not len(pairs):
        return
    decided = [endpoint.task for endpoint in plan.endpoints]
    asked = [(KNN, "kNN", FINAL, {}), (LINEAR, "linear probe", GENERATED, {})]
    asked += [(t, t, SECONDARY, {}) for t in (LINEAR, KNN)]
    if FEW_SHOT not in decided:
        asked += [(FEW_SHOT, f"5-way {s}-shot", FINAL, {"shots": s}) for s in SHOTS]
    rows = []
    for task, title, role, wanted in asked:
        for name in pairs.sets(role, task=task, **wanted):
            difference = pairs.on_named(role, name, task, **wanted)
            shown = f"{name} (mechanism, not transfer)" if role == GENERATED else name
            rows.append([title, shown, *_cells(difference)])
    yield from ("", "### The same runs, other measures", "")
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
    rows: list[list[str]] = []
    for comparison in comparisons:
        pairs = Pairs.of(comparison, records)
        cells = _cells(pairs.on_all(FINAL)) if pairs.sets(FINAL) else ["-"] * 4
        rows.append([comparison.title, *_heads(comparison), *cells, str(len(pairs))])
    if not rows:
        return
    yield from ("", "### Controls and a second method", "")
    head = ["question", "arm A", "arm B", "A, %", "B, %", "B - A", "95% over seeds", "pairs"]
    yield from _table(head, rows)


def _selection(plan: Plan, records: Sequence[Record]) -> Iterable[str]:
    """Which candidates became final sets, before anything was trained with AugSelf."""
    kept = candidates(plan.selection, records) if plan.selection else {}
    if not kept:
        return
    rows = [
        [
            place.rpartition("/")[2],
            str(found.images),
            f"{found.untrained:.1f}",
            f"{found.baseline:.1f}",
            f"{found.baseline - found.untrained:+.1f}",
            "yes" if found.chosen else "no",
        ]
        for place, found in kept.items()
    ]
    yield from ("", "### Final sets, chosen by a baseline run", "")
    head = ["linear probe, %", "test images", "untrained", "baseline", "difference", "final"]
    yield from _table(head, rows)


def _references(plan: Plan, records: Sequence[Record]) -> Iterable[str]:
    selecting = plan.selection.phase if plan.selection else None
    found = [r for r in records if r["kind"] not in TRAINED and r["phase"] != selecting]
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
    for phase in (p for p in plan.phases if p.rates and p.tunes):
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


def _runs(plan: Plan, records: Sequence[Record], shown: bool) -> Iterable[str]:
    """Every run, good or bad, and its command; of pairs what they have only if it is shown."""
    paired = {side[0] for c in plan.comparisons for side in (c.without, c.with_)}
    yield ""
    rows = []
    for record in records:
        role = DEVELOPMENT if accuracies(record, DEVELOPMENT) else FINAL
        value = "diverged" if "diverged" in record else f"{mean_accuracy(record, role):.2f}"
        value = value if shown or record["phase"] not in paired else "-"
        minutes = sum(record["cpu_seconds"].values()) / 60
        rows.append([record["name"], f"{value} ({role})", f"{minutes:.1f}"])
    yield from _table(["run", "mean linear probe, %", "CPU minutes"], rows)
    yield from ("", "```")
    for record in records:
        if record["command"]:
            note = "  # with ShuffledTargets" if record["kind"] == "shuffled" else ""
            yield f"{record['command']}{note}"
    yield "```\n"


def _chart(
    plan: Plan, pairs: Pairs, names: Sequence[str], folder: Path, results: Path
) -> Iterable[str]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [("mean", pairs.on_all(FINAL))]
    rows += [(name, pairs.on_named(FINAL, name)) for name in reversed(names)]
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, (_, d) in enumerate(rows):
        low, high = d.interval or (d.difference, d.difference)
        axes.plot([low, high], [height, height], color="tab:blue" if height else "black")
        axes.plot(d.difference, height, "o", color="tab:blue" if height else "black")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows])
    axes.set_xlabel(f"linear probe with AugSelf minus without, points; 95% over {len(pairs)} seeds")
    with rc_context({"svg.hashsalt": plan.title}):  # the same file from the same records
        figure.savefig(folder / CHART, metadata={"Date": None})
    return "", f"![Differences of the linear probe by set]({_from(results, folder / CHART)})"


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


def _replace(results: Path, title: str, section: str) -> None:
    """Between the marks of this study."""
    mark = title.lower().removeprefix("the ")
    begin, end = BEGIN.format(mark), END.format(mark)
    section = f"{begin}\n{section}{end}\n"
    text = results.read_text() if results.is_file() else "# Results\n\n"
    marked = re.compile(re.escape(begin) + ".*" + re.escape(end) + "\n", re.DOTALL)
    if marked.search(text):
        text = marked.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    results.write_text(text)
