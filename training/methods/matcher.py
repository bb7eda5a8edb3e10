"""Fits a matcher on a frozen encoder (see `augself_hub.modeling.matcher` for what it is).

Pairs of views are drawn as the encoder's own heads had them, encoded once, and kept as maps in half
precision while several passes are made over them:

    L = 4 * beta-NLL(crop) + BCE(flip) [+ CE(rot)] + BCE(match)

in both orders. Views of two pictures, and blank pictures, are what does not match: for these only
the last term counts. The encoder never sees a gradient, so its features transfer as before.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError
from augself_hub.modeling.maps import MapPlace, features_and_map, find_map
from augself_hub.modeling.matcher import Match, Matcher, MatcherShape, gaussian_loss
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset, collate

log = logging.getLogger(__name__)
BLANKS = 16  # pictures of one colour
SAY_EVERY = 8.0  # seconds


@dataclass(frozen=True)
class MatcherSettings:
    """How a matcher is fitted.

    Args:
        pairs: of views that are drawn in all.
        passes: how often each is used.
        batch: pairs of a step, each in both orders.
        rate: largest learning rate of a one-cycle schedule (AdamW).
        decay: weight decay.
        memory: bytes of maps that are kept at once.
    """

    pairs: int = 36_000
    passes: int = 5
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.02
    memory: int = 1 << 30


class Pairs:
    """Encoded pairs: maps of a and b, their parameters, and which picture each is of."""

    def __init__(self, a: Tensor, b: Tensor, wa: Parameters, wb: Parameters, image: Tensor) -> None:
        self.a, self.b, self.wa, self.wb, self.image = a, b, wa, wb, image

    def __len__(self) -> int:
        return len(self.image)

    def at(self, rows: Tensor, device: torch.device) -> Pairs:
        """Some of them, in single precision, where the matcher is."""
        wa, wb = ({n: v[rows].to(device) for n, v in w.items()} for w in (self.wa, self.wb))
        a, b = (m[rows].to(device).float() for m in (self.a, self.b))
        return Pairs(a, b, wa, wb, self.image[rows].to(device))

    def both_orders(self) -> Pairs:
        wa, wb = self.wa, self.wb
        ab, ba = ({n: torch.cat([u[n], v[n]]) for n in u} for u, v in ((wa, wb), (wb, wa)))
        a, b = torch.cat([self.a, self.b]), torch.cat([self.b, self.a])
        return Pairs(a, b, ab, ba, torch.cat([self.image, self.image]))


def fit_matcher(
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    settings: MatcherSettings | None = None,
    seed: int = 0,
) -> tuple[Matcher, MapPlace]:
    """A matcher for an encoder, which is left as it is.

    Args:
        network: a stock encoder, on the device that is to be used.
        images: what views are drawn from; its policy is the spec's.
        spec: of convention `relative`, with a crop head, whose unit and deviations are taken.
        seed: of initialisation and order; the views are keyed by the data set's own.

    Returns:
        The matcher, in evaluation mode, and where its maps are taken.

    Raises:
        UsageError: the encoder gives no maps.
        AugSelfError: the convention is `paper`, or there is nothing to match.
    """
    settings = settings or MatcherSettings()
    if spec.convention != "relative" or "crop" not in spec.heads:
        raise AugSelfError("a matcher needs convention relative and a crop head: --matcher off")
    if len(images) < 2:
        raise AugSelfError("a matcher needs two pictures or more: --matcher off")
    was_training = network.training
    network.eval()  # its batch statistics stay what they are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        place = find_map(network, preprocessing.size)
        shape = MatcherShape(
            place.channels, place.cells, spec.policy.flip > 0, turns=spec.policy.rot > 0
        )
        std = tuple(d.std for d in spec.heads["crop"].dimensions)
        matcher = Matcher(shape, std).to(network.device)
        _train(matcher, network, images, spec, preprocessing, place, settings)
    network.train(was_training)
    return matcher.eval(), place


def _train(
    matcher: Matcher,
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    place: MapPlace,
    settings: MatcherSettings,
) -> None:
    pair_bytes = 2 * 2 * place.channels * place.cells**2
    kept = max(settings.batch, min(settings.pairs, settings.memory // pair_bytes))
    rounds = math.ceil(settings.pairs / kept)
    steps = rounds * settings.passes * max(1, kept // settings.batch)
    optimizer = torch.optim.AdamW(matcher.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, steps, pct_start=0.15)
    blanks = blank_maps(network, preprocessing, place)
    began = said = time.monotonic()
    keys = drawn_keys(len(images))
    for number in range(rounds):
        pairs = encoded(network, images, spec, preprocessing, place, keys, kept)
        if number == 0:
            matcher.vote.standardise(pairs.a[:2000].float())
        matcher.train()
        for step, rows in enumerate(_batches(len(pairs), settings.batch, settings.passes)):
            loss = matcher_loss(matcher, pairs.at(rows, network.device), spec, blanks)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(matcher.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if time.monotonic() - said > SAY_EVERY:
                done = number * steps // rounds + step + 1
                said = time.monotonic()
                log.info(
                    "matcher: step %d of %d, loss %.3f, %.0f s",
                    done, steps, loss.item(), said - began,
                )  # fmt: skip


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
    other = torch.roll(torch.arange(len(pairs), device=pairs.image.device), 1)
    different = pairs.image != pairs.image[other]
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


def drawn_keys(images: int) -> Iterator[tuple[int, int]]:
    """(epoch, index) without end: every image once an epoch, in an order of its own."""
    epoch = 0
    while True:
        order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch))
        yield from ((epoch, index) for index in order.tolist())
        epoch += 1


@torch.no_grad()
def encoded(
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    place: MapPlace,
    keys: Iterable[tuple[int, int]],
    count: int,
    chunk: int = 64,
) -> Pairs:
    """The next `count` pairs of views, as maps of the encoder, which is in evaluation mode."""
    keys = iter(keys)
    maps = torch.empty(2, count, place.channels, place.cells, place.cells, dtype=torch.float16)
    image = torch.empty(count, dtype=torch.long)
    parameters: list[tuple[Parameters, Parameters]] = []
    for start in range(0, count, chunk):
        wanted = [next(keys) for _ in range(min(chunk, count - start))]
        batch = collate(images.__getitems__(wanted))
        both = {n: torch.cat([batch["w1"][n], batch["w2"][n]]) for n in batch["w1"]}
        both = {n: value.to(network.device) for n, value in both.items()}
        views = finish_views(
            batch["crops"].to(network.device),
            both,
            spec.policy,
            preprocessing.mean,
            preprocessing.std,
        )
        m = features_and_map(network, views, place)[1].half().cpu()
        end = start + len(wanted)
        maps[0, start:end], maps[1, start:end] = m.chunk(2)
        image[start:end] = torch.tensor([index for _, index in wanted])
        parameters.append((batch["w1"], batch["w2"]))
    wa, wb = (
        {name: torch.cat([pair[side][name] for pair in parameters]) for name in parameters[0][0]}
        for side in (0, 1)
    )
    return Pairs(maps[0], maps[1], wa, wb, image)


def _target(kind: str, pairs: Pairs, spec: Spec) -> Tensor:
    return targets(kind, pairs.wa, pairs.wb, spec.policy, spec.convention)[0].float()


def _batches(count: int, batch: int, passes: int) -> Iterator[Tensor]:
    for _ in range(passes):
        order = torch.randperm(count)
        whole = max(1, count // batch)
        yield from order[: whole * batch].split(batch)
