"""Targets against values worked out by hand, and against the two pictures themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from augself_hub.augmentations import functional
from augself_hub.augmentations.difference import (
    both_orders,
    deviations,
    standard_errors,
    standardised,
    targets,
    to_physical,
)
from augself_hub.augmentations.sampling import draw, pixel_box
from augself_hub.augmentations.spec import HEADS, KINDS, Dimension, Head, Policy, Spec, heads_for
from augself_hub.errors import UsageError

POLICY = Policy()
LOG_2, LOG_4 = 0.6931471805599453, 1.3862943611198906


def view(**given):
    """One view that nothing was applied to but what is given: the whole source, as it is."""
    identity = {
        "crop": (0.0, 0.0, 1.0, 1.0),
        "flip": False,
        "color": (1.0, 1.0, 1.0, 0.0),
        "order": (0, 1, 2, 3),
        "sol": 1.0,
        "gray": False,
        "blur": 0.0,
        "rot": 0,
    }
    return {kind: np.array([value]) for kind, value in {**identity, **given}.items()}


def target(kind, a, b, convention, policy=POLICY):
    values, _ = targets(kind, view(**a), view(**b), policy, convention)
    return values[0].tolist()


# Box a: centre (0.4, 0.35), 0.4 high, 0.5 wide. Box b: centre (0.5, 0.5625), 0.2 high, 0.125 wide.
# From a to b: 0.1 = a quarter of a's height down, 0.2125 = 0.425 of a's width to the right,
# half as high, a quarter as wide.
BOX_A, BOX_B = (0.2, 0.1, 0.4, 0.5), (0.4, 0.5, 0.2, 0.125)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({}, {}, (0.25, 0.425, -LOG_2, -LOG_4)),
        ({"flip": True}, {}, (0.25, -0.425, -LOG_2, -LOG_4)),
        ({}, {"flip": True}, (0.25, 0.425, -LOG_2, -LOG_4)),
        ({"flip": True}, {"flip": True}, (0.25, -0.425, -LOG_2, -LOG_4)),
        # One counter-clockwise turn of a: what was right is up, what was below is right.
        ({"rot": 1}, {}, (-0.425, 0.25, -LOG_4, -LOG_2)),
        ({"rot": 2}, {}, (-0.25, -0.425, -LOG_2, -LOG_4)),
        ({"rot": 3}, {}, (0.425, -0.25, -LOG_4, -LOG_2)),
        ({"flip": True, "rot": 1}, {}, (0.425, 0.25, -LOG_4, -LOG_2)),
        ({"flip": True, "rot": 3}, {"rot": 2}, (-0.425, -0.25, -LOG_4, -LOG_2)),
        ({}, {"rot": 3}, (0.25, 0.425, -LOG_2, -LOG_4)),
    ],
)
def test_relative_crop(a, b, expected):
    a, b = {"crop": BOX_A, **a}, {"crop": BOX_B, **b}
    assert target("crop", a, b, "relative") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({}, {}, (-0.1, -0.2125, 0.2, 0.375)),
        ({"flip": True}, {}, (-0.1, 0.2125, 0.2, 0.375)),
        ({}, {"flip": True}, (-0.1, -0.2125, 0.2, 0.375)),
        ({"flip": True}, {"flip": True}, (-0.1, 0.2125, 0.2, 0.375)),
        ({"rot": 1}, {"rot": 3}, (-0.1, -0.2125, 0.2, 0.375)),
    ],
)
def test_paper_crop(a, b, expected):
    a, b = {"crop": BOX_A, **a}, {"crop": BOX_B, **b}
    assert target("crop", a, b, "paper") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a", [{}, {"flip": True}, {"rot": 1}, {"flip": True, "rot": 2}])
@pytest.mark.parametrize("b", [{}, {"flip": True}, {"rot": 3}])
@pytest.mark.parametrize("convention", HEADS)
def test_identical_boxes_do_not_differ(a, b, convention):
    a, b = {"crop": BOX_A, **a}, {"crop": BOX_A, **b}
    assert target("crop", a, b, convention) == [0, 0, 0, 0]


GOLDEN = json.loads((Path(__file__).parents[2] / "golden/difference.json").read_text())


def official_view(side):
    """The golden file's parameters of four views, as ours: what was not applied is neutral."""
    drawn = {name: np.array(values) for name, values in GOLDEN[side].items()}
    factors = np.stack([drawn[n] for n in ("brightness", "contrast", "saturation", "hue")], axis=1)
    jitter = drawn["jitter_applied"][:, None]
    return {
        "crop": drawn["crop"],
        "flip": drawn["flip"],
        "color": np.where(jitter, factors, (1.0, 1.0, 1.0, 0.0)),
        "sol": np.where(drawn["sol_applied"], drawn["sol_threshold"], 1.0),
        "blur": np.where(drawn["blur_applied"], drawn["sigma"], 0.0),
        "rot": np.where(drawn["rot_applied"], drawn["rot"], 0),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_paper_is_what_the_official_code_computed(kind):
    a, b = official_view("view1"), official_view("view2")
    expected = np.array(GOLDEN["official"][kind], dtype=float).reshape(4, -1)
    found = targets(kind, a, b, POLICY, "paper")[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)  # theirs is in float32


COLOR_A, COLOR_B = (1.2, 0.8, 1.0, 0.05), (0.6, 1.6, 1.25, -0.05)
NO_JITTER = (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("convention", "a", "b", "expected"),
    [
        ("relative", COLOR_A, COLOR_B, (-LOG_2, LOG_2, 0.22314355131420976, -0.1)),
        ("relative", COLOR_B, COLOR_A, (LOG_2, -LOG_2, -0.22314355131420976, 0.1)),
        ("relative", NO_JITTER, (0.5, 2.0, 1.0, 0.1), (-LOG_2, LOG_2, 0, 0.1)),
        ("relative", NO_JITTER, NO_JITTER, (0, 0, 0, 0)),
        # 0.8 of the factors' range [0.6, 1.4], 0.2 of the hue's [-0.1, 0.1]
        ("paper", COLOR_A, COLOR_B, (0.75, -1.0, -0.3125, 0.5)),
        ("paper", (1.4, 0.6, 1.4, 0.1), (0.6, 1.4, 1.0, -0.1), (1, -1, 0.5, 1)),
        ("paper", NO_JITTER, (0.6, 1.4, 1.0, 0.1), (0.5, -0.5, 0, -0.5)),
    ],
)
def test_color(convention, a, b, expected):
    assert target("color", {"color": a}, {"color": b}, convention) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_factor_of_0_has_a_bounded_logarithm():
    black = target("color", {}, {"color": (0.0, 1.0, 1.0, 0.0)}, "relative")
    assert black == pytest.approx([-6.907755278982137, 0, 0, 0])  # log 0.001


@pytest.mark.parametrize(
    ("kind", "convention", "a", "b", "expected"),
    [
        ("flip", "relative", {}, {}, 0),
        ("flip", "relative", {"flip": True}, {}, 1),
        ("flip", "relative", {}, {"flip": True}, 1),
        ("flip", "relative", {"flip": True}, {"flip": True}, 0),
        ("flip", "paper", {}, {}, 1),
        ("flip", "paper", {"flip": True}, {}, 0),
        ("flip", "paper", {"flip": True}, {"flip": True}, 1),
        ("blur", "relative", {"blur": 0.5}, {"blur": 2.0}, 1.5),
        ("blur", "relative", {"blur": 2.0}, {}, -2.0),
        ("blur", "paper", {"blur": 0.5}, {"blur": 2.0}, -1.5),
        ("blur", "paper", {"blur": 2.0}, {}, 2.0),
        ("rot", "relative", {"rot": 1}, {"rot": 3}, 2),
        ("rot", "relative", {"rot": 3}, {"rot": 0}, 1),
        ("rot", "relative", {"rot": 3, "flip": True}, {"rot": 0, "flip": True}, 1),
        ("rot", "relative", {"rot": 3, "flip": True}, {"rot": 0}, 3),
        ("rot", "paper", {"rot": 1}, {"rot": 3}, 2),
        ("rot", "paper", {"rot": 3}, {"rot": 0}, 3),
        ("rot", "paper", {"rot": 0}, {"rot": 3}, 1),
        ("rot", "paper", {"rot": 3, "flip": True}, {"rot": 0}, 3),
        ("sol", "relative", {}, {"sol": 0.25}, 0.75),
        ("sol", "relative", {"sol": 0.0}, {}, -1.0),
        ("sol", "relative", {"sol": 0.75}, {"sol": 0.25}, 0.5),
        ("sol", "paper", {}, {"sol": 0.25}, 0.75),
        ("sol", "paper", {"sol": 0.0}, {}, -1.0),
        ("blur", "relative", {}, {}, 0),
        ("rot", "relative", {}, {}, 0),
        ("sol", "relative", {}, {}, 0),
    ],
)
def test_kinds_of_one_number(kind, convention, a, b, expected):
    assert target(kind, a, b, convention) == [pytest.approx(expected, abs=1e-12)]


@pytest.mark.parametrize(("gray_a", "gray_b"), [(False, True), (True, False), (True, True)])
def test_a_gray_view_hides_saturation_and_hue_and_nothing_else(gray_a, gray_b):
    a, b = view(gray=gray_a, color=COLOR_A), view(gray=gray_b, color=COLOR_B)
    for kind in KINDS:
        _, mask = targets(kind, a, b, POLICY, "relative")
        seen = [True, True, False, False] if kind == "color" else [True] * mask.shape[1]
        assert mask.tolist() == [seen], kind
        assert targets(kind, a, b, POLICY, "paper")[1].all()  # as the official code has it


def test_two_coloured_views_show_everything():
    assert targets("color", view(), view(), POLICY, "relative")[1].all()


@pytest.mark.parametrize("convention", HEADS)
def test_numpy_and_torch_agree_and_shapes_are_the_heads(convention):
    policy = POLICY.with_kinds(KINDS)
    pair = [draw(policy, (0, 0, np.arange(100), v), 200, 300) for v in (0, 1)]
    tensors = [{kind: torch.as_tensor(p) for kind, p in view.items()} for view in pair]
    for kind, head in heads_for(KINDS, policy, convention).items():
        values, mask = targets(kind, *pair, policy, convention)
        torch_values, torch_mask = targets(kind, *tensors, policy, convention)
        assert values.shape == mask.shape == (100, len(head.dimensions))
        np.testing.assert_allclose(torch_values.numpy(), values, atol=1e-12)
        np.testing.assert_array_equal(torch_mask.numpy(), mask)


# -- The pictures themselves ---------------------------------------------------------------------

SIDE = 8
DOWN_RIGHT = np.stack(np.mgrid[0:SIDE, 0:SIDE], axis=-1).reshape(-1, 2) + 0.5 - SIDE / 2
MIRROR = np.diag([1, -1])
QUARTER_TURN = np.array([[0, -1], [1, 0]])  # right -> up, down -> right, in (down, right)


def picture(parameters, height=96, width=120):
    """The view as it is displayed, of a source whose pixels hold their own coordinates."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    source = np.stack([y, x, np.zeros_like(x)]) / 128
    left, top, right, bottom = pixel_box(parameters["crop"][0], height, width)
    tall, wide = (bottom - top) // SIDE, (right - left) // SIDE
    box = source[:, top:bottom, left:right].reshape(3, SIDE, tall, SIDE, wide).mean(axis=(2, 4))
    return functional.augment(box[None], parameters, Policy(size=SIDE))[0]


def frame(picture):
    """Read off a picture: where its centre lies in the source, and the source step (y, x) that one
    height down and one width right in the picture make, as the columns of a matrix."""
    coordinates = picture[:2].reshape(2, -1).T * 128
    steps = np.linalg.lstsq(DOWN_RIGHT / SIDE, coordinates - coordinates.mean(axis=0), rcond=None)
    return coordinates.mean(axis=0), steps[0].T


def random_view(random):
    """A box of whole pixels that SIDE divides, mirrored or not, turned by any quarter."""
    tall, wide = random.integers(1, 9, size=2) * SIDE
    top, left = random.integers(0, 96 - tall + 1), random.integers(0, 120 - wide + 1)
    box = (top / 96, left / 120, tall / 96, wide / 120)
    return view(crop=box, flip=bool(random.integers(2)), rot=random.integers(4))


@pytest.mark.parametrize("seed", range(100))
def test_relative_targets_are_what_the_two_pictures_show(seed):
    """crop, flip and rot say where b lies in a's displayed frame; no parameter is looked at."""
    random = np.random.default_rng(seed)
    a, b = random_view(random), random_view(random)
    (centre_a, steps_a), (centre_b, steps_b) = frame(picture(a)), frame(picture(b))
    displacement = np.linalg.solve(steps_a, centre_b - centre_a)
    b_in_a = np.linalg.solve(steps_a, steps_b)  # b's height and width as steps in a's frame
    height, width = np.abs(b_in_a).sum(axis=1)

    def said(kind):
        return targets(kind, a, b, POLICY, "relative")[0][0]

    np.testing.assert_allclose(
        said("crop"), [*displacement, np.log(height), np.log(width)], atol=1e-9
    )
    mirrored, turns = int(said("flip")[0]), int(said("rot")[0])
    assert mirrored == (np.linalg.det(b_in_a) < 0)
    b_from_a = np.linalg.matrix_power(QUARTER_TURN, turns) @ np.linalg.matrix_power(
        MIRROR, mirrored
    )
    np.testing.assert_allclose(np.linalg.inv(np.sign(np.round(b_in_a, 9))), b_from_a, atol=1e-9)


# -- Heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [POLICY, Policy(sol=0.5), POLICY.with_kinds(KINDS)], ids=["default", "sol", "all"]
)
@pytest.mark.parametrize("convention", HEADS)
def test_swapping_the_views_negates_exactly_the_dimensions_marked(policy, convention):
    pair = [draw(policy, (0, 0, np.arange(500), v), 200, 300) for v in (0, 1)]
    kinds = [kind for kind in KINDS if policy.probability(kind)]
    for kind, head in heads_for(kinds, policy, convention).items():
        ab = targets(kind, *pair, policy, convention)[0]
        ba = targets(kind, *pair[::-1], policy, convention)[0]
        negated = np.isclose(ab, -ba, atol=1e-12).all(axis=0)
        assert negated.tolist() == [d.antisymmetric for d in head.dimensions], kind


@pytest.mark.parametrize(
    "policy",
    [POLICY, POLICY.with_kinds(KINDS), Policy(brightness=1.2, hue=0.4, gray=0.4, sigma=(1, 5))],
    ids=["default", "all", "strong"],
)
def test_standardised_targets_have_a_mean_square_of_1(policy):
    kinds = [kind for kind in KINDS if policy.probability(kind)]
    heads = standardised(heads_for(kinds, policy), policy, "relative")
    pair = [draw(policy, (1, 2, np.arange(30_000), v), 1024, 1024) for v in (0, 1)]
    for kind, head in heads.items():
        if head.type == "regression":
            values, mask = targets(kind, *pair, policy, "relative")
            values = np.where(mask, values / [d.std for d in head.dimensions], np.nan)
            assert np.nanmean(values**2, axis=0) == pytest.approx(1, abs=0.05), kind


@pytest.mark.parametrize("size", [(300, 400), (1600, 900), (500, 500)])
def test_predicting_zero_costs_1_on_the_data_at_hand(size):
    """On 4:3 and 16:9 photographs squares' deviations would let it cost 0.5 to 2."""
    heads = standardised(heads_for(["crop"], POLICY), POLICY, "relative", [size])
    pair = [draw(POLICY, (3, 0, np.arange(30_000), v), *size) for v in (0, 1)]
    values = targets("crop", *pair, POLICY, "relative")[0]
    cost = np.mean((values / [d.std for d in heads["crop"].dimensions]) ** 2, axis=0)
    assert cost == pytest.approx(1, abs=0.05)
    square = standardised(heads_for(["crop"], POLICY), POLICY, "relative")["crop"]
    by_squares = np.mean((values / [d.std for d in square.dimensions]) ** 2, axis=0)
    assert (np.abs(by_squares - 1) > 0.1).any() == (size[0] != size[1])


def test_sizes_count_as_often_as_the_data_has_them():
    mixed = standardised(
        heads_for(["crop"], POLICY), POLICY, "relative", [(300, 400)] * 3 + [(9, 9)]
    )
    apart = [
        standardised(heads_for(["crop"], POLICY), POLICY, "relative", [size])["crop"]
        for size in ((300, 400), (9, 9))
    ]
    long, small = (np.array([d.std for d in head.dimensions]) for head in apart)
    found = [d.std for d in mixed["crop"].dimensions]
    assert found == pytest.approx(np.sqrt(0.75 * long**2 + 0.25 * small**2), rel=0.02)


def test_the_largest_difference_of_training_is_kept():
    """A factor is 0.6 to 1.4: no brightness differs by more than log(1.4 / 0.6) = 0.847."""
    for convention, most in (("relative", 0.847298), ("paper", 1.0)):
        head = standardised(heads_for(["color"], POLICY, convention), POLICY, convention)["color"]
        assert 0.9 * most < head.dimensions[0].largest < most


def test_what_is_not_a_number_and_convention_paper_are_not_standardised():
    kinds = ("crop", "flip", "rot")
    policy = POLICY.with_kinds(kinds)
    for head in standardised(heads_for(kinds, policy, "paper"), policy, "paper").values():
        assert {d.std for d in head.dimensions} == {1.0}
    heads = heads_for(("flip", "rot"), policy)
    assert standardised(heads, policy, "relative") == heads


@pytest.mark.parametrize("convention", ["relative", "paper"])
def test_a_dimension_that_never_differs_is_refused_by_name(convention):
    policy = Policy(hue=0.0)
    with pytest.raises(UsageError, match="color hue never differs"):
        standardised(heads_for(["color"], policy, convention), policy, convention)


def test_hues_that_are_a_whole_turn_apart_are_one_hue():
    """Of 0.3 and -0.3 of a turn the difference that is seen is 0.4, not -0.6; of 0.1, -0.1 -0.2."""
    policy = Policy(hue=0.5)
    a, b = (draw(policy, (0, 0, np.arange(2), view), 64, 64) for view in (0, 1))
    for side, sign in ((a, 1), (b, -1)):
        side["color"][:, 3] = sign * np.array([0.3, 0.1])
    hue = targets("color", a, b, policy, "relative")[0][:, 3]
    np.testing.assert_allclose(hue, [0.4, -0.2], atol=1e-6)


@pytest.mark.parametrize("convention", ["relative", "paper"])
def test_deviations_are_those_of_the_targets_also_where_they_are_not_divided(convention):
    policy = Policy()
    heads = standardised(heads_for(["crop", "color"], policy, convention), policy, convention)
    spec = Spec(convention, policy, heads, features=8)
    index = np.arange(20_000)
    a, b = (draw(policy, (5, 0, index, view), 512, 512) for view in (0, 1))
    for kind in heads:
        target, mask = targets(kind, a, b, policy, convention)
        expected = [np.sqrt(np.mean(c[m] ** 2)) for c, m in zip(target.T, mask.T, strict=True)]
        np.testing.assert_allclose(deviations(spec, kind), expected, rtol=0.05)


def head_of(kind="regression", tanh=False, classes=0):
    dimensions = (
        Dimension("y", "heights of a", antisymmetric=False, std=0.5),
        Dimension("height", "log ratio", std=2.0),
    )
    return Head(kind, dimensions[: 1 if kind != "regression" else 2], classes, tanh)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_raw_outputs_in_physical_units(library):
    def physical(head, raw):
        return np.asarray(to_physical(head, library(raw))).tolist()

    assert physical(head_of(), [[3.0, -1.0]]) == [[1.5, -2.0]]
    assert physical(head_of("binary"), [[0.0], [1.0986122886681098]]) == [
        pytest.approx([0.5]),
        pytest.approx([0.75], abs=1e-6),  # log 3: three to one
    ]
    classes = physical(head_of("classes", classes=4), [[LOG_2, 0.0, 0.0, 0.0], [1000.0, 0, 0, 0]])
    assert classes == [pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-6), [1, 0, 0, 0]]
    assert np.allclose(
        physical(HEADS["paper"]["crop"], [[0.5493061443340549, -1e3, 0.0, 1e3]]), [[0.5, -1, 0, 1]]
    )


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_both_orders_are_averaged_where_swapping_negates(library):
    ab, ba = library([[1.0, 3.0]]), library([[5.0, -1.0]])
    assert both_orders(head_of(), ab, ba).tolist() == [[1.0, 2.0]]
    flip = library([[0.9]]), library([[0.1]])
    assert both_orders(head_of("binary"), *flip).tolist() == flip[0].tolist()


@pytest.mark.parametrize("of", [np.array, torch.tensor])
def test_stated_errors_in_the_unit_of_each_number(of):
    """Of log variances 2 log 3 and 2 log 12 both orders say 6 stds; y keeps its own order's 3."""
    heads = {
        "crop": Head("regression", (Dimension("y", "u", antisymmetric=False, std=0.5),)),
        "flip": HEADS["relative"]["flip"],
        "color": Head("regression", (Dimension("hue", "turns", std=0.1),)),
    }
    ab, ba = (of([[2 * np.log(k), 2 * np.log(k)]]) for k in (3.0, 12.0))
    errors = standard_errors(heads, ab, ba)
    assert list(errors) == ["crop", "color"]
    assert float(errors["crop"][0, 0]) == pytest.approx(1.5)
    assert float(errors["color"][0, 0]) == pytest.approx(0.6)
