"""Both orders of a pair, turned into one answer: against targets computed from the parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.matching import combined, matcher_prediction
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import MatcherSpec, Policy, heads_for

STD = np.array([0.2, 0.2, 0.3, 0.3])
N = 4000


def perfect(a, b, policy, log_variance=-4.0):
    """What a matcher that is always right says of (a, b)."""
    crop, flip, rot = (targets(k, a, b, policy, "relative")[0] for k in ("crop", "flip", "rot"))
    logits = np.where(np.arange(4) == rot, 6.0, -6.0)
    return {
        "crop": crop / STD,
        "log_variance": np.full((N, 4), log_variance),
        "flip": np.where(flip == 1, 6.0, -6.0),
        "rot": logits,
        "match": np.full((N, 1), 6.0),
    }


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["upright", "turned"])
def pairs(request):
    policy = Policy(size=64, rot=request.param)
    index = np.arange(N)
    return policy, *(draw(policy, (3, 0, index, view), 900, 1200) for view in (0, 1))


@pytest.mark.parametrize("sure", ["of ab", "of ba", "of both"])
def test_the_other_order_turned_round_is_the_same_answer(pairs, sure):
    """Either order alone decides where the other is not sure, so each must be right by itself."""
    policy, a, b = pairs
    turns = policy.rot > 0
    ab = perfect(a, b, policy, 9.0 if sure == "of ba" else -4.0)
    ba = perfect(b, a, policy, 9.0 if sure == "of ab" else -4.0)
    answer = combined(ab, ba, STD, turns)
    target = targets("crop", a, b, policy, "relative")[0]
    assert np.abs(answer["crop"] - target).max() < 2e-4
    mirrored = targets("flip", a, b, policy, "relative")[0]
    assert ((answer["flip"] > 0.5) == (mirrored == 1)).all()
    if turns:
        turned = targets("rot", a, b, policy, "relative")[0][:, 0]
        assert (answer["rot"].argmax(1) == turned).all()
        assert answer["rot"].sum(1) == pytest.approx(np.ones(N))
    else:
        assert "rot" not in answer


class OldArray(np.ndarray):
    """NumPy's before 2.0, which has no device."""

    @property
    def device(self):
        raise AttributeError("'numpy.ndarray' object has no attribute 'device'")


def test_arrays_of_numpy_1_are_matched_too(pairs):
    policy, a, b = pairs
    ab, ba = (perfect(*views, policy) for views in ((a, b), (b, a)))
    heads = heads_for(("crop", "flip"), policy)
    spec = MatcherSpec(-1, {"turns": policy.rot > 0}, heads)
    old = [{name: x.view(OldArray) for name, x in said.items()} for said in (ab, ba)]
    found, expected = matcher_prediction(spec, *old), matcher_prediction(spec, ab, ba)
    for name, values in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), values)


def test_two_equal_errors_are_not_smaller_than_one(pairs):
    """By hand: two equal variances give that variance, for a matcher errs alike both ways."""
    policy, a, _ = pairs
    said = perfect(a, a, policy, np.log(0.25))
    answer = combined(said, said, STD, policy.rot > 0)
    assert answer["standard_error"] == pytest.approx(np.tile(0.5 * STD, (N, 1)))


def one(crop, log_variance, flip=-40.0):
    """What a matcher says of one pair."""
    return {
        "crop": np.array([crop]) / STD,
        "log_variance": np.array([log_variance]),
        "flip": np.array([[flip]]),
        "rot": np.zeros((1, 1)),
        "match": np.zeros((1, 1)),
    }


def test_what_both_orders_differ_by_is_part_of_the_error():
    """By hand: 0.1 and 0.3, each give or take 0.1 (y, std 0.2): 0.2, and 0.1^2 + 0.1^2 of it."""
    ab = one([0.1, 0, 0, 0], np.log([0.25, 1, 1, 1]))
    ba = one([-0.3, 0, 0, 0], np.log([0.25, 1, 1, 1]))
    answer = combined(ab, ba, STD, False)
    assert answer["crop"][0] == pytest.approx([0.2, 0, 0, 0])
    assert answer["standard_error"][0, 0] == pytest.approx(0.02**0.5)
    # the same twice: nothing is added
    assert combined(ab, one([-0.1, 0, 0, 0], np.log([0.25, 1, 1, 1])), STD, False)[
        "standard_error"
    ][0, 0] == pytest.approx(0.1)


def test_a_place_that_depends_on_the_mirror_is_as_doubtful_as_that_is():
    """By hand, both orders agree on x = 0.4 if not mirrored: (b, a) says -0.4, or 0.4 if it were.

    At even odds the variance of that is 0.1^2 + 0.5 * 0.5 * 0.8^2 = 0.17, its weight 0.01 / 0.18;
    the other's stays 0.1^2: (0.17 * 0.01 * 2) / 0.18. Of y, which no mirror changes, 0.1^2.
    """
    sure = np.log([0.25, 0.25, 1, 1])
    ab, ba = one([0.4, 0.4, 0, 0], sure, 0.0), one([-0.4, -0.4, 0, 0], sure, 0.0)
    answer = combined(ab, ba, STD, False)
    assert answer["crop"][0, :2] == pytest.approx([0.4, 0.4])
    expected = [0.1, (2 * 0.17 * 0.01 / 0.18) ** 0.5]
    assert answer["standard_error"][0, :2] == pytest.approx(expected)


def test_torch_gives_what_numpy_gives(pairs):
    policy, a, b = pairs
    ab, ba = perfect(a, b, policy), perfect(b, a, policy)
    expected = combined(ab, ba, STD, policy.rot > 0)
    given = [{name: torch.from_numpy(v) for name, v in said.items()} for said in (ab, ba)]
    answer = combined(*given, torch.from_numpy(STD), policy.rot > 0)
    assert answer.keys() == expected.keys()
    for name, value in answer.items():
        assert np.allclose(value.numpy(), expected[name])


@pytest.mark.parametrize("flip", [-40.0, 40.0])
def test_two_orders_that_say_the_same_turn_are_as_sure_as_either(flip):
    """Both give 60% to one quarter turn, which from b is three (mirrored: one): 60%, not 86%."""
    p = np.array([[0.1, 0.6, 0.2, 0.1]])
    turned = p if flip > 0 else p[:, [0, 3, 2, 1]]
    ab, ba = ({**one([0] * 4, [0.0] * 4, flip), "rot": np.log(q)} for q in (p, turned))
    assert combined(ab, ba, STD, True)["rot"] == pytest.approx(p)


def test_orders_that_differ_meet_at_their_geometric_mean():
    ab, ba = (
        {**one([0] * 4, [0.0] * 4), "rot": np.log([q])}
        for q in ([0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3])
    )
    expected = np.sqrt([0.16, *[0.16 / 9] * 3])
    assert combined(ab, ba, STD, True)["rot"][0] == pytest.approx(expected / expected.sum())
