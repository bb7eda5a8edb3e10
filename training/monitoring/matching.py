"""The matcher on held-out pairs: what it says of crop, flip and rotation against what was done.

As `awareness` for the heads on features, on the same pairs; beside R^2 and accuracy stands how many
true values lie within the stated 95% intervals, and how pairs of two pictures are told from pairs
of one.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.matching import logit, matcher_prediction
from augself_hub.augmentations.spec import MatchCalibration, Spec
from augself_hub.modeling.model import AugSelfModel
from training.data.batches import ViewsDataset
from training.monitoring.awareness import (
    FEWEST,
    PAIRS,
    Result,
    calibrate,
    coverage,
    drawn_views,
    joined,
    measured,
    scores,
)

TASK = "held-out pairs, matcher"
_SHIFTS = (37, 41)  # pairs apart: views of neighbours in a list may be of one scene


@torch.no_grad()
def matched_pairs(model: AugSelfModel, images: ViewsDataset, pairs: int = PAIRS) -> list[Result]:
    """What a model's matcher says of images it was not fitted on.

    Args:
        model: in evaluation mode.
        images: held-out images; each is used for several pairs, keyed by epoch.
        pairs: how many pairs in all.

    Returns:
        Records as `held_out_pairs` gives them; empty where nothing was held out, or there is no
        matcher.
    """
    if model.matcher is None or model.spec.matcher is None or not len(images) or not pairs:
        return []
    answers, strangers, wa, wb = [], [], [], []
    shift = _SHIFTS[0] if len(images) % _SHIFTS[0] else _SHIFTS[1]
    for views, w1, w2 in drawn_views(model, images, pairs):
        a, b = model.features_and_maps(views)[1].chunk(2)
        answers.append(_said(model, a, b))
        strangers.append(_said(model, a, b.roll(shift, 0))["match"])
        wa.append(w1)
        wb.append(w2)
    answer = {name: torch.cat([one[name] for one in answers]) for name in answers[0]}
    sides = joined(wa), joined(wb)
    image = torch.arange(pairs) % len(images)
    results: list[Result] = []
    for kind, head in model.spec.matcher.heads.items():
        target, mask = targets(kind, *sides, model.spec.policy, model.spec.convention)
        results += scores(kind, head, answer[kind].double(), target.double(), mask, image)
        if kind == "crop":
            off = answer[kind] - target
            results += coverage(kind, head, off, answer["standard_error"], mask)
    if len(images) >= FEWEST:
        other = torch.cat([part.roll(shift) for part in image.split(len(answers[0]["match"]))])
        two = torch.cat(strangers)[other != image]
        results.append(_match_result(answer["match"], two))
    return [{**result, "task": TASK} for result in results]


def _said(model: AugSelfModel, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Of maps (N, C, S, S), both orders; match as a logit, (N,)."""
    assert model.matcher is not None and model.spec.matcher is not None
    found = matcher_prediction(
        model.spec.matcher, vars(model.matcher(a, b)), vars(model.matcher(b, a))
    )
    return {**{n: v.cpu() for n, v in found.items()}, "match": logit(found["match"])[:, 0].cpu()}


def _match_result(same: Tensor, two: Tensor) -> Result:
    calibration = calibrate(same.numpy(), two.numpy())
    return {
        "kind": "match",
        "dimension": "match",
        "name": "pairs of one picture or of two, AUC",
        "metric": "auc",
        "value": calibration.auc,
        "baseline": 0.5,
        "pairs": len(same),
        "calibration": dataclasses.asdict(calibration),
    }


def with_matched(spec: Spec, results: list[Result]) -> Spec:
    """The spec with what was measured of its matcher, if it has one."""
    if spec.matcher is None:
        return spec
    own = [r for r in results if r["task"] == TASK]
    heads = {kind: measured(kind, head, own) for kind, head in spec.matcher.heads.items()}
    found = (MatchCalibration(**r["calibration"]) for r in own if "calibration" in r)
    matcher = dataclasses.replace(spec.matcher, heads=heads, match=next(found, None))
    return dataclasses.replace(spec, matcher=matcher)
