"""Fits a matcher on a frozen encoder (see `augself_hub.modeling.matcher` for what it is).

Several views of every picture are drawn as the encoder's own heads had them, encoded once, and kept
as maps in half precision. In every pass over them the views of a picture are paired anew:

    L = 4 * beta-NLL(crop) + BCE(flip) [+ CE(rot)] + BCE(match)

in both orders. Views of two pictures, and blank pictures, are what does not match: for these only
the last term counts. The encoder never sees a gradient, so its features transfer as before. Some
pictures are not trained on: by them the stated errors are made to cover what they say.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.matching import combined
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.modeling.maps import MapPlace, features_and_map, find_map
from augself_hub.modeling.matcher import Match, Matcher, MatcherShape, gaussian_loss
from augself_hub.preprocess import Preprocessing
from augself_hub.progress import SAY_EVERY, counted
from training.data.batches import ViewsDataset
from training.data.drawing import drawn_keys
from training.methods.calibration import covering
from training.methods.pairs import EncodedViews, Pairs, affordable, encoded

log = logging.getLogger(__name__)
BLANKS = 16  # pictures of one colour
CLIP = 5.0  # largest norm of a gradient
KEPT_OUT = 20  # one picture of so many says how far errors reach; of fewer none is spared


@dataclass(frozen=True)
class MatcherSettings:
    """How a matcher is fitted.

    Args:
        pairs: half as many views as are drawn in all.
        views: of one picture at a time, where there are enough pictures; an even number.
        passes: how often each view is used, every time in another pair.
        batch: pairs of a step, each in both orders.
        rate: largest learning rate of a one-cycle schedule (AdamW).
        decay: weight decay.
        memory: bytes of maps that are kept at once.
        spared: pairs of pictures not trained on, which say how far errors reach; fewer where their
            maps would take more than `memory`.
        bf16: take products in bfloat16; only where the processor has instructions for it.
        go_on: start from the matcher the model has, with the maps it takes; its errors are
            calibrated anew. A third of the rate does for one that has learned.
    """

    pairs: int = 36_000
    views: int = 8
    passes: int = 5
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.02
    memory: int = 1 << 30
    spared: int = 2000
    bf16: bool = False
    go_on: bool = False


def fit_matcher(
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    settings: MatcherSettings | None = None,
    seed: int = 0,
    there: Matcher | None = None,
) -> tuple[Matcher, MapPlace]:
    """A matcher for an encoder, which is left as it is.

    Args:
        network: a stock encoder, on the device that is to be used.
        images: what views are drawn from; its policy is the spec's.
        spec: of convention `relative`, with a crop head, whose unit and deviations are taken.
        seed: of initialisation and order; the views are keyed by the data set's own.
        there: the one that `spec` describes, if the model has one; it is left as it is.

    Returns:
        The matcher, in evaluation mode, and where its maps are taken.

    Raises:
        UsageError: the encoder gives no maps, or there is no matcher to go on from.
        AugSelfError: the convention is `paper`, or there is nothing to match.
    """
    settings = settings or MatcherSettings()
    if spec.convention != "relative" or "crop" not in spec.heads:
        raise AugSelfError("a matcher needs convention relative and a crop head: --matcher off")
    start: tuple[MapPlace, Matcher] | None = None
    if settings.go_on:
        if there is None or spec.matcher is None:
            raise UsageError("matcher option go_on=True: the model has no matcher to go on from")
        start = MapPlace.of(spec.matcher), copy.deepcopy(there)
    if len(images) < 2:
        raise AugSelfError("a matcher needs two pictures or more: --matcher off")
    was_training = network.training
    network.eval()  # its batch statistics stay what they are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is None:
            place = find_map(network, preprocessing.size)
            start = place, matcher_for(place, spec)
        place, matcher = start
        matcher.to(network.device)
        spared = range(0, len(images), KEPT_OUT) if len(images) >= KEPT_OUT else range(0)
        _train(matcher, network, images, spec, preprocessing, place, settings, spared)
        if spared:
            pairs = min(settings.spared, affordable(settings.memory, place))
            drawn = drawn_keys(len(spared), pairs, seed)
            keys = [(epoch, spared[i]) for epoch, i in drawn]
            calibrate(matcher, encoded(network, images, spec, preprocessing, place, keys), spec)
    network.train(was_training)
    return matcher.eval(), place


def matcher_for(place: MapPlace, spec: Spec) -> Matcher:
    """A new one for maps of this place; it tells of what the spec's policy does to views."""
    flips, turns = spec.policy.flip > 0, spec.policy.rot > 0
    shape = MatcherShape(place.channels, place.cells, flips, turns)
    return Matcher(shape, tuple(d.std for d in spec.heads["crop"].dimensions))


def _train(
    matcher: Matcher,
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    place: MapPlace,
    settings: MatcherSettings,
    spared: Sequence[int],
) -> None:
    """spared: pictures it must not learn from."""
    # In any order but theirs: the first pictures of a folder may all be of one class.
    used = [i for i in torch.randperm(len(images)).tolist() if i not in spared]
    kept = min(settings.pairs, affordable(settings.memory, place))
    together = min(len(used), max(2, 2 * kept // settings.views))  # pictures of a round
    each = max(1, kept // together)  # pairs of a picture
    rounds = max(1, round(settings.pairs / (together * each)))
    steps = rounds * settings.passes * max(1, together * each // settings.batch)
    optimizer = torch.optim.AdamW(matcher.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, steps, pct_start=0.15)
    blanks = blank_maps(network, preprocessing, place)
    began = said = time.monotonic()
    for number in range(rounds):
        chosen = (used[i % len(used)] for i in range(number * together, (number + 1) * together))
        keys = [(number * each + e, index) for index in chosen for e in range(each)]
        views = encoded(network, images, spec, preprocessing, place, keys)
        if number == 0 and not settings.go_on:
            matcher.standardise(views.encodings[: 4000 * each : each].float())
        matcher.train()
        for step, rows in enumerate(_batches(views, settings)):
            pairs = views.at(rows, network.device)
            with torch.autocast(network.device.type, torch.bfloat16, enabled=settings.bf16):
                loss = matcher_loss(matcher, pairs, spec, blanks)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(matcher.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            if time.monotonic() - said > SAY_EVERY:
                done = number * steps // rounds + step + 1
                said = time.monotonic()
                log.info(
                    "matcher: step %d of %d, loss %.3f, %.0f s",
                    done, steps, loss.item(), said - began,
                )  # fmt: skip
        del views  # before the next ones are encoded: memory is for those of one round


@torch.no_grad()
def calibrate(matcher: Matcher, views: EncodedViews, spec: Spec) -> None:
    """Turn the stated errors into ones that hold for these pictures, which it was not fitted on.

    The log variance of either order becomes slope * log variance + shift, for each dimension
    (`covering`), by what both orders say together. Boxes that have nothing in common are left out.
    """
    matcher.eval()
    matcher.slope.fill_(1)
    matcher.shift.zero_()
    parts = []
    split = views.paired().split(256)
    for rows in counted(split, len(views) // 2, "calibrating the matcher", "pair"):
        pairs = views.at(rows, matcher.std.device)
        ab, ba = vars(matcher(pairs.a, pairs.b)), vars(matcher(pairs.b, pairs.a))
        common = overlap(pairs.wa, pairs.wb) > 0
        parts.append([{n: v[common] for n, v in o.items()} for o in (ab, ba)])
        parts[-1].append({"crop": _target("crop", pairs, spec)[common]})
    ab, ba, target = (
        {n: torch.cat([p[n] for p in part]) for n in part[0]} for part in zip(*parts, strict=True)
    )

    def off(slope: Tensor, shift: Tensor) -> Tensor:
        """(N, 4) logs of the errors, in multiples of 1.96 of the stated ones."""
        one, other = ({**o, "log_variance": o["log_variance"] * slope + shift} for o in (ab, ba))
        answer = combined(one, other, matcher.std, matcher.shape.turns)
        error = (answer["crop"] - target["crop"]).abs().clamp(min=1e-6)
        logs: Tensor = (error / (1.96 * answer["standard_error"])).log()
        return logs

    slope, shift = covering(off, matcher.std)
    matcher.slope.copy_(slope)
    matcher.shift.copy_(shift)


def overlap(a: Parameters, b: Parameters) -> Tensor:
    """(N,) intersection over union of the views' boxes."""
    (top_a, left_a, h_a, w_a), (top_b, left_b, h_b, w_b) = a["crop"].T, b["crop"].T
    rows = torch.minimum(top_a + h_a, top_b + h_b) - torch.maximum(top_a, top_b)
    columns = torch.minimum(left_a + w_a, left_b + w_b) - torch.maximum(left_a, left_b)
    common = rows.clamp(min=0) * columns.clamp(min=0)
    union: Tensor = h_a * w_a + h_b * w_b - common
    return common / union


def _batches(views: EncodedViews, settings: MatcherSettings) -> Iterator[Tensor]:
    for _ in range(settings.passes):
        pairs = views.paired()
        whole = max(1, len(pairs) // settings.batch)
        yield from pairs[: whole * settings.batch].split(settings.batch)


def matcher_loss(matcher: Matcher, pairs: Pairs, spec: Spec, blanks: Tensor) -> Tensor:
    """The loss of N pairs in both orders, and of as many that do not match.

    All go through the network together: batch statistics of either kind alone would tell it which
    kind it sees.
    """
    both, (a, b) = pairs.both_orders(), strangers(pairs, blanks)
    matching = len(both)
    said: Match = matcher(torch.cat([both.a, a]), torch.cat([both.b, b]))
    of = {kind: _target(kind, both, spec) for kind in ("crop", "flip", "rot")}
    loss = 4 * gaussian_loss(
        said.crop[:matching], of["crop"] / matcher.std, said.log_variance[:matching]
    )
    loss = loss + F.binary_cross_entropy_with_logits(said.flip[:matching], of["flip"])
    if matcher.shape.turns:
        loss = loss + F.cross_entropy(said.rot[:matching], of["rot"][:, 0].long())
    truth = torch.zeros_like(said.match)
    truth[:matching] = 1
    return loss + F.binary_cross_entropy_with_logits(said.match, truth)


def strangers(pairs: Pairs, blanks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (M, C, S, S) twice of what shows no common picture.

    Views of different images; every sixteenth a is blank, and every thirty-second b as well.
    """
    other = torch.roll(torch.arange(len(pairs), device=pairs.picture.device), 1)
    different = pairs.picture != pairs.picture[other]
    a, b = pairs.a[different].clone(), pairs.b[other][different].clone()
    for m, every in ((a, 16), (b, 32)):
        rows = torch.arange(0, len(m), every)
        m[rows] = blanks[torch.randint(len(blanks), (len(rows),))].to(m)
    return a, b


@torch.no_grad()
def blank_maps(network: PreTrainedModel, preprocessing: Preprocessing, place: MapPlace) -> Tensor:
    """Maps of pictures of one colour; what they show is the border of the picture alone."""
    mean, std = (torch.tensor(v) for v in (preprocessing.mean, preprocessing.std))
    colors = (torch.rand(BLANKS, 3) - mean) / std
    size = preprocessing.size
    x = colors[:, :, None, None].expand(-1, -1, size, size).to(network.device)
    return features_and_map(network, x, place)[1]


def _target(kind: str, pairs: Pairs, spec: Spec) -> Tensor:
    target: Tensor = targets(kind, pairs.wa, pairs.wb, spec.policy, spec.convention)[0].float()
    return target
