"""Awareness and invariance: what frozen features still say of augmentations, and what they ignore.

- Probes on held-out images: the parameters of one view from its features, the difference of two
  views from both features, by linear models fitted on views of other images.
- The AugSelf heads' own predictions on the same held-out pairs.
- Invariance: the cosine of an image with its augmented view, against other images' views.

Every model sees the same views, drawn with the paper's ranges and not with its own; solarization
and rotation, which the paper's default leaves out, have pairs of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from augself_hub.augmentations.difference import shows_gray, targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import HEADS, Policy
from training.evaluation.cache import Model, Tables
from training.evaluation.invariance import invariance
from training.evaluation.listing import TEST, TRAIN, VALIDATION, keyed_share
from training.evaluation.probes import Views, class_probe, regression_probe
from training.evaluation.results import Result
from training.evaluation.tasks import Subject, TaskSettings
from training.evaluation.views import CHANGES, changed, pairs

log = logging.getLogger(__name__)
FITTED, HELD_OUT, COMPARED = 1000, 500, 300  # images: of the probes, of invariance
# What pairs are drawn with beside the paper's default -> the kinds that are measured on them.
_DRAWN: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("crop", "color", "flip", "blur"),
    ("sol",): ("sol",),
    ("rot",): ("rot",),
}
# Tasks, as results name them.
_TWO_VIEWS, _ONE_VIEW, _OWN_HEADS = "awareness, two views", "awareness, one view", "AugSelf heads"
_PROTOCOLS = {
    _TWO_VIEWS: "Linear probes from the raw features of both views of held-out images to their "
    "difference; R^2 against the training views' mean, accuracy beside the commonest class.",
    _ONE_VIEW: "Linear probes from the raw features of one view of held-out images to its "
    "parameters; R^2 against the training views' mean, accuracy beside the commonest class.",
    _OWN_HEADS: "The model's own heads on the same held-out pairs; R^2 is against predicting no "
    "difference.",
    "invariance": "Mean cosine of the features of an image and of its changed self, beside the "
    "mean cosine with other changed images.",
}


def awareness(subject: Subject, tables: Tables, settings: TaskSettings) -> list[Result]:
    """All of the above for one data set.

    Raises:
        AugSelfError: an image cannot be read, too few images, features that are not finite.
    """
    found: list[Result] = []
    for extra, kinds in _DRAWN.items():
        policy = Policy(size=tables.model.preprocessing.size).with_kinds(extra)
        train, test = (
            _PairFeatures(subject, tables, some, policy, settings.seed, "color" in kinds)
            for some in (
                _at_most(subject, subject.images.rows(TRAIN, VALIDATION), FITTED),
                _held_out(subject, HELD_OUT),
            )
        )
        found += _probes(subject, kinds, train, test)
        found += _own_heads(subject, tables.model, kinds, test)
    order = list(_PROTOCOLS)
    found.sort(key=lambda result: order.index(result.task))
    rows = _held_out(subject, COMPARED)
    return found + [
        _invariance_to(subject, tables, rows, kind, strength)
        for kind, strengths in CHANGES.items()
        for strength in strengths
    ]


def _held_out(subject: Subject, count: int) -> np.ndarray:
    return _at_most(subject, subject.images.rows(TEST), count)


def _at_most(subject: Subject, rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many of these rows, chosen by name and from each class as many as its share."""
    if len(rows) <= count:
        return rows
    images = subject.images
    ids, classes = ([names[i] for i in rows] for names in (images.ids, images.classes))
    chosen: np.ndarray = rows[keyed_share(ids, classes, count)]
    return chosen


class _PairFeatures:
    """Pairs of views of some images, and their features.

    Attributes:
        pairs: their parameters. ya, yb: (N, D) features. rows: (N,) the images.
    """

    def __init__(
        self,
        subject: Subject,
        tables: Tables,
        rows: np.ndarray,
        policy: Policy,
        seed: int,
        colors: bool,
    ) -> None:
        self.rows = rows
        self.pairs = pairs(subject.images, rows, policy, seed, colors)
        features = tables.of(self.pairs.images).features
        self.ya, self.yb = features[::2], features[1::2]

    def two(self, kind: str, name: str) -> Views:
        """What both features should say of the difference."""
        drawn = self.pairs
        target, mask = targets(kind, drawn.a, drawn.b, drawn.policy, "relative")
        return Views(np.hstack([self.ya, self.yb]), target, mask, self.rows, name)

    def one(self, kind: str, name: str) -> Views:
        """What the first view's features should say of its parameters."""
        target, mask = absolute(kind, self.pairs.a)
        return Views(self.ya, target, mask, self.rows, name)


def absolute(kind: str, w: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """One view's parameters (N, n) in the order of the head's dimensions, and what it shows.

    Positions are the crop's centre in the source as displayed (mirrored where the view is), sizes
    and colour factors are logarithms, classes are class numbers.
    """
    if kind == "crop":
        top, left, height, width = w["crop"].T
        x = left + width / 2
        x = np.where(w["flip"], 1 - x, x)
        target = np.stack([top + height / 2, x, np.log(height), np.log(width)], axis=1)
    elif kind == "color":
        target = np.hstack([np.log(w["color"][:, :3]), w["color"][:, 3:]])
    else:
        target = np.asarray(1 - w["sol"] if kind == "sol" else w[kind], np.float64)[:, None]
    mask = np.ones(target.shape, bool)
    if kind == "color":
        mask[:, 2:] = ~shows_gray(w)[:, None]
    return target, mask


def _probes(
    subject: Subject, kinds: Sequence[str], train: _PairFeatures, test: _PairFeatures
) -> list[Result]:
    found: list[Result] = []
    for kind in kinds:
        head = HEADS["relative"][kind]
        for task, views in ((_TWO_VIEWS, _PairFeatures.two), (_ONE_VIEW, _PairFeatures.one)):
            parts = views(train, kind, "training views"), views(test, kind, "held-out views")
            if head.type == "regression":
                for d, one in zip(head.dimensions, regression_probe(*parts), strict=True):
                    name = f"{kind} {d.name}"
                    if one is None:
                        log.info("%s, %s: %s cannot be seen in its views", subject.name, task, name)
                        continue
                    found.append(_result(subject, task, kind, name, one.r_squared, 0.0, one.views))
            else:
                probe = class_probe(*parts)
                values = (probe.accuracy, probe.baseline, probe.views, "accuracy")
                name = f"{kind} {head.dimensions[0].name}"
                found.append(_result(subject, task, kind, name, *values))
    return found


def _own_heads(
    subject: Subject, model: Model, kinds: Sequence[str], drawn: _PairFeatures
) -> list[Result]:
    """The heads' R^2 and accuracies on the held-out pairs, in the model's own convention."""
    wanted = [kind for kind in kinds if kind in model.spec.heads]
    if not wanted:
        return []
    import torch

    from augself_hub.modeling.model import AugSelfModel
    from training.monitoring.awareness import scores

    heads = AugSelfModel.from_pretrained(model.folder)
    with torch.no_grad():
        predicted = heads.differences(*(torch.from_numpy(y.copy()) for y in (drawn.ya, drawn.yb)))
    results: list[Result] = []
    for kind in wanted:
        target, mask = targets(
            kind, drawn.pairs.a, drawn.pairs.b, model.spec.policy, model.spec.convention
        )
        truth = (torch.from_numpy(np.asarray(target, np.float64)), torch.from_numpy(mask))
        for one in scores(kind, model.spec.heads[kind], predicted[kind].double(), *truth):
            scale = 1 if one["metric"] == "r_squared" else 100
            name, metric = one["name"].removesuffix(" R^2").removesuffix(" accuracy"), one["metric"]
            values = (name, scale * one["value"], scale * one["baseline"], one["pairs"])
            results.append(_result(subject, _OWN_HEADS, kind, *values, metric=metric))
    return results


def _result(
    subject: Subject,
    task: str,
    kind: str,
    name: str,
    value: float,
    baseline: float,
    views: int,
    metric: str = "r_squared",
) -> Result:
    sign = "R^2" if metric == "r_squared" else "accuracy"
    return Result(
        task=task,
        dataset=subject.name,
        name=f"{subject.name}, {name}, {sign}",
        metric=metric,
        unit="R^2" if metric == "r_squared" else "%",
        value=value,
        baseline=baseline,
        protocol=_PROTOCOLS[task],
        details={"kind": kind, "dimension": name, "views": views},
    )


def _invariance_to(
    subject: Subject, tables: Tables, rows: np.ndarray, kind: str, strength: float
) -> Result:
    """How similar features stay under one augmentation at one strength."""
    views = changed(subject.images, rows, kind, strength, tables.model.preprocessing.size)
    one = invariance(subject.table.features[rows], tables.of(views).features)
    details = {"kind": kind, "strength": strength, "invariance": one.invariance}
    return Result(
        task="invariance",
        dataset=subject.name,
        name=f"{subject.name}, {kind} {strength:g}",
        metric="cosine",
        unit="cosine",
        value=one.alignment,
        baseline=one.baseline,
        protocol=_PROTOCOLS["invariance"],
        details={**details, "images": {"test": len(rows)}},
        scores=one.cosines,
    )
