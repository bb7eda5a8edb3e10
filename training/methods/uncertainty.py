"""Fits the errors of each pair on frozen heads (see `augself_hub.modeling.uncertainty`).

Features of several views of every picture are kept, and in every pass paired anew. With r how far
what both orders say together is off, and e the standard error that is stated of it,

    L = 1/2 (r / e)^2 + log e

is the negative log likelihood of a Gaussian (Nix and Weigend, 1994), for each pair and dimension.
Only the network learns: what the heads predict stays as it is. By pictures that were not learned
from the stated errors are made to cover what they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from augself_hub.augmentations.difference import (
    both_orders,
    standard_errors,
    targets,
    to_physical,
)
from augself_hub.augmentations.spec import LOG_VARIANCE, Spec
from augself_hub.modeling.model import AugSelfHeads, AugSelfModel
from augself_hub.modeling.uncertainty import Uncertainty
from augself_hub.progress import counted
from training.data.batches import ViewsDataset
from training.data.drawing import drawn_keys
from training.methods.calibration import covering
from training.methods.matcher import KEPT_OUT
from training.methods.pairs import EncodedViews, encoded

WIDTH = 256  # of the network
PAIRS = 6000  # half as many views as are drawn in all
EACH, MOST_EACH = 4, 20  # pairs of a picture, where there are enough pictures; and at most
PASSES = 12  # how often each view is used, every time in another pair
BATCH = 256  # pairs of a step
RATE, DECAY = 2e-3, 0.02  # of AdamW; the largest rate of a one-cycle schedule
CALIBRATED = 2000  # pairs, of fewer pictures at most MOST_EACH of each


def fit_uncertainty(
    model: AugSelfModel,
    images: ViewsDataset,
    calibrated_on: ViewsDataset | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
) -> AugSelfModel:
    """The same model, its heads with an error for each pair.

    Args:
        model: with a regression among its heads, on the device that is to be used.
        images: what views are drawn from; its policy is the spec's.
        calibrated_on: images that neither encoder nor heads learned from; None: every twentieth of
            `images`, which the network does not learn from, where there are so many.
        pairs: half as many views as are drawn in all.
        seed: of initialisation and order; the views are keyed by the data set's own.
    """
    spec = dataclasses.replace(model.spec, uncertainty=WIDTH)
    modes = {part: part.training for part in (model.encoder, model.heads)}
    for part in modes:
        part.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = AugSelfHeads(spec).to(model.encoder.device)
        heads.update({kind: model.heads[kind] for kind in spec.heads})
        spared = range(0)
        if calibrated_on is None and len(images) >= KEPT_OUT:
            calibrated_on, spared = images, range(0, len(images), KEPT_OUT)
        _train(heads, model, images, pairs, spared)
        if calibrated_on is not None:
            pictures = spared or range(len(calibrated_on))
            drawn = drawn_keys(len(pictures), min(CALIBRATED, MOST_EACH * len(pictures)), seed)
            keys = [(epoch, pictures[i]) for epoch, i in drawn]
            calibrate(heads, _features(model, calibrated_on, keys), spec)
    for part, mode in modes.items():
        part.train(mode)
    return AugSelfModel(model.encoder, heads, spec, model.preprocessing, model.matcher)


def _train(
    heads: AugSelfHeads,
    model: AugSelfModel,
    images: ViewsDataset,
    pairs: int,
    spared: Sequence[int],
) -> None:
    """spared: pictures the network must not learn from."""
    spec = model.spec
    # In any order but theirs: the first pictures of a folder may all be of one class.
    others = [i for i in torch.randperm(len(images)).tolist() if i not in spared]
    pictures = others[: max(2, pairs // EACH)]
    each = min(max(1, pairs // len(pictures)), MOST_EACH)
    views = _features(model, images, [(e, index) for index in pictures for e in range(each)])
    batches = max(1, len(views) // 2 // BATCH)
    network = heads[LOG_VARIANCE]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, PASSES * batches)
    network.train()
    every = (p for _ in range(PASSES) for p in views.paired()[: batches * BATCH].split(BATCH))
    used = PASSES * min(len(views) // 2, batches * BATCH)
    for rows in counted(every, used, "learning errors of each pair", "pair"):
        off, ab, ba = _off(heads, views, rows, spec)
        error = torch.cat([*standard_errors(spec.heads, ab, ba).values()], 1)
        seen = ~off.isnan()
        loss = 0.5 * (off.nan_to_num() / error).square() + error.log()
        optimizer.zero_grad()
        loss[seen].mean().backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _features(
    model: AugSelfModel, images: ViewsDataset, keys: Sequence[tuple[int, int]]
) -> EncodedViews:
    return encoded(model.encoder, images, model.spec, model.preprocessing, None, keys)


@torch.no_grad()
def calibrate(heads: AugSelfHeads, views: EncodedViews, spec: Spec) -> None:
    """Turn the stated errors into ones that hold for these pictures, by `covering`."""
    network = heads[LOG_VARIANCE]
    assert isinstance(network, Uncertainty)
    network.eval()
    network.slope.fill_(1)
    network.shift.zero_()
    parts = [_off(heads, views, rows, spec) for rows in views.paired().split(BATCH)]
    off, ab, ba = (torch.cat(part) for part in zip(*parts, strict=True))
    logs = off.abs().clamp(min=1e-6).log()

    def rest(slope: Tensor, shift: Tensor) -> Tensor:
        stated = standard_errors(spec.heads, ab * slope + shift, ba * slope + shift)
        return logs - (1.96 * torch.cat([*stated.values()], 1)).log()

    slope, shift = covering(rest, network.slope)
    network.slope.copy_(slope)
    network.shift.copy_(shift)


def _off(
    heads: AugSelfHeads, views: EncodedViews, rows: Tensor, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the heads are off (N, n), in physical units, NaN where a pair does not show it; and
    the log variances that are stated of both orders.
    """
    device = next(heads.parameters()).device
    pairs = views.at(rows, device)
    said, back = heads(pairs.a, pairs.b), heads(pairs.b, pairs.a)
    found = []
    for kind, head in spec.heads.items():
        if head.type == "regression":
            value = both_orders(head, *(to_physical(head, one[kind]) for one in (said, back)))
            target, seen = targets(kind, pairs.wa, pairs.wb, spec.policy, spec.convention)
            found.append(torch.where(seen, value.detach() - target.to(value), torch.nan))
    return torch.cat(found, 1), said[LOG_VARIANCE], back[LOG_VARIANCE]
