"""AugSelfLoss against values by hand, and TwoViews in a bare loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from augself_hub import AugSelfLoss, TwoViews
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Dimension, Head, Policy
from augself_hub.errors import UsageError
from augself_hub.modeling.objective import broadcast_loss, head_loss


def regression(*stds, tanh=False):
    dimensions = tuple(Dimension(str(i), "unit", std=s) for i, s in enumerate(stds))
    return Head("regression", dimensions, tanh=tanh)


def test_a_regression_target_is_divided_by_its_standard_deviation():
    raw = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    target = torch.tensor([[2.0, 0.0], [4.0, 1.0]])
    loss = head_loss(regression(2.0, 0.5), raw, target, torch.ones(2, 2, dtype=torch.bool))
    # first dimension: (1-1)^2, (1-2)^2 -> 1/2; second: 0, (2-2)^2 -> 0
    assert loss.item() == pytest.approx(0.25)


def one_color_loss(image, convention, draws=64):
    """AugSelfLoss of heads on made-up features, for views of one picture, and their parameters."""
    torch.manual_seed(0)
    policy = Policy(size=16, gray=0.0, color=1.0)
    views = TwoViews(policy)
    _, _, w1, w2 = torch.utils.data.default_collate([views(image) for _ in range(draws)])
    loss = AugSelfLoss(4, {"color": 1.0}, policy, convention)
    loss(torch.randn(draws, 4), torch.randn(draws, 4), w1, w2)[0].backward()
    return loss, w1


@pytest.mark.parametrize("convention", ["relative", "paper"])
def test_of_a_gray_picture_no_saturation_and_no_hue_is_taught(convention):
    """The paper masks nothing: there, as from a coloured picture, all four dimensions learn."""
    random = np.random.default_rng(0)
    gray = Image.fromarray(random.integers(40, 200, (40, 40), dtype=np.uint8)).convert("RGB")
    coloured = Image.fromarray(random.integers(40, 200, (40, 40, 3), dtype=np.uint8))
    for image, taught in ((gray, [True, True, False, False]), (coloured, [True] * 4)):
        loss, w1 = one_color_loss(image, convention)
        taught = [True] * 4 if convention == "paper" else taught
        assert (loss.heads["color"][-1].weight.grad.abs().sum(1) > 0).tolist() == taught
        assert w1["colorless"].all() == (image is gray) and not w1["gray"].any()


def test_masked_rows_are_not_learned_as_zero():
    raw = torch.tensor([[3.0], [5.0]], requires_grad=True)
    mask = torch.tensor([[True], [False]])
    loss = head_loss(regression(1.0), raw, torch.tensor([[1.0], [0.0]]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(4.0)
    assert raw.grad[1].item() == 0


def test_a_batch_that_shows_nothing_costs_nothing():
    raw = torch.ones(3, 1)
    assert head_loss(regression(1.0), raw, raw * 9, torch.zeros(3, 1, dtype=torch.bool)) == 0


def test_paper_targets_are_compared_after_tanh():
    raw = torch.tensor([[0.5]])
    loss = head_loss(regression(1.0, tanh=True), raw, torch.tensor([[0.2]]), torch.ones(1, 1) > 0)
    assert loss.item() == pytest.approx((math.tanh(0.5) - 0.2) ** 2)


def test_binary_and_classes_by_hand():
    flip = Head("binary", (Dimension("mirrored", "probability"),))
    rot = Head("classes", (Dimension("turns", "probability"),), classes=4)
    seen = torch.ones(1, 1, dtype=torch.bool)
    assert head_loss(flip, torch.zeros(1, 1), torch.ones(1, 1), seen).item() == pytest.approx(
        math.log(2)
    )
    assert head_loss(rot, torch.zeros(1, 4), torch.tensor([[3.0]]), seen).item() == pytest.approx(
        math.log(4)
    )


def test_predicting_zero_costs_one_for_every_standardised_dimension():
    policy = Policy(size=8)
    loss = AugSelfLoss(4, {"crop": 1, "color": 1, "blur": 1}, policy)
    for parameter in loss.heads.parameters():
        torch.nn.init.zeros_(parameter)
    drawn = (draw(policy, (9, 0, np.arange(1500), view), 64, 64) for view in (0, 1))  # squares
    wa, wb = ({name: torch.from_numpy(np.array(v)) for name, v in w.items()} for w in drawn)
    y = torch.zeros(1500, 4)
    _, parts = loss(y, y, wa, wb)
    for kind, value in parts.items():
        assert value.item() == pytest.approx(1.0, abs=0.08), kind


def test_both_orders_are_trained():
    """Swapping the views does not change the loss."""
    policy = Policy(size=8)
    loss = AugSelfLoss(4, {"crop": 1, "color": 0.5, "flip": 2}, policy).eval()
    views = TwoViews(policy)
    photo = Image.effect_noise((64, 48), 80).convert("RGB")
    _, _, wa, wb = torch.utils.data.default_collate([views(photo) for _ in range(6)])
    ya, yb = torch.randn(2, 6, 4)
    total, parts = loss(ya, yb, wa, wb)
    torch.testing.assert_close(total, loss(yb, ya, wb, wa)[0])
    weighted = parts["crop"] + 0.5 * parts["color"] + 2 * parts["flip"]
    torch.testing.assert_close(total, weighted)


@pytest.mark.parametrize(("convention", "share"), [("relative", 0.25), ("paper", 1.0)])
def test_lambda_weighs_every_dimension_of_a_relative_regression_alike(convention, share):
    """A kind of one dimension counts a quarter of crop's four; classes and `paper` count whole."""
    policy = Policy(size=8).with_kinds(["sol", "rot"])
    kinds = ("crop", "flip", "blur", "rot", "sol")
    loss = AugSelfLoss(4, dict.fromkeys(kinds, 2), policy, convention).eval()
    parameters = draw(policy, (0, 0, np.arange(12), 0), 64, 64)
    wa, wb = ({n: torch.from_numpy(v[i::2]) for n, v in parameters.items()} for i in (0, 1))
    total, parts = loss(*torch.randn(2, 6, 4), wa, wb)
    whole = parts["crop"] + parts["flip"] + parts["rot"]
    expected = 2 * (whole + share * (parts["blur"] + parts["sol"]))
    torch.testing.assert_close(total.float(), expected.float())


def test_unusable_kinds_are_refused_by_name():
    with pytest.raises(UsageError, match="cutout"):
        AugSelfLoss(4, {"cutout": 1}, Policy())
    with pytest.raises(UsageError, match="'rot' is never applied"):
        AugSelfLoss(4, {"rot": 1}, Policy())


def test_two_views_obey_torch_s_seed():
    views = TwoViews(Policy(size=16))
    photo = Image.effect_noise((40, 30), 80).convert("RGB")
    torch.manual_seed(1)
    first = views(photo)
    torch.manual_seed(1)
    again = views(photo)
    torch.testing.assert_close(first[0], again[0])
    assert first[0].shape == (3, 16, 16)
    assert not torch.equal(first[0], first[1])


def test_paper_s_sol_loss_compares_every_prediction_with_every_target():
    """SCIENCE: official targets of shape (N,) broadcast against predictions (N, 1)."""
    raw, target = torch.tensor([[0.3], [-1.2]]), torch.tensor([[0.5], [-0.5]])
    p = [math.tanh(0.3), math.tanh(-1.2)]
    expected = sum((a - b) ** 2 for a in p for b in (0.5, -0.5)) / 4
    assert broadcast_loss(raw, target).item() == pytest.approx(expected)
    official = torch.mean((raw.tanh() - target[:, 0]) ** 2)
    assert broadcast_loss(raw, target).item() == pytest.approx(official.item())


@pytest.mark.parametrize(("convention", "falls"), [("paper", False), ("relative", True)])
def test_only_relative_teaches_sol(convention, falls):
    """Features that are the thresholds themselves: the right answer is there to be read off."""
    torch.manual_seed(0)
    policy = Policy(size=8).with_kinds(["sol"])
    loss = AugSelfLoss(1, {"sol": 1}, policy, convention)
    parameters = draw(policy, (0, 0, np.arange(512), 0), 64, 64)
    wa, wb = ({n: torch.from_numpy(v[i::2]) for n, v in parameters.items()} for i in (0, 1))
    ya, yb = wa["sol"].float()[:, None], wb["sol"].float()[:, None]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.002, momentum=0.9)
    costs = []
    for _ in range(40):
        optimizer.zero_grad()
        total, parts = loss(ya, yb, wa, wb)
        total.backward()
        optimizer.step()
        costs.append(parts["sol"].item())
    variance = float((ya - yb).square().mean())
    trivial = 1.0 if convention == "relative" else variance
    assert (costs[-1] < 0.5 * trivial) == falls
