"""What a run is worth: predicted against true differences on held-out pairs, and its curves.

Every figure stands beside the trivial predictor's: zero for a regression head (R^2 0), the more
frequent answer for flip, one in four for rotation.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Head, Spec
from augself_hub.errors import AugSelfError
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.views import finish_views
from training.data import ViewsDataset, collate
from training.methods.layers import processes, reduced

log = logging.getLogger(__name__)
PAIRS = 2000
VISIBLE = 0.1  # a log brightness ratio beyond which its sign should be right

WORSE = 2.0
COLLAPSED = 0.05
WINDOW = 20

Result = dict[str, Any]


class Alarm:
    """Stops a run that has nothing to gain any more.

    It judges after every epoch, by the mean over the epoch's last half but never over fewer than
    WINDOW batches, so a run of fewer batches is not judged:

    - A regression head of convention `relative` costs 1 where it predicts zero and 2 where it
      predicts the difference of two other views: the right spread, no knowledge. Above 2 it has
      diverged and the run stops. Between 1 and 2 it has not learned yet, which is said once and no
      more: a healthy run (SimCLR, 64 px, batch 128, 40 epochs) had crop at 1.04 to 1.14 for its
      first five epochs and at 0.87 in the end.
    - Features all alike, by `feature_spread`, are a collapsed encoder. Newly initialised encoders
      have 0.66 to 0.93, the demonstration model has 0.72; below 0.05 the run stops.
    """

    def __init__(self, spec: Spec) -> None:
        regressions = {kind for kind, head in spec.heads.items() if head.type == "regression"}
        self.heads = regressions if spec.convention == "relative" else set()
        self._rows: list[dict[str, Tensor]] = []
        self._new = 0
        self._warned: set[str] = set()

    def note(self, parts: dict[str, Tensor]) -> None:
        """The parts of one batch's loss and its feature spread, detached; nothing is computed."""
        self._rows.append(parts)
        self._new += 1

    def judge(self) -> None:
        """To be called at the end of an epoch, by every process.

        Raises:
            AugSelfError: a head diverged or the encoder collapsed.
        """
        window = max(WINDOW, self._new // 2)
        if len(self._rows) >= window:
            self._judge(self._rows[-window:])
        self._rows, self._new = self._rows[-WINDOW:], 0

    def _judge(self, rows: list[dict[str, Tensor]]) -> None:
        for kind in sorted(self.heads):
            self._judge_head(kind, _mean(rows, kind))
        spread = _mean(rows, "spread")
        if spread < COLLAPSED:
            raise AugSelfError(
                f"the encoder collapsed: its features are nearly all the same (spread {spread:.3f} "
                f"below {COLLAPSED}); lower --base-lr or use another method"
            )

    def _judge_head(self, kind: str, value: float) -> None:
        if value > WORSE:
            raise AugSelfError(
                f"the {kind} head diverged: its error is {value:.3g} where predicting zero has 1; "
                f"lower --base-lr or the weight of {kind} in --augself"
            )
        if value > 1 and kind not in self._warned:
            self._warned.add(kind)
            log.warning(
                "the %s head has learned nothing yet: error %.3f, predicting zero has 1",
                kind,
                value,
            )


def _mean(rows: list[dict[str, Tensor]], name: str) -> float:
    """Over the rows of all processes."""
    return float(reduced(torch.stack([row[name] for row in rows]).mean())) / processes()


def feature_spread(y: Tensor) -> Tensor:
    """Mean standard deviation per dimension of (N, D) L2-normalised features, times sqrt(D).

    1 where they point in all directions alike, 0 where they are all the same.
    """
    return F.normalize(y.float(), dim=1).std(dim=0).mean() * y.shape[1] ** 0.5


@torch.no_grad()
def held_out_pairs(model: AugSelfModel, images: ViewsDataset, pairs: int = PAIRS) -> list[Result]:
    """Awareness of a model on images it was not trained on.

    Args:
        model: in evaluation mode, on the CPU.
        images: held-out images; each is used for several pairs, keyed by epoch.
        pairs: how many pairs in all.

    Returns:
        One record per dimension: task, kind, name, value (R^2 or accuracy), trivial, rmse (in the
        unit of the dimension), pairs. Empty where nothing was held out.
    """
    if len(images) == 0:
        return []
    predicted, wa, wb = _predict(model, images, pairs)
    results: list[Result] = []
    for kind, head in model.spec.heads.items():
        target, mask = targets(kind, wa, wb, model.spec.policy, model.spec.convention)
        results += _scores(kind, head, predicted[kind].double(), target.double(), mask)
    return results


def _predict(
    model: AugSelfModel, images: ViewsDataset, pairs: int
) -> tuple[dict[str, Tensor], Parameters, Parameters]:
    keys = [(i // len(images), i % len(images)) for i in range(pairs)]
    predicted, wa, wb = [], [], []
    for start in range(0, pairs, 100):
        batch = collate([images[key] for key in keys[start : start + 100]])
        both = {name: torch.cat([batch["w1"][name], batch["w2"][name]]) for name in batch["w1"]}
        mean, std = model.preprocessing.mean, model.preprocessing.std
        views = finish_views(batch["crops"], both, images.policy, mean, std)
        predicted.append(model.predict_difference(*views.chunk(2)))
        wa.append(batch["w1"])
        wb.append(batch["w2"])
    return _joined(predicted), _joined(wa), _joined(wb)


def _joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _scores(kind: str, head: Head, value: Tensor, target: Tensor, mask: Tensor) -> list[Result]:
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
        "task": "held-out pairs",
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


def curves(history: list[dict[str, Any]], path: Path) -> None:
    """curves.png: each part of the loss over the steps.

    Raises:
        AugSelfError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise AugSelfError("matplotlib is missing: pip install 'augself-hub[train]'") from error
    rows = [row for row in history if "loss" in row]
    names = [n for n in ("loss", "method", *_kinds(rows)) if any(n in row for row in rows)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = np.array([(row["step"], row[name]) for row in rows if name in row])
        axes.plot(points[:, 0], points[:, 1], label=name)
    axes.set(xlabel="step", ylabel="loss", title="Training losses")
    axes.legend()
    figure.savefig(path, dpi=110)


def _kinds(rows: list[dict[str, Any]]) -> list[str]:
    known = {"loss", "method", "grad_norm", "learning_rate", "epoch", "step"}
    return sorted({name for row in rows for name in row} - known)
