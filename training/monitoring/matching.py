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
from training.data.drawing import drawn_keys, kin, strangers
from training.monitoring.awareness import (
    FEWEST,
    PAIRS,
    Result,
    calibrate,
    coverage,
    drawn_views,
    joined,
    measured,
    origins,
    scores,
)

TASK = "held-out pairs, matcher"


@torch.no_grad()
def matched_pairs(model: AugSelfModel, images: ViewsDataset, pairs: int = PAIRS) -> list[Result]:
    """What a model's matcher says of images it was not fitted on.

    Args:
        model: in evaluation mode.
        images: held-out images, in an order that their seed draws; each is used for several pairs,
            keyed by epoch.
        pairs: how many pairs in all.

    Returns:
        Records as `held_out_pairs` gives them; empty where nothing was held out, or there is no
        matcher.
    """
    if model.matcher is None or model.spec.matcher is None or not len(images) or not pairs:
        return []
    keys = drawn_keys(len(images), pairs, images.seed)
    image = torch.tensor([index for _, index in keys])
    kin_of_pairs = torch.from_numpy(kin(images.images))[image]
    random = torch.Generator().manual_seed(images.seed)
    answers, of_two, wa, wb, seen = [], [], [], [], 0
    for views, w1, w2 in drawn_views(model, images, keys):
        a, b = model.features_and_maps(views)[1].chunk(2)
        answers.append(_said(model, a, b))
        # Maps are too large to be kept: strangers are of the same few, whose order is drawn.
        first, second = strangers(kin_of_pairs[seen : seen + len(a)], random)
        if len(first):  # of few images all pairs may be of one
            of_two.append(_said(model, a[first], b[second])["match"])
        wa.append(w1)
        wb.append(w2)
        seen += len(a)
    answer = {name: torch.cat([one[name] for one in answers]) for name in answers[0]}
    sides = joined(wa), joined(wb)
    origin = origins(images)[image]
    results: list[Result] = []
    for kind, head in model.spec.matcher.heads.items():
        target, mask = targets(kind, *sides, model.spec.policy, model.spec.convention)
        results += scores(kind, head, answer[kind].double(), target.double(), mask, origin)
        if kind == "crop":
            off = answer[kind] - target
            results += coverage(kind, head, off, answer["standard_error"], mask)
    if len(images) >= FEWEST and of_two:
        results.append(_match_result(answer["match"], torch.cat(of_two)))
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
