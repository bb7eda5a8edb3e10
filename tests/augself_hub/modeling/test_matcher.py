"""The matcher against boxes, mirrors and turns that are known because they were painted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.spec import Policy
from augself_hub.modeling.matcher import (
    Matcher,
    MatcherShape,
    Vote,
    _quarters,
    gaussian_loss,
    laid,
    ridges,
)

POLICY = Policy(size=8, rot=0.5)
STD = (0.2, 0.2, 0.3, 0.3)


def parameters(flip, rot, box=(0.0, 0.0, 1.0, 1.0)):
    """One view's, nothing changed but what is given."""
    return {
        "crop": torch.tensor([box]),
        "flip": torch.tensor([bool(flip)]),
        "color": torch.tensor([[1.0, 1.0, 1.0, 0.0]]),
        "order": torch.arange(4)[None],
        "sol": torch.ones(1),
        "gray": torch.zeros(1, dtype=torch.bool),
        "blur": torch.zeros(1),
        "rot": torch.tensor([rot]),
    }


@pytest.mark.parametrize(
    ("flip_a", "rot_a", "flip_b", "rot_b"),
    list(itertools.product((0, 1), range(4), (0, 1), range(4))),
)
def test_a_view_is_laid_as_the_other_by_what_flip_and_rot_say(flip_a, rot_a, flip_b, rot_b):
    source = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wa, wb = parameters(flip_a, rot_a), parameters(flip_b, rot_b)
    a, b = (augment(source, w, POLICY) for w in (wa, wb))
    mirrored = int(targets("flip", wa, wb, POLICY, "relative")[0])
    turns = int(targets("rot", wa, wb, POLICY, "relative")[0])
    assert torch.equal(laid(b.permute(0, 2, 3, 1), mirrored, turns), a.permute(0, 2, 3, 1))


def texture(y, x):
    """(C,) channels at points of a picture, smooth and nowhere alike; y, x of any shape."""
    random = np.random.default_rng(3)
    waves = random.normal(size=(16, 2)) * 9
    phases = random.uniform(0, 2 * math.pi, 16)
    return np.sin(waves[:, 0] * y[..., None] + waves[:, 1] * x[..., None] + phases)


def painted(box, cells=8, mirrored=False, turns=0):
    """The (1, S, S, 16) map a perfect encoder gives of a box (top, left, height, width)."""
    u = (np.arange(cells) + 0.5) / cells
    y, x = np.meshgrid(box[0] + box[2] * u, box[1] + box[3] * u, indexing="ij")
    m = torch.from_numpy(texture(y, x))[None].float()
    m = m.flip(2) if mirrored else m
    return m.rot90(turns, (1, 2))


def untrained(cells=8, **shape):
    """A vote that compares the maps as they are."""
    vote = Vote(MatcherShape(16, cells, groups=1, width=16, **shape))
    for projection in (vote.straight, vote.of_a, vote.of_b):
        projection.weight.data.copy_(torch.eye(16))
    return vote.requires_grad_(False)


def best(score, shape):
    """The way and the two hypotheses with most evidence: ((mirrored, turns), y, x)."""
    way, y, x = np.unravel_index(int(score.argmax()), score.shape)
    return shape.ways[way], shape.hypotheses[y], shape.hypotheses[x]


@pytest.mark.parametrize(
    ("a", "b", "y", "x"),
    [  # (offset, log size) of b in sides of a, by hand
        ((0, 0, 1, 1), (0, 0, 1, 1), (0.0, 0.0), (0.0, 0.0)),
        ((0, 0, 0.5, 0.5), (0.1, 0.05, 0.5, 0.5), (0.2, 0.0), (0.1, 0.0)),
        ((0.1, 0.1, 0.8, 0.6), (0.1, 0.1, 0.8 * 0.67032, 0.6), (-0.165, -0.4), (0.0, 0.0)),
        ((0.3, 0.3, 0.4, 0.4), (0.2, 0.24, 0.4 * 1.49182, 0.4 * 1.49182), (0, 0.4), (0.1, 0.4)),
    ],
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_untrained_vote_finds_painted_boxes(a, b, y, x, mirrored):
    vote = untrained()
    way, in_y, in_x = best(
        vote(torch.stack([painted(a), painted(b, mirrored=mirrored)]))[0], vote.shape
    )
    assert way == (int(mirrored), 0)
    assert in_y == pytest.approx(y, abs=0.12) and in_x == pytest.approx(x, abs=0.25)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_the_untrained_vote_finds_turns(mirrored, turns):
    vote = untrained(turns=True)
    a, b = painted((0, 0, 0.7, 0.7)), painted((0.1, 0.1, 0.7, 0.7), 8, mirrored, turns)
    # b alone is turned: rot is its turns where neither is mirrored, and where it alone is.
    assert best(vote(torch.stack([a, b]))[0], vote.shape)[0] == (int(mirrored), turns)


def test_scores_are_the_sums_of_the_algorithm():
    """As the module's docstring has it, term by term; groups, weights and biases included."""
    vote = Vote(MatcherShape(5, 4, groups=2, width=3)).double().requires_grad_(False)
    for parameter in (vote.weight, vote.bias_y, vote.bias_x, vote.of_b.weight):
        parameter.copy_(torch.randn_like(parameter))
    maps = torch.randn(2, 3, 4, 4, 5).double()
    a, b = maps - maps.mean((2, 3), keepdim=True)

    def cosines(u, v):
        u, v = (m.unflatten(3, (2, 3)) for m in (u, v))
        dots = torch.einsum("nijkd,npqkd->nijpqk", u, v)
        return dots / torch.einsum("nijk,npqk->nijpqk", u.norm(dim=4), v.norm(dim=4))

    volumes = [cosines(vote.straight(a), vote.straight(b)),
               cosines(vote.of_a(a), vote.of_b(b).flip(2))]  # fmt: skip
    A, B = (m.unflatten(1, (4, 4)) for m in (vote.A, vote.B))
    for way, (volume, weight) in enumerate(zip(volumes, vote.weight[..., 0], strict=True)):
        score = torch.einsum("hip,nijpqk,gjq,k->nhg", A, volume, B, weight)
        score = score + vote.bias_y[way] + vote.bias_x[way]
        torch.testing.assert_close(vote(maps)[:, way], score)


@pytest.mark.parametrize("side", [6, 7])
def test_the_middle_of_an_odd_side_counts_in_both_halves(side):
    maps = torch.randn(2, 3, side, side, 5)
    halves = slice(0, (side + 1) // 2), slice(side // 2, None)
    quarters = [maps[:, :, y, x].mean((2, 3)) for y in halves for x in halves]  # (2, N, C)
    expected = torch.cat([*(q[0] for q in quarters), *(q[1] for q in quarters)], 1)
    torch.testing.assert_close(_quarters(maps), expected)


def test_a_ridge_speaks_for_the_cells_that_lie_on_each_other():
    shape = MatcherShape(16, 8)
    same = ridges(shape)[shape.hypotheses.index((0.0, 0.0))].view(8, 8)
    assert torch.equal(same.argmax(1), torch.arange(8))
    assert torch.allclose(same, same.T)


@pytest.mark.parametrize("cells", [6, 8, 12, 14])
def test_any_map_side_gives_one_row_a_pair(cells):
    matcher = Matcher(MatcherShape(5, cells, turns=True, width=4), STD).eval()
    said = matcher(torch.randn(3, 5, cells, cells), torch.randn(3, 5, cells, cells))
    sizes = {name: tuple(value.shape) for name, value in vars(said).items()}
    assert sizes == {"crop": (3, 4), "log_variance": (3, 4), "flip": (3, 1), "rot": (3, 4),
                     "match": (3, 1)}  # fmt: skip


def test_the_gaussian_loss_is_least_at_the_squared_error():
    """By hand: 0.5 (e^2 / v + log v) has its least value where v is e^2."""
    value, target = torch.zeros(1, 1), torch.full((1, 1), 0.5)
    log_variance = torch.linspace(-6, 3, 400)[:, None, None]
    losses = torch.stack([gaussian_loss(value, target, v, beta=0.0) for v in log_variance])
    assert float(log_variance[losses.argmin()]) == pytest.approx(math.log(0.25), abs=0.03)


def test_beta_weighs_a_pair_by_its_variance():
    """By hand: e = 1, v = e^2: 0.5 (e^-2 + 2) times e^(0.5 * 2)."""
    loss = gaussian_loss(torch.zeros(1, 1), torch.ones(1, 1), torch.full((1, 1), 2.0), beta=0.5)
    assert float(loss) == pytest.approx(0.5 * (math.exp(-2) + 2) * math.e, rel=1e-6)
