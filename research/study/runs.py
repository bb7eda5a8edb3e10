"""One run of a study: make what is compared, measure it, write its record."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from augself_hub.atomic import write_json
from augself_hub.errors import Diverged
from augself_hub.folder import versions
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.results import read_evaluation
from research.corpora.building import HELD_OUT, MANIFEST, PRETRAIN
from research.study.measuring import measured, tables_of
from research.study.plan import GRAY_HISTOGRAM, HISTOGRAM, LINEAR, SHUFFLED, TRAINED, Arm, Plan, Run
from research.study.records import candidates, read_all
from research.study.references import Histograms, untrained
from research.study.shuffled import ShuffledTargets
from training.evaluation.cache import Tables
from training.evaluation.results import Result
from training.monitoring.awareness import TASK
from training.monitoring.matching import TASK as MATCHER_TASK
from training.recipes import recipe
from training.run.checkpoints import newest_valid, spent_until
from training.run.pretraining import MODEL, pretrain
from training.run.settings import Settings, command_line

FEATURES = "features"
Record = dict[str, Any]


def carry_out(plan: Plan, run: Run, output: Path, corpus: Path, records: Path) -> None:
    """Make a run and write records/NAME.json; what an earlier start has left is gone on with.

    A run that diverged has a record too. None is written where SIGTERM stopped the run.
    """
    if plan.threads:
        torch.set_num_threads(plan.threads)
    arm, settings = plan.arms[run.arm], settings_of(plan, run, output, corpus)
    earlier = spent_until(newest_valid(settings.output)).cpu_seconds  # of starts that were stopped
    started = time.process_time()
    record: Record = {}
    try:
        tables = _tables(arm, settings, plan.device)
        if tables is None:
            return
        trained = time.process_time()
        measures = plan.measures[plan.phase(run.phase).measures]
        found = measured(tables, measures, corpus, _chosen(plan, records))
        record["results"] = [_short(result, place) for place, result in found]
        record["held_out_pairs"] = _held_out_pairs(settings.output / MODEL)
        if settings.matcher != "off":
            record["matcher_pairs"] = _held_out_pairs(settings.output / MODEL, MATCHER_TASK)
    except Diverged as error:
        trained = time.process_time()
        record["diverged"] = str(error)
    record = _described(run, arm, settings, corpus) | record
    seconds = {"making": earlier + trained - started, "measuring": time.process_time() - trained}
    record["cpu_seconds"] = {name: round(value) for name, value in seconds.items()}
    records.mkdir(parents=True, exist_ok=True)
    write_json(records / f"{run.name}.json", record)


def _chosen(plan: Plan, records: Path) -> list[str]:
    """The places of the sets that the plan's selection has kept."""
    if plan.selection is None:
        return []
    found = candidates(plan.selection, read_all(records))
    return [place for place, candidate in found.items() if candidate.chosen]


def settings_of(plan: Plan, run: Run, output: Path, corpus: Path) -> Settings:
    """What `augself pretrain` is given for a run."""
    given = {"data": f"{{corpus}}/{PRETRAIN}", "held_out": f"{{corpus}}/{HELD_OUT}"}
    given["matcher"] = "off"  # which nothing here is asked of
    if "recipe" in (asked := {**plan.settings, **plan.arms[run.arm].settings}):
        given |= {**recipe(asked.pop("recipe")).settings, "held_out": None}
    given |= asked
    for name in ("data", "held_out"):
        given[name] = given[name] and given[name].format(corpus=corpus)
    rate = {} if run.rate is None else {"base_lr": run.rate}
    return Settings(output=output / run.folder, seed=run.seed, **{**given, **rate})


def _tables(arm: Arm, settings: Settings, device: str) -> Tables | None:
    """The features of what is compared; None where SIGTERM stopped its making."""
    if arm.kind in (HISTOGRAM, GRAY_HISTOGRAM):
        return Histograms(settings.size, gray=arm.kind == GRAY_HISTOGRAM)
    model = settings.output / MODEL
    if not model.is_dir():
        _make(arm, settings)
    if not model.is_dir():
        return None
    return tables_of(model, settings.output / FEATURES, device)


def _make(arm: Arm, settings: Settings) -> None:
    if arm.kind not in TRAINED:
        untrained(settings, settings.output / MODEL)
        return
    resume = newest_valid(settings.output) is not None
    if not resume:
        shutil.rmtree(settings.output, ignore_errors=True)
    pretrain(settings, resume, ShuffledTargets if arm.kind == SHUFFLED else AugSelfLoss)


def _described(run: Run, arm: Arm, settings: Settings, corpus: Path) -> Record:
    manifest = corpus / MANIFEST  # the paper's data sets have none
    return {
        "name": run.name,
        "phase": run.phase,
        "arm": run.arm,
        "kind": arm.kind,
        "seed": run.seed,
        "rate": run.rate,
        "command": command_line(settings) if arm.kind in TRAINED else None,
        "corpus": json.loads(manifest.read_text())["sha256"] if manifest.is_file() else None,
        "versions": versions(),
        "commit": _said_by("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "processor": _said_by("sh", "-c", "lscpu | sed -n 's/^Model name: *//p'"),
    }


def _said_by(*command: str) -> str | None:
    """One line of a program's output; None where it has nothing to say, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _short(result: Result, place: str) -> Record:
    """What the report needs; `correct` has a digit for each test image of a linear probe."""
    record = {"task": result.task, "set": place}
    record |= {"metric": result.metric, "value": result.value, "trivial": result.baseline}
    kept = ("kind", "dimension", "shots", "strength", "invariance")
    record |= {name: result.details[name] for name in kept if name in result.details}
    if result.task == LINEAR:
        record["correct"] = "".join(str(int(score > 0)) for score in result.scores)
    return record


def _held_out_pairs(model: Path, task: str = TASK) -> list[Record]:
    """R^2 and accuracies of the run's own heads, or its matcher's, on held-out photographs."""
    results = read_evaluation(model)["results"]
    fields = ("kind", "dimension", "metric", "value")
    return [
        {f: r[f] for f in fields} | {"trivial": r["baseline"]} for r in results if r["task"] == task
    ]
