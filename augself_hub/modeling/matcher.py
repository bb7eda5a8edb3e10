"""The matcher: where view b lies in view a, read off the feature maps of both.

Pooled features of an encoder that was trained to ignore mirroring cannot tell left from right. Its
feature maps can, once they are compared cell by cell. Views are boxes whose sides stay parallel to
those of the picture, so matches are counted by a vote that takes the two axes apart:

    m_a, m_b     maps, channels standardised, their spatial mean subtracted     (C, S, S)
    for every way g that b may be turned or mirrored against a:
        V_g      cosines of all pairs of cells, a's and g(b)'s                   (S^2, S^2)
        score_g[hy, hx] = sum of A[hy, (iy, ky)] V_g[(iy, ix), (ky, kx)] B[hx, (ix, kx)]

A hypothesis h is (offset, log size) of b along one axis, in sides of a. A[h] weighs pairs of rows,
B[h] pairs of columns: both begin as a ridge along i = offset + size * k and are learned. So a box
is scored by two small matrix products, not by a search over four numbers. What the scores say,
how sure they are of it, and what either view shows as a whole (sky is above), a small network turns
into the difference, its variance, and whether the two views show one picture at all.

The all-pairs cost volume is that of Rocco et al. (arXiv:1703.05593); the separable vote is ours.
The variance is learned by beta-NLL (Seitzer et al., arXiv:2203.09168).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SIZES = (-0.8, -0.4, 0.0, 0.4, 0.8)  # of b, against a
REACH = 0.6  # largest offset of b's centre, in sides of a
LOG_VARIANCE = (-7.0, 3.0)  # of a standardised target


@dataclass(frozen=True)
class MatcherShape:
    """What a matcher is made of.

    Args:
        channels, cells: C and S of the maps, (C, S, S).
        flips, turns: whether b may be mirrored against a, and turned by quarters.
        groups, width: cosines are taken in `groups` projections of `width` channels each.
        hidden: width of the last layers.
        content: width of what they are told of both views beside the votes.
    """

    channels: int
    cells: int
    flips: bool = True
    turns: bool = False
    groups: int = 2
    width: int = 32
    hidden: int = 256
    content: int = 64

    @property
    def ways(self) -> list[tuple[int, int]]:
        """(mirrored, quarter turns) of b against a, as the targets of flip and rot have them."""
        return [(m, r) for m in range(1 + self.flips) for r in range(4 if self.turns else 1)]

    @property
    def hypotheses(self) -> list[tuple[float, float]]:
        """(offset, log size) along an axis; offsets are half a cell to a cell apart."""
        steps = round(0.75 * self.cells)
        offsets = [REACH * i / steps for i in range(-steps, steps + 1)]
        return [(offset, size) for size in LOG_SIZES for offset in offsets]


@dataclass
class Match:
    """What a matcher says of N ordered pairs (a, b).

    Args:
        crop: (N, 4) y, x, height, width of b against a, each divided by the spec's std.
        log_variance: (N, 4) of crop's errors, in the same unit squared.
        flip: (N, 1) logit that exactly one of the views is mirrored.
        rot: (N, 4) logits of the quarter turns; (N, 1) where turns are not told.
        match: (N, 1) logit that both views show the same picture.
    """

    crop: Tensor
    log_variance: Tensor
    flip: Tensor
    rot: Tensor
    match: Tensor


class Vote(nn.Module):
    """Maps of a and b -> evidence for every way and every pair of hypotheses."""

    def __init__(self, shape: MatcherShape) -> None:
        super().__init__()
        self.shape = shape
        projected = shape.groups * shape.width
        # Mirrored and turned matches need other features than straight ones: how edges lie changes.
        self.straight, self.of_a, self.of_b = (
            nn.Linear(shape.channels, projected, bias=False) for _ in range(3)
        )
        for projection in (self.straight, self.of_a):
            nn.init.orthogonal_(projection.weight)
        self.of_b.load_state_dict(self.of_a.state_dict())
        self.A, self.B = (nn.Parameter(ridges(shape)) for _ in range(2))  # (H, S^2)
        ways, hypotheses = len(shape.ways), len(shape.hypotheses)
        self.weight = nn.Parameter(torch.full((ways, shape.groups, 1), 1.5 / shape.groups))
        self.bias_y = nn.Parameter(torch.zeros(ways, hypotheses, 1))
        self.bias_x = nn.Parameter(torch.zeros(ways, 1, hypotheses))

    def forward(self, m: Tensor) -> Tensor:
        """Maps of a and b, (2, N, S, S, C) -> (N, ways, H, H) scores, y before x."""
        s, ways = self.shape.cells, self.shape.ways
        m = m - m.mean((2, 3), keepdim=True)
        straight = self._unit(self.straight(m))  # (2, N, S, S, K, d)
        turned = self._unit(self.of_a(m[0])), self._unit(self.of_b(m[1]))
        # The groups are weighed before their cosines are added: one volume for all of them.
        volumes = []
        for way, weight in zip(ways, self.weight, strict=True):
            a, b = straight if way == (0, 0) else turned
            a, b = (m.reshape(-1, s * s, m[0, 0, 0].numel()) for m in (a * weight, laid(b, *way)))
            volumes.append(a @ b.mT)
        v = torch.stack(volumes, 1)  # (N, ways, S^2, S^2): (iy, ix), (ky, kx)
        v = v.reshape(-1, len(ways), s, s, s, s).transpose(3, 4)
        v = v.reshape(-1, len(ways), s * s, s * s)  # (iy, ky), (ix, kx)
        score: Tensor = self.A @ v @ self.B.T + (self.bias_y + self.bias_x)  # (N, ways, H, H)
        return score

    def _unit(self, m: Tensor) -> Tensor:
        """(..., K d) -> (..., K, d), every group of a cell of length 1."""
        m = m.unflatten(-1, (self.shape.groups, -1))
        unit: Tensor = m / m.norm(dim=-1, keepdim=True).clamp(min=1e-4)
        return unit


class Matcher(nn.Module):
    """The vote and what is read off it. See the module for the algorithm.

    Args:
        shape: sizes of maps and layers.
        std: of crop's four targets, as in the spec: hypotheses are in sides of a, targets are not.
    """

    mean: Tensor  # (C,) of the maps
    deviation: Tensor
    std: Tensor  # (4,)
    slope: Tensor  # (4,) and
    shift: Tensor  # of log variances: what makes them hold for pictures not trained on

    def __init__(self, shape: MatcherShape, std: tuple[float, ...], dropout: float = 0.2) -> None:
        super().__init__()
        self.shape, self.vote = shape, Vote(shape)
        self.register_buffer("mean", torch.zeros(shape.channels))
        self.register_buffer("deviation", torch.ones(shape.channels))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.register_buffer("slope", torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.grid = nn.Parameter(torch.tensor(shape.hypotheses))  # (H, 2)
        ways, h = len(shape.ways), len(shape.hypotheses)
        outputs = 4 + 4 + 1 + (4 if shape.turns else 1) + 1
        last = nn.Linear(shape.hidden, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        quarters = 2 * 4 * shape.channels
        self.content = nn.Sequential(
            nn.LayerNorm(quarters), nn.Linear(quarters, shape.content), nn.ReLU()
        )
        self.network = nn.Sequential(
            *_block(2 * ways * h + ways + 1 + 8 + shape.content, shape.hidden, dropout),
            *_block(shape.hidden, shape.hidden, dropout),
            last,
        )
        self.scale = nn.Parameter(torch.ones(4))

    @torch.no_grad()
    def standardise(self, maps: Tensor) -> None:
        """Take the channels' mean and deviation from (N, C, S, S) maps of the data at hand."""
        self.mean.copy_(maps.mean((0, 2, 3)))
        self.deviation.copy_(maps.std((0, 2, 3)).clamp(min=1e-6))

    def forward(self, a: Tensor, b: Tensor) -> Match:
        """Maps (N, C, S, S) of views a and b -> what takes a to b."""
        m = (torch.stack([a, b]).permute(0, 1, 3, 4, 2) - self.mean) / self.deviation
        score = self.vote(m)  # (N, ways, H, H)
        axes = torch.stack([_log_sum_exp(score, d) for d in (3, 2)])  # y and x: (2, N, ways, H)
        way = axes[0].logsumexp(2)  # (N, ways)
        total = way.logsumexp(1, keepdim=True) - math.log(score[0].numel())
        p = axes.logsumexp(2).softmax(2)[..., None]  # (2, N, H, 1)
        mean = (p * self.grid).sum(2)  # of offset and log size: (2, N, 2)
        spread = (p * (self.grid - mean[:, :, None]).square()).sum(2)
        expected = mean.permute(1, 2, 0).flatten(1) / self.std  # y, x, height, width
        known = [
            ((axes - axes.mean((2, 3), keepdim=True)) * 0.3).transpose(0, 1).flatten(1),
            way - way.mean(1, keepdim=True),
            total,
            expected,
            spread.transpose(0, 1).flatten(1),
            self.content(_quarters(m)),
        ]
        out = self.network(torch.cat(known, 1)).float()
        crop, log_variance, flip, rot, match = out.split([4, 4, 1, out.shape[1] - 10, 1], 1)
        return Match(
            crop + expected * self.scale,
            log_variance.clamp(*LOG_VARIANCE) * self.slope + self.shift,
            flip + self._flip(way),
            rot + self._rot(way) if self.shape.turns else rot,
            match,
        )

    def _flip(self, way: Tensor) -> Tensor:
        """Evidence for mirrored against not, (N, 1)."""
        if not self.shape.flips:
            return way.new_zeros(len(way), 1)
        either = way.unflatten(1, (2, -1)).logsumexp(2)  # straight and mirrored, as ways are
        evidence: Tensor = either[:, 1:] - either[:, :1]
        return evidence

    def _rot(self, way: Tensor) -> Tensor:
        """Evidence for each number of quarter turns, (N, 4)."""
        evidence: Tensor = way.unflatten(1, (-1, 4)).logsumexp(1)
        return evidence


def ridges(shape: MatcherShape) -> Tensor:
    """(H, S^2): how a pair of cells (of a, of b) along one axis speaks for each hypothesis.

    A cell's centre u of b lies at offset + exp(log size) * u in a's frame; near it the weight is a
    Gaussian as wide as half a cell. A ridge that leaves the frame is not made stronger for that.
    """
    cells = shape.cells
    u = (torch.arange(cells) + 0.5) / cells - 0.5
    rows = []
    for offset, log_size in shape.hypotheses:
        place = offset + math.exp(log_size) * u
        width = 0.55 / cells * max(1.0, math.exp(log_size))
        w = torch.exp(-((u[:, None] - place[None]) ** 2) / (2 * width**2))
        rows.append((w / w.square().sum().sqrt().clamp(min=0.1 * cells)).flatten())
    return torch.stack(rows)


def laid(m: Tensor, mirrored: int, turns: int) -> Tensor:
    """b's map (N, S, S, ...) laid as a's is, if `mirrored` and `turns` are the pair's flip and rot.

    A view is mirrored first and turned after it. So what takes b back to a is a turn by -rot where
    neither or both are mirrored, and else a mirror followed by a turn by rot.
    """
    if mirrored:
        return m.flip(2).rot90(turns, (1, 2))
    return m.rot90(-turns, (1, 2))


def _log_sum_exp(m: Tensor, dim: int) -> Tensor:
    """As `torch.logsumexp`, by steps for which ONNX Runtime has vector instructions."""
    largest = m.amax(dim, keepdim=True)
    return (m - largest).exp().sum(dim).log() + largest.squeeze(dim)


def _quarters(m: Tensor) -> Tensor:
    """(2, N, S, S, C) -> (N, 2 * 4 C), means of the quarters; the middle of an odd side counts in
    both.
    """
    begin = m.shape[2] // 2
    pooled = F.avg_pool2d(m.flatten(0, 1).permute(0, 3, 1, 2), m.shape[2] - begin, begin)
    pooled = pooled.permute(0, 2, 3, 1)  # (2 N, 2, 2, C)
    return pooled.reshape(2, -1, 4 * m.shape[4]).transpose(0, 1).flatten(1)


def _block(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [
        nn.Linear(inputs, outputs, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    ]


def gaussian_loss(value: Tensor, target: Tensor, log_variance: Tensor, beta: float = 0.5) -> Tensor:
    """beta-NLL: a Gaussian likelihood with a variance of each pair's own; (N, n) -> ()."""
    loss = 0.5 * ((value - target) ** 2 * torch.exp(-log_variance) + log_variance)
    return (loss * torch.exp(beta * log_variance.detach())).mean()
