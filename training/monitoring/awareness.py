"""Awareness on held-out pairs: predicted against true differences of views never trained on.

Every figure stands beside a baseline: zero for a regression head (R^2 0), the most frequent answer
for flip and rotation. A dimension whose skill, the share of the baseline's error that it removes,
is not surely above LEAST_SKILL counts as not learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augself_hub.augmentations.difference import shows_gray, targets
from augself_hub.augmentations.matching import prediction_of
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Head, Match, MatchCalibration, Spec
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.views import finish_views
from augself_hub.progress import counted
from training.data.batches import ViewsDataset, collate
from training.data.drawing import drawn_keys, halves, kin, strangers

TASK = "held-out pairs"
PAIRS = 2000
VISIBLE = 0.1  # a log brightness ratio beyond which its sign should be right
LEAST_SKILL = 0.05  # R^2 of 0.05 is an error 2.5% below guessing's: nobody is helped by less
FEWEST = 20  # images without which nothing is said about noise
RESAMPLES = 1000
FALSE_ALARM_RATE = 0.05  # share of the pairs of one picture that may be taken for two

Result = dict[str, Any]


@torch.no_grad()
def held_out_pairs(model: AugSelfModel, images: ViewsDataset, pairs: int = PAIRS) -> list[Result]:
    """Awareness of a model on images it was not trained on.

    Args:
        model: in evaluation mode.
        images: held-out images, in an order that their seed draws; each is used for several pairs,
            keyed by epoch.
        pairs: how many pairs in all.

    Returns:
        One record per dimension: task, kind, name, value (R^2 or accuracy), baseline, rmse (in the
        unit of the dimension), pairs and, of FEWEST images or more, confidence_interval (of value)
        and learned; none for a dimension that no pair shows. Where errors of each pair are stated,
        what they cover (`coverage`) of the second of `halves`. Last, of FEWEST images or more, how
        pairs of two pictures are told from pairs of one. Empty where nothing was held out.
    """
    if not len(images) or not pairs or not model.spec.heads:
        return []
    parts, sides_a, sides_b = [], [], []
    keys = drawn_keys(len(images), pairs, images.seed)
    for views, a, b in drawn_views(model, images, keys):
        parts.append(model(views).features.chunk(2))
        sides_a.append(a)
        sides_b.append(b)
    y = [torch.cat(side) for side in zip(*parts, strict=True)]  # of both views, (N, D) each
    wa, wb = joined(sides_a), joined(sides_b)
    (ya, yb), heads = y, model.heads
    said = prediction_of(model.spec, (heads(ya, yb), heads(yb, ya)))
    image = torch.tensor([index for _, index in keys])
    origin = origins(images)[image]
    fresh = torch.isin(image, torch.tensor(halves(images.images)[1]))[:, None]
    results: list[Result] = []
    for kind, head in model.spec.heads.items():
        target, mask = targets(kind, wa, wb, model.spec.policy, model.spec.convention)
        value, target = said.values[kind].cpu().double(), target.double()
        results += scores(kind, head, value, target, mask, origin)
        if kind in said.errors:
            error = said.errors[kind].cpu().double()
            results += coverage(kind, head, value - target, error, mask & fresh)
    if len(images) >= FEWEST:
        gray = shows_gray(wa), shows_gray(wb)
        random = torch.Generator().manual_seed(images.seed)
        two = strangers(torch.from_numpy(kin(images.images))[image], random)
        results += _match(ya.double().cpu(), yb.double().cpu(), gray, two)
    return results


def origins(images: ViewsDataset) -> Tensor:
    """(N,) numbers, equal for images that are known to be of one origin."""
    groups = images.images.groups
    return torch.arange(len(images)) if groups is None else torch.tensor(groups)


def drawn_views(
    model: AugSelfModel, images: ViewsDataset, keys: Sequence[tuple[int, int]], most: int = 100
) -> Iterator[tuple[Tensor, Parameters, Parameters]]:
    """Views (2n, 3, S, S) of both sides and their parameters, at most so many pairs at a time.

    Args:
        keys: (epoch, index) of each pair.
    """
    device = next(model.parameters()).device
    mean, std = model.preprocessing.mean, model.preprocessing.std
    parts = (keys[start : start + most] for start in range(0, len(keys), most))
    for part in counted(parts, len(keys), "looking at held-out views", "pair"):
        batch = collate(images.__getitems__(part))
        both = {n: torch.cat([batch["w1"][n], batch["w2"][n]]).to(device) for n in batch["w1"]}
        views = finish_views(batch["crops"].to(device), both, images.policy, mean, std)
        yield views, batch["w1"], batch["w2"]


def joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def scores(
    kind: str,
    head: Head,
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    image: Tensor | None = None,
) -> list[Result]:
    """A record for each dimension: (N, outputs) predictions against (N, n) targets and mask.

    Args:
        image: (N,) which image, or group of images, each pair is of; None: each of its own.
    """
    image = torch.arange(len(target)) if image is None else image
    if head.type == "regression":
        return _regression_scores(kind, head, value, target, mask, image)
    answer = value.argmax(dim=1) if head.type == "classes" else (value[:, 0] > 0.5)
    right = (answer == target[:, 0]).double()
    is_class = torch.stack([(target[:, 0] == c).double() for c in target.unique()], dim=1)
    frequent = float(is_class.mean(dim=0).max())
    name = head.dimensions[0].name
    label, accuracy = f"{kind} {name} accuracy", float(right.mean())
    result = _result(kind, name, label, accuracy, frequent, len(target))
    drawn = _resampled(torch.cat([right[:, None], is_class], dim=1), image)
    if drawn is None:
        return [result]
    of_others = drawn[:, 1:].max(dim=1).values
    skill = (drawn[:, 0] - of_others) / (1 - of_others).clamp(min=1e-12)
    return [{**result, **_interval(drawn[:, 0], skill)}]


def coverage(kind: str, head: Head, off: Tensor, error: Tensor, mask: Tensor) -> list[Result]:
    """A record for each dimension: how many true values lie in the stated 95% interval.

    Args:
        off: (N, n) predicted minus true values. error: (N, n) standard errors, of each pair.
        mask: (N, n) what the pairs show.
    """
    within = off.abs() < 1.96 * error
    return [
        {
            "task": TASK,
            "kind": kind,
            "dimension": f"{dimension.name}_coverage",
            "name": f"{kind} {dimension.name}: true values within the 95% interval of their pair",
            "metric": "coverage",
            "value": float(within[seen, column].double().mean()),
            "baseline": None,
            "pairs": int(seen.sum()),
        }
        for column, (dimension, seen) in enumerate(zip(head.dimensions, mask.T, strict=True))
        if seen.any()
    ]


def _regression_scores(
    kind: str, head: Head, value: Tensor, target: Tensor, mask: Tensor, image: Tensor
) -> list[Result]:
    results = []
    for column, dimension in enumerate(head.dimensions):
        seen = mask[:, column]
        if not seen.any():
            continue
        t, v = target[seen, column], value[seen, column]
        error = float(((v - t) ** 2).mean())
        r2 = 1 - error / max(float((t**2).mean()), 1e-12)
        label = f"{kind} {dimension.name} R^2"
        result = _result(kind, dimension.name, label, r2, 0.0, int(seen.sum()))
        drawn = _resampled(torch.stack([(v - t) ** 2, t**2], dim=1), image[seen])
        if drawn is not None:
            skill = 1 - drawn[:, 0] / drawn[:, 1].clamp(min=1e-12)
            result |= _interval(skill, skill)
        results.append({**result, "rmse": error**0.5})
        visible = t.abs() > VISIBLE
        if (dimension.name, dimension.unit) == ("brightness", "log ratio") and visible.any():
            right = float((t[visible].sign() == v[visible].sign()).double().mean())
            label = f"{kind} brightness sign right beyond {VISIBLE} log ratio"
            number = int(visible.sum())
            results.append(_result(kind, "brightness_sign", label, right, 0.5, number))
    return results


def _resampled(rows: Tensor, image: Tensor) -> Tensor | None:
    """Means (RESAMPLES, n) of rows (N, n) over the bootstrap's images; None of too few images.

    Whole images are drawn, since pairs of one image share what makes it easy or hard.
    """
    names, place = image.unique(return_inverse=True)
    if len(names) < FEWEST:
        return None
    sums = rows.new_zeros(len(names), rows.shape[1]).index_add(0, place, rows)
    counts = torch.bincount(place, minlength=len(names)).to(rows)
    draws = torch.randint(
        len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(0)
    )
    drawn = [(sums[d].sum(dim=0) / counts[d].sum()) for d in draws]
    return torch.stack(drawn)


def _interval(values: Tensor, skill: Tensor) -> dict[str, Any]:
    """What 95% of the resampled values lie within; whether the skill is surely worth something."""
    bounds = torch.tensor([0.025, 0.975], dtype=values.dtype)
    low, high = values.quantile(bounds).tolist()
    return {
        "confidence_interval": [low, high],
        "learned": float(skill.quantile(0.025)) > LEAST_SKILL,
    }


def _match(
    ya: Tensor, yb: Tensor, gray: tuple[Tensor, Tensor], strangers: tuple[Tensor, Tensor]
) -> list[Result]:
    """How the cosine of the features tells pairs of one picture from pairs of two.

    Args:
        strangers: rows of views a and of views b (`drawing.strangers`).
    """
    first, second = strangers
    same = torch.cosine_similarity(ya, yb, dim=1)
    two = torch.cosine_similarity(ya[first], yb[second], dim=1)
    unlike_same, unlike_two = gray[0] ^ gray[1], gray[0][first] ^ gray[1][second]
    found = []
    for name, one_gray in (("alike", False), ("one_gray", True)):
        a = same[unlike_same == one_gray].numpy()
        b = two[unlike_two == one_gray].numpy()
        if min(len(a), len(b)) >= FEWEST:
            fitted = calibrate(a, b)
            label = f"pairs of one picture or of two, {name.replace('_', ' ')}, AUC"
            record = _result("match", name, label, fitted.auc, 0.5, len(a))
            found.append({**record, "metric": "auc", "calibration": dataclasses.asdict(fitted)})
    return found


def calibrate(same: np.ndarray, two: np.ndarray) -> MatchCalibration:
    """From the cosines (or a matcher's logits) of pairs of one picture and of pairs of two.

    By logistic regression, where either is as likely beforehand.
    """
    from sklearn.linear_model import LogisticRegression

    given = np.concatenate([same, two])[:, None]
    truth = np.repeat([1, 0], [len(same), len(two)])
    fit = LogisticRegression(C=1e3, class_weight="balanced").fit(given, truth)
    slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    p_same, p_two = (1 / (1 + np.exp(-(slope * c + intercept))) for c in (same, two))
    threshold = float(np.quantile(p_same, FALSE_ALARM_RATE))
    return MatchCalibration(
        slope=slope,
        intercept=intercept,
        threshold=threshold,
        auc=float((same[:, None] > two).mean() + (same[:, None] == two).mean() / 2),
        false_alarm_rate=float((p_same < threshold).mean()),
        detection_rate=float((p_two < threshold).mean()),
        pairs=len(same),
    )


def _result(kind: str, dimension: str, name: str, value: float, baseline: float, n: int) -> Result:
    return {
        "task": TASK,
        "kind": kind,
        "dimension": dimension,
        "name": name,
        "metric": "r_squared" if name.endswith("R^2") else "accuracy",
        "value": value,
        "baseline": baseline,
        "pairs": n,
    }


def with_results(spec: Spec, results: list[Result]) -> Spec:
    """The spec with what was measured of each dimension, its mark, and how strangers are told."""
    own = [r for r in results if r["task"] == TASK]
    calibrations = {
        r["dimension"]: MatchCalibration(**r["calibration"]) for r in own if "calibration" in r
    }
    heads = {kind: measured(kind, head, own) for kind, head in spec.heads.items()}
    match = Match(**calibrations) if calibrations else None
    return dataclasses.replace(spec, heads=heads, match=match)


def measured(kind: str, head: Head, results: list[Result]) -> Head:
    """A head with what these results say of each of its dimensions.

    What no pair shows, as hue where all held-out pictures are gray, counts as not learned.
    """
    found = {(r["kind"], r["dimension"]): r for r in results}
    told = any("learned" in r for (k, _), r in found.items() if k == kind)
    dimensions = []
    for dimension in head.dimensions:
        record = found.get((kind, dimension.name), {})
        interval = record.get("confidence_interval")
        dimensions.append(
            dataclasses.replace(
                dimension,
                standard_error=record.get("rmse"),
                learned=record.get("learned") if record or not told else False,
                score=record.get("value"),
                confidence_interval=None if interval is None else tuple(interval),
                baseline=record.get("baseline"),
            )
        )
    return dataclasses.replace(head, dimensions=tuple(dimensions))
