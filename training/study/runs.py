"""One run of a study: make what is compared, measure it, write its record."""

from __future__ import annotations

import json
import pkgutil
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from augself_hub.cli import EXTRACT
from augself_hub.errors import Diverged
from augself_hub.folder import EVALUATION, versions
from augself_hub.modeling.objective import AugSelfLoss
from training.awareness import TASK
from training.checkpoints import newest_valid
from training.corpora.building import HELD_OUT, MANIFEST, PRETRAIN
from training.pretraining import MODEL, pretrain
from training.settings import Settings, command_line
from training.study.plan import GRAY_HISTOGRAM, HISTOGRAM, LINEAR, SHUFFLED, TRAINED, Arm, Plan, Run
from training.study.references import Histograms, untrained
from training.study.shuffled import ShuffledTargets
from training.transfer.cache import Model, Tables
from training.transfer.evaluate import Plan as Evaluation
from training.transfer.evaluate import evaluate
from training.transfer.results import Result, write_json
from training.transfer.tasks import Settings as TaskSettings

FEATURES = "features"
Record = dict[str, Any]


def carry_out(plan: Plan, run: Run, output: Path, corpus: Path, records: Path) -> None:
    """Make a run and write records/NAME.json; what an earlier start has left is gone on with.

    A run that diverged has a record too. None is written where SIGTERM stopped the run.
    """
    torch.set_num_threads(1)
    arm, settings = plan.arms[run.arm], settings_of(plan, run, output, corpus)
    record = _described(run, arm, settings, corpus)
    started = time.process_time()
    try:
        tables = _tables(arm, settings)
        if tables is None:
            return
        trained = time.process_time()
        record["results"] = _measured(plan, run, tables, corpus)
        record["held_out_pairs"] = _held_out_pairs(settings.output / MODEL)
    except Diverged as error:
        trained = time.process_time()
        record["diverged"] = str(error)
    seconds = {"making": trained - started, "measuring": time.process_time() - trained}
    record["cpu_seconds"] = {name: round(value) for name, value in seconds.items()}
    records.mkdir(parents=True, exist_ok=True)
    write_json(records / f"{run.name}.json", record)


def settings_of(plan: Plan, run: Run, output: Path, corpus: Path) -> Settings:
    """What `augself pretrain` is given for a run."""
    rate = {} if run.rate is None else {"base_lr": run.rate}
    return Settings(
        data=str(corpus / PRETRAIN),
        output=output / run.name,
        held_out=str(corpus / HELD_OUT),
        seed=run.seed,
        **{**plan.settings, **plan.arms[run.arm].settings, **rate},
    )


def _tables(arm: Arm, settings: Settings) -> Tables | None:
    """The features of what is compared; None where SIGTERM stopped its making."""
    if arm.kind in (HISTOGRAM, GRAY_HISTOGRAM):
        return Histograms(settings.size, gray=arm.kind == GRAY_HISTOGRAM)
    model = settings.output / MODEL
    if not model.is_dir():
        _make(arm, settings)
    if not model.is_dir():
        return None
    extract = pkgutil.resolve_name(EXTRACT)  # training may not import serving
    return Tables(Model.resolve(str(model)), settings.output / FEATURES, extract, "cpu")


def _make(arm: Arm, settings: Settings) -> None:
    if arm.kind not in TRAINED:
        untrained(settings, settings.output / MODEL)
        return
    resume = newest_valid(settings.output) is not None
    if not resume:
        shutil.rmtree(settings.output, ignore_errors=True)
    pretrain(settings, resume, ShuffledTargets if arm.kind == SHUFFLED else AugSelfLoss)


def _measured(plan: Plan, run: Run, tables: Tables, corpus: Path) -> list[Record]:
    found = []
    for measure in plan.measures[plan.phase(run.phase).measures]:
        places = {path.name: path for path in measure.places(corpus)}
        names = [f"folder:{path}" for path in places.values()]
        settings = TaskSettings(queries=measure.queries)
        evaluation = Evaluation(measure.tasks, names, None, settings)
        for result in evaluate(tables, evaluation, evaluation.open()):
            found.append(_short(result, places[result.dataset].relative_to(corpus).as_posix()))
    return found


def _described(run: Run, arm: Arm, settings: Settings, corpus: Path) -> Record:
    manifest = json.loads((corpus / MANIFEST).read_text())
    return {
        "name": run.name,
        "phase": run.phase,
        "arm": run.arm,
        "kind": arm.kind,
        "seed": run.seed,
        "rate": run.rate,
        "command": command_line(settings) if arm.kind in TRAINED else None,
        "corpus": manifest["sha256"],
        "versions": versions(),
    }


def _short(result: Result, place: str) -> Record:
    """What the report needs; `correct` has a digit for each test image of a linear probe."""
    record = {"task": result.task, "set": place}
    record |= {name: getattr(result, name) for name in ("metric", "value", "trivial")}
    kept = ("kind", "dimension", "shots", "strength", "invariance")
    record |= {name: result.details[name] for name in kept if name in result.details}
    if result.task == LINEAR:
        record["correct"] = "".join(str(int(score > 0)) for score in result.scores)
    return record


def _held_out_pairs(model: Path) -> list[Record]:
    """R^2 and accuracies of the run's own heads on held-out photographs."""
    if not (model / EVALUATION).is_file():
        return []
    results = json.loads((model / EVALUATION).read_text())["results"]
    fields = ("kind", "dimension", "metric", "value", "trivial")
    return [{f: r[f] for f in fields} for r in results if r["task"] == TASK]
