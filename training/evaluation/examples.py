"""Labelled features, what is refused of them, and the metrics of classification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from augself_hub.errors import AugSelfError, UsageError


@dataclass(frozen=True)
class Examples:
    """The features and labels of one split.

    Args:
        features: (N, D) numbers; kept as float32.
        labels: (N,) class numbers from 0; kept as int64.
        name: of the split, for errors: "train", "validation", "test".
        label_names: the classes' names by number, for errors; may be empty.

    Raises:
        AugSelfError: no example, a label for some but not for others, features that are not finite.
        UsageError: the shapes do not belong together.
    """

    features: np.ndarray
    labels: np.ndarray
    name: str = "examples"
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", np.asarray(self.features, dtype=np.float32))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise UsageError(
                f"{self.name}: features {self.features.shape} and labels {self.labels.shape} were "
                "given, (N, D) and (N,) are needed"
            )
        if len(self) == 0:
            raise AugSelfError(f"{self.name}: there is no image in this split")
        if missing := int((self.labels < 0).sum()):
            raise AugSelfError(
                f"{self.name}: {missing} of {len(self)} images have no label; give a split in "
                "which every image has one"
            )
        refuse_not_finite(self.features, f"{self.name} features")

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Any) -> Examples:
        """The examples of these rows: indices, a slice or a mask."""
        return Examples(self.features[rows], self.labels[rows], self.name, self.label_names)

    def class_name(self, label: int) -> str:
        """For errors: 'cat' where names are known, else 3."""
        return repr(self.label_names[label]) if self.label_names else str(label)

    @classmethod
    def concatenate(cls, first: Examples, second: Examples, name: str) -> Examples:
        """The rows of two splits, e.g. of train and validation for the refit."""
        features = np.concatenate([first.features, second.features])
        labels = np.concatenate([first.labels, second.labels])
        return cls(features, labels, name, first.label_names)


def refuse_not_finite(values: np.ndarray, name: str) -> None:
    """NaN would spread silently through every solver.

    Raises:
        AugSelfError: some value is NaN or infinite; names the first row.
    """
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise AugSelfError(
            f"{name}: {len(broken)} of {len(values)} rows hold NaN or infinity, the first is row "
            f"{broken[0]}; extract them again"
        )


def classes_of(train: Examples, *others: Examples) -> np.ndarray:
    """The sorted (C,) class numbers of a training split.

    Raises:
        AugSelfError: it has one class only, or another split has a class it lacks.
        UsageError: the widths of the features differ.
    """
    classes = np.unique(train.labels)
    if len(classes) == 1:
        raise AugSelfError(
            f"{train.name}: every image is of class {train.class_name(classes[0])}; at least two "
            "classes are needed"
        )
    for other in others:
        width, theirs = train.features.shape[1], other.features.shape[1]
        if theirs != width:
            raise UsageError(
                f"features of width {width} ({train.name}) and {theirs} ({other.name}) are of "
                "different models: extract both with one model"
            )
        if len(unknown := np.setdiff1d(other.labels, classes)):
            raise AugSelfError(
                f"{other.name}: class {other.class_name(unknown[0])} has no image in "
                f"{train.name}; split the data so that every class is in it"
            )
    return classes


def top_1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Percent of the (N,) images whose class was predicted."""
    return 100 * float((predicted == labels).mean())


def mean_per_class(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Percent predicted right of each class, averaged over the classes `labels` has."""
    _, number = np.unique(labels, return_inverse=True)
    right = np.bincount(number, weights=predicted == labels)
    return 100 * float((right / np.bincount(number)).mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top-1": top_1,
    "mean per class": mean_per_class,
}


def majority_class(labels: np.ndarray, metric: str) -> float:
    """What a metric, of `METRICS`, gives who always says the commonest class; percent."""
    classes, counts = np.unique(labels, return_counts=True)
    return METRICS[metric](labels, np.full_like(labels, classes[counts.argmax()]))
