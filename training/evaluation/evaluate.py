"""One evaluation: the tasks asked for, on the data sets asked for, of one model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images import AS_FOUND, Options
from training.evaluation.awareness import awareness
from training.evaluation.cache import Tables
from training.evaluation.datasets import DATASETS, check_name, metric_of, open_dataset
from training.evaluation.finetune import finetune
from training.evaluation.listing import LabelledImages
from training.evaluation.results import Result
from training.evaluation.tasks import TASKS, Subject, TaskSettings, unsuited
from training.run.settings import source_name

log = logging.getLogger(__name__)
FEW_SHOT = ("ways", "shots", "queries")
ALL_TASKS = (*TASKS, "awareness", "finetune")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        tasks: of ALL_TASKS. datasets: as `open_dataset` takes them.
        data: where the paper's data sets are. download: those that are not there.
        options: how sources are read.

    Raises:
        UsageError: an unknown task or data set; two data sets that results would call the same.
    """

    tasks: Sequence[str]
    datasets: Sequence[str]
    data: Path | None
    settings: TaskSettings
    download: bool = False
    options: Options = AS_FOUND

    def __post_init__(self) -> None:
        if unknown := [task for task in self.tasks if task not in ALL_TASKS]:
            raise UsageError(f"unknown task {unknown[0]!r}: use {', '.join(ALL_TASKS)}")
        called: dict[str, str] = {}
        for name in self.datasets:
            check_name(name)
            if (other := called.setdefault(short_name(name), name)) != name:
                raise UsageError(
                    f"{other} and {name} are both called {short_name(name)} in results: rename "
                    "one, or evaluate them apart and into an --output each"
                )

    def refuse_idle(self) -> None:
        """
        Raises:
            UsageError: an option that none of the tasks or data sets asks for.
        """
        settings, usual = self.settings, TaskSettings()
        sources = [name for name in self.datasets if name not in DATASETS]
        reading = {
            "--column": self.options.columns != AS_FOUND.columns,
            "--split": self.options.split is not None,
            "--read-as": self.options.kind is not None,
        }
        few = {f"--{n}": getattr(settings, n) != getattr(usual, n) for n in FEW_SHOT}
        named = {"--data": self.data is not None, "--download": self.download}
        idle = [
            (few, "fewshot" in self.tasks, "fewshot is not among the tasks"),
            (
                {"--epochs": settings.epochs != usual.epochs},
                "finetune" in self.tasks,
                "finetune is not among the tasks",
            ),
            (named, len(sources) < len(self.datasets), "all data sets are sources of their own"),
            (reading, bool(sources), "the layout of these data sets is known"),
        ]
        for options, asked_for, why in idle:
            for option, given in options.items():
                if given and not asked_for:
                    raise UsageError(f"{option} would have no effect: {why}")

    def open(self) -> dict[str, LabelledImages]:
        """The data sets by their names.

        Raises:
            UsageError: no data set can answer one of the tasks.
            AugSelfError: one is not there.
        """
        opened = {
            name: open_dataset(name, self.data, self.download, self.options)
            for name in self.datasets
        }
        for task in self.tasks:
            reasons = {name: unsuited(task, images) for name, images in opened.items()}
            if all(reasons.values()):
                why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                raise UsageError(f"no data set can answer {task} ({why})")
        return opened


class Unmeasured(AugSelfError):
    """Tasks that could not be measured, by name; `results` are those of all others."""

    def __init__(self, results: list[Result], refused: list[str]) -> None:
        super().__init__("; ".join(refused))
        self.results = results


def evaluate(tables: Tables, plan: Plan, datasets: dict[str, LabelledImages]) -> list[Result]:
    """Every result of one model.

    Args:
        datasets: what `plan.open` gave.

    Raises:
        Unmeasured: a task refused a data set or failed on it, or one cannot be extracted; it has
            the results of all others.
    """
    found: list[Result] = []
    refused: list[str] = []

    def refuse(what: str, error: Exception) -> None:
        foreseen = isinstance(error, AugSelfError | OSError)
        reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
        log.error("%s: %s", what, reason, exc_info=None if foreseen else error)
        refused.append(f"{what}: {reason}")

    for source, images in datasets.items():
        name = short_name(source)
        try:
            subject = Subject(name, images, tables.of(images), metric_of(source))
        except Exception as error:  # an image of it cannot be read; whatever else it may be
            refuse(name, error)
            continue
        for task in plan.tasks:
            if reason := unsuited(task, images):
                log.info("%s is left out of %s: %s", name, task, reason)
                continue
            log.info("%s: %s on %s", tables.model.title, task, name)
            try:
                if task == "awareness":
                    found += awareness(subject, tables, plan.settings)
                elif task == "finetune":
                    found += finetune(subject, tables.model, plan.settings, tables.device)
                else:
                    found += TASKS[task](subject, plan.settings)
            except Exception as error:  # hours of other results are not lost by it
                refuse(f"{task} on {name}", error)
    if refused:
        raise Unmeasured(found, refused)
    return found


def short_name(name: str) -> str:
    """How a data set is called in results: without the folders above it.

    A folder that has the name of one of DATASETS is none of them: folder:pets.
    """
    if name in DATASETS:
        return name
    short = source_name(name.removeprefix("folder:"))
    return f"folder:{short}" if short in DATASETS else short
