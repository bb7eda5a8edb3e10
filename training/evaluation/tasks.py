"""The tasks on frozen features: a feature table -> results.

Protocols: AugSelf (arXiv:2111.09613), section 4 and its appendix on transfer evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from augself_hub.errors import UsageError
from augself_hub.features import FeatureTable
from training.evaluation.examples import Examples, majority_class
from training.evaluation.fewshot import few_shot
from training.evaluation.knn import knn
from training.evaluation.layouts import boxes_in_view
from training.evaluation.linear import linear_probe
from training.evaluation.listing import TEST, TRAIN, VALIDATION, LabelledImages
from training.evaluation.localization import localize
from training.evaluation.results import Result
from training.evaluation.retrieval import retrieve

METRIC_NAMES = {"top-1": "accuracy", "mean per class": "mean_per_class_accuracy"}


@dataclass(frozen=True)
class TaskSettings:
    """What may be chosen.

    Args:
        seed: of few-shot tasks, of views and of finetuning; splits have their own.
        ways, shots, queries: of few-shot tasks. episodes: how many tasks.
        epochs: of finetuning.

    Raises:
        UsageError: one that is no whole number in its range.
    """

    seed: int = 0
    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 16
    episodes: int = 2000
    epochs: int = 30

    def __post_init__(self) -> None:
        least = {"seed": 0, "ways": 2, "queries": 1, "episodes": 2, "epochs": 1}
        values = [(name, getattr(self, name)) for name in least]
        for name, value in [*values, *(("shots", one) for one in self.shots)]:
            lowest, most = least.get(name, 1), 2**32 - 1 if name == "seed" else 2**31 - 1
            if type(value) is not int or not lowest <= value <= most:
                raise UsageError(f"--{name} {value!r}: give a whole number from {lowest} to {most}")
        if not self.shots:
            raise UsageError("--shots is empty: give at least one number")


@dataclass(frozen=True)
class Subject:
    """One data set as one model sees it.

    Args:
        name: of the data set, as it was asked for.
        images: where boxes come from. table: one row an image, in the same order.
        metric: how classification is counted.
    """

    name: str
    images: LabelledImages
    table: FeatureTable
    metric: str

    def examples(self, *splits: str) -> Examples:
        """Labelled features of the images in these splits."""
        rows = self.images.rows(*splits)
        names = tuple(self.table.label_names)
        title = f"{self.name}, {' and '.join(splits)}"
        return Examples(self.table.features[rows], self.table.labels[rows], title, names)


def linear(subject: Subject, settings: TaskSettings) -> list[Result]:
    train, validation, test = (subject.examples(s) for s in (TRAIN, VALIDATION, TEST))
    probe = linear_probe(train, validation, test, subject.metric)
    protocol = (
        "Multinomial logistic regression on raw frozen features: cross-entropy summed + "
        "w |theta|^2 with the bias, w of 45 in 1e-6 ... 1e5 chosen on validation, refit on "
        "training and validation, tested once."
    )
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    details = {"strength": float(probe.penalty), "images": counts}  # strength: of the penalty
    return [_classified("linear probe", subject, test, probe.accuracy, protocol, details, probe)]


def nearest(subject: Subject, settings: TaskSettings) -> list[Result]:
    train, test = subject.examples(TRAIN, VALIDATION), subject.examples(TEST)
    found = knn(train, test, metric=subject.metric)
    protocol = "20 nearest training images by cosine, votes weighted by exp(cosine / 0.07)."
    details = {"images": {"train": len(train), "test": len(test)}}
    return [_classified("kNN", subject, test, found.accuracy, protocol, details, found)]


def _classified(
    task: str,
    subject: Subject,
    test: Examples,
    accuracy: float,
    protocol: str,
    details: dict[str, Any],
    found: object,
) -> Result:
    """A classifier's accuracy on the test images beside always saying the commonest class."""
    per_class = subject.metric == "mean per class"
    return Result(
        task=task,
        dataset=subject.name,
        name=f"{subject.name}, {subject.metric}",
        metric=METRIC_NAMES[subject.metric],
        value=accuracy,
        baseline=majority_class(test.labels, subject.metric),
        protocol=protocol,
        details=details,
        scores=100.0 * found.correct,  # type: ignore[attr-defined]
        groups=test.labels if per_class else None,
    )


def fewshot(subject: Subject, settings: TaskSettings) -> list[Result]:
    examples, ways = subject.examples(TRAIN, VALIDATION, TEST), settings.ways
    protocol = (
        f"{settings.queries} queries a class, {settings.episodes} tasks drawn from all images of "
        "the set, one-against-rest logistic regression (C = 1) on raw frozen features; mean and "
        "95% interval over tasks."
    )
    results = []
    for shots in settings.shots:
        drawn = (ways, shots, settings.queries, settings.episodes, settings.seed)
        found = few_shot(examples, *drawn)
        result = Result(
            task="few-shot",
            dataset=subject.name,
            name=f"{subject.name}, {ways}-way {shots}-shot",
            metric="accuracy",
            value=found.mean,
            margin_of_error=found.margin_of_error,
            baseline=100 / ways,
            protocol=protocol,
            details={"images": {"all": len(examples)}, "ways": ways, "shots": shots},
            scores=found.accuracies,
        )
        results.append(result)
    return results


def localization(subject: Subject, settings: TaskSettings) -> list[Result]:
    boxes = boxes_in_view(subject.images)
    train, test = (subject.images.rows(*s) for s in ((TRAIN, VALIDATION), (TEST,)))
    features = subject.table.features
    found = localize(features[train], boxes[train], features[test], boxes[test])
    return [
        Result(
            task="localization",
            dataset=subject.name,
            name=f"{subject.name}, l2 error of the box",
            metric="l2_error",
            unit="sides of the square seen",
            value=found.error,
            baseline=found.baseline_error,
            protocol="Linear regression from raw frozen features to the box (centre y, x, height, "
            "width); the baseline is the training images' mean box. Lower is better.",
            details={"squared_error": found.squared_error, "images": {"test": len(test)}},
            scores=found.errors,
            lower_is_better=True,
        )
    ]


def retrieval(subject: Subject, settings: TaskSettings) -> list[Result]:
    test = subject.examples(TEST)
    found = retrieve(test)
    depths = [f"precision at {k} {value:.1f}" for k, value in found.precision.items()]
    return [
        Result(
            task="retrieval",
            dataset=subject.name,
            name=f"{subject.name}, mean average precision",
            metric="mean_average_precision",
            value=found.mean_average_precision,
            baseline=found.baseline,
            protocol="Every test image asks for its class among the other test images, by cosine.",
            details={"depths": ", ".join(depths), "images": {"test": len(test)}},
            scores=found.average_precision,
        )
    ]


TASKS: dict[str, Callable[[Subject, TaskSettings], list[Result]]] = {
    "linear": linear,
    "fewshot": fewshot,
    "knn": nearest,
    "localization": localization,
    "retrieval": retrieval,
}


def unsuited(task: str, images: LabelledImages) -> str | None:
    """Why a data set cannot answer a task; None: it can."""
    if task == "localization" and images.boxes is None:
        return "it has no boxes"
    if task not in ("fewshot", "retrieval") and not len(images.rows(TRAIN)):
        return "it has no training images"
    return None
