"""Awareness on held-out pairs: predicted against true differences of views never trained on.

Every figure stands beside the trivial predictor's: zero for a regression head (R^2 0), the most
frequent answer for flip and rotation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Head, Spec
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.views import finish_views
from training.data.batches import ViewsDataset, collate

TASK = "held-out pairs"
PAIRS = 2000
VISIBLE = 0.1  # a log brightness ratio beyond which its sign should be right

Result = dict[str, Any]


@torch.no_grad()
def held_out_pairs(model: AugSelfModel, images: ViewsDataset, pairs: int = PAIRS) -> list[Result]:
    """Awareness of a model on images it was not trained on.

    Args:
        model: in evaluation mode.
        images: held-out images; each is used for several pairs, keyed by epoch.
        pairs: how many pairs in all.

    Returns:
        One record per dimension: task, kind, name, value (R^2 or accuracy), trivial, rmse (in the
        unit of the dimension), pairs; none for a dimension that no pair shows. Empty where nothing
        was held out.
    """
    if not len(images) or not pairs or not model.spec.heads:
        return []
    predicted, wa, wb = _predict(model, images, pairs)
    results: list[Result] = []
    for kind, head in model.spec.heads.items():
        target, mask = targets(kind, wa, wb, model.spec.policy, model.spec.convention)
        results += scores(kind, head, predicted[kind].double(), target.double(), mask)
    return results


def _predict(
    model: AugSelfModel, images: ViewsDataset, pairs: int
) -> tuple[dict[str, Tensor], Parameters, Parameters]:
    keys = [(i // len(images), i % len(images)) for i in range(pairs)]
    predicted, wa, wb = [], [], []
    device = next(model.parameters()).device
    mean, std = model.preprocessing.mean, model.preprocessing.std
    for start in range(0, pairs, 100):
        batch = collate([images[key] for key in keys[start : start + 100]])
        both = {n: torch.cat([batch["w1"][n], batch["w2"][n]]).to(device) for n in batch["w1"]}
        views = finish_views(batch["crops"].to(device), both, images.policy, mean, std)
        differences = model.predict_difference(*views.chunk(2))
        predicted.append({kind: value.cpu() for kind, value in differences.items()})
        wa.append(batch["w1"])
        wb.append(batch["w2"])
    return _joined(predicted), _joined(wa), _joined(wb)


def _joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def scores(kind: str, head: Head, value: Tensor, target: Tensor, mask: Tensor) -> list[Result]:
    """A record for each dimension: (N, outputs) predictions against (N, n) targets and mask."""
    if head.type == "regression":
        return _regression_scores(kind, head, value, target, mask)
    answer = value.argmax(dim=1) if head.type == "classes" else (value[:, 0] > 0.5)
    frequent = max(float((target[:, 0] == c).double().mean()) for c in target.unique())
    accuracy = float((answer == target[:, 0]).double().mean())
    name = head.dimensions[0].name
    return [_result(kind, name, f"{kind} {name} accuracy", accuracy, frequent, len(target))]


def _regression_scores(
    kind: str, head: Head, value: Tensor, target: Tensor, mask: Tensor
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
        results.append({**result, "rmse": error**0.5})
        visible = t.abs() > VISIBLE
        if (dimension.name, dimension.unit) == ("brightness", "log ratio") and visible.any():
            results.append(_sign(kind, t[visible], v[visible]))
    return results


def _sign(kind: str, t: Tensor, v: Tensor) -> Result:
    """How often the sign is right, of differences that can be seen at all."""
    right = float((t.sign() == v.sign()).double().mean())
    label = f"{kind} brightness sign right beyond {VISIBLE} log ratio"
    return _result(kind, "brightness_sign", label, right, 0.5, len(t))


def _result(kind: str, dimension: str, name: str, value: float, trivial: float, n: int) -> Result:
    return {
        "task": TASK,
        "kind": kind,
        "dimension": dimension,
        "name": name,
        "metric": "r_squared" if name.endswith("R^2") else "accuracy",
        "value": value,
        "trivial": trivial,
        "pairs": n,
    }


def with_standard_errors(spec: Spec, results: list[Result]) -> Spec:
    """The spec with each regression dimension's measured root mean square error."""
    rmse = {(r["kind"], r["dimension"]): r["rmse"] for r in results if "rmse" in r}

    def measured(kind: str, head: Head) -> Head:
        dimensions = tuple(
            dataclasses.replace(d, standard_error=rmse.get((kind, d.name))) for d in head.dimensions
        )
        return dataclasses.replace(head, dimensions=dimensions)

    return dataclasses.replace(spec, heads={k: measured(k, h) for k, h in spec.heads.items()})
