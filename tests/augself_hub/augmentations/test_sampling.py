"""Keyed sampling: what a view depends on, and whether each parameter has the policy's distribution.

Seeds are fixed, so a failure is a change of the code and never bad luck.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from augself_hub.augmentations.sampling import draw, pixel_box
from augself_hub.augmentations.spec import Policy

N = 20_000
ALPHA = 1e-4  # chance of a false alarm of one test, were the seeds not fixed
INDEX = np.arange(N)
EVERYTHING = Policy(size=96, sol=0.5, rot=0.5)
KEY = (7, 3, INDEX, 1)


@pytest.fixture(scope="module")
def views():
    return draw(EVERYTHING, KEY, 375, 500)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for kind in a:
        np.testing.assert_array_equal(a[kind], b[kind], err_msg=kind)


def is_uniform(values, low, high):
    return stats.kstest(values, "uniform", args=(low, high - low)).pvalue > ALPHA


def has_probability(flags, probability):
    return stats.binomtest(int(np.sum(flags)), len(flags), probability).pvalue > ALPHA


def test_every_kind_has_its_shape_and_type(views):
    shapes = {kind: (values.shape[1:], values.dtype.kind) for kind, values in views.items()}
    assert shapes == {
        "crop": ((4,), "f"),
        "flip": ((), "b"),
        "color": ((4,), "f"),
        "order": ((4,), "i"),
        "sol": ((), "f"),
        "gray": ((), "b"),
        "blur": ((), "f"),
        "rot": ((), "i"),
    }
    assert all(len(values) == N for values in views.values())


def test_a_view_does_not_depend_on_the_batch_it_is_drawn_in(views):
    alone = draw(EVERYTHING, (7, 3, 1234, 1), 375, 500)
    backwards = draw(EVERYTHING, (7, 3, INDEX[::-1], 1), 375, 500)
    mixed_sizes = draw(EVERYTHING, (7, 3, [5, 1234], 1), [20, 375], [4000, 500])
    assert_same(alone, {kind: values[1234:1235] for kind, values in views.items()})
    assert_same(backwards, {kind: values[::-1] for kind, values in views.items()})
    assert_same(alone, {kind: values[1:] for kind, values in mixed_sizes.items()})


@pytest.mark.parametrize(
    "key",
    [(8, 3, INDEX, 1), (7, 4, INDEX, 1), (7, 3, INDEX + N, 1), (7, 3, INDEX, 0)],
    ids=["seed", "epoch", "index", "view"],
)
def test_another_key_gives_independent_views(views, key):
    other = draw(EVERYTHING, key, 375, 500)
    for name, column in {"top": 0, "left": 1, "height": 2, "width": 3}.items():
        r = stats.spearmanr(views["crop"][:, column], other["crop"][:, column])
        assert r.pvalue > ALPHA, name
    both_drawn = (views["blur"] > 0) & (other["blur"] > 0)
    assert has_probability(both_drawn, 0.25)
    assert stats.spearmanr(views["blur"][both_drawn], other["blur"][both_drawn]).pvalue > ALPHA
    assert has_probability(views["flip"] == other["flip"], 0.5)
    assert has_probability((views["order"] == other["order"]).all(axis=1), 1 / 24)


def test_swapping_parts_of_the_key_changes_the_view():
    a, b = (draw(EVERYTHING, key, 375, 500)["crop"] for key in ((1, 2, 3, 4), (2, 1, 3, 4)))
    assert not np.array_equal(a, b)


def test_hashes_of_64_bits_are_indices():
    largest = draw(EVERYTHING, (0, 0, np.array([2**64 - 1, 2**63], dtype=np.uint64), 0), 375, 500)
    assert not np.array_equal(largest["crop"][0], largest["crop"][1])
    assert_same(
        draw(EVERYTHING, (0, 0, 2**64 - 1, 0), 375, 500),
        {kind: values[:1] for kind, values in largest.items()},
    )


def test_switching_one_augmentation_on_leaves_the_others_as_they_were(views):
    without = draw(Policy(size=96, blur=0.0, color=0.0), KEY, 375, 500)
    for kind in ("crop", "flip", "order", "gray"):
        np.testing.assert_array_equal(without[kind], views[kind])


def test_parameters_are_the_same_on_every_machine():
    """Written down once: a change here is a change of every published recipe."""
    view = draw(EVERYTHING, (0, 0, 1, 0), 375, 500)
    assert pixel_box(view["crop"][0], 375, 500) == (35, 37, 294, 371)
    np.testing.assert_allclose(
        view["color"][0],
        [1.2075437128269866, 0.8810588335416386, 0.8504504162459986, 0.04815106103686659],
        rtol=1e-12,
    )
    assert view["order"][0].tolist() == [3, 2, 1, 0]
    assert (view["flip"][0], view["gray"][0], view["rot"][0]) == (False, False, 3)
    np.testing.assert_allclose(view["sol"][0], 0.3447571520401287, rtol=1e-12)
    np.testing.assert_allclose(view["blur"][0], 1.218874789691022, rtol=1e-12)


def test_probabilities_are_the_policys(views):
    applied = {
        "flip": views["flip"],
        "color": (views["color"] != [1, 1, 1, 0]).any(axis=1),
        "sol": views["sol"] < 1,
        "gray": views["gray"],
        "blur": views["blur"] > 0,
    }
    for kind, flags in applied.items():
        assert has_probability(flags, getattr(EVERYTHING, kind)), kind


def test_augmentations_are_applied_independently_of_each_other(views):
    flags = np.stack(
        [
            views["flip"],
            (views["color"] != [1, 1, 1, 0]).any(axis=1),
            views["sol"] < 1,
            views["gray"],
            views["blur"] > 0,
            views["rot"] > 0,
        ]
    )
    for a, b in itertools.combinations(range(len(flags)), 2):
        table = [[np.sum((flags[a] == i) & (flags[b] == j)) for j in (0, 1)] for i in (0, 1)]
        assert stats.chi2_contingency(table).pvalue > ALPHA, (a, b)


def test_values_are_uniform_over_the_policys_ranges(views):
    color = views["color"][(views["color"] != [1, 1, 1, 0]).any(axis=1)]
    for column in range(3):
        assert is_uniform(color[:, column], 0.6, 1.4)
    assert is_uniform(color[:, 3], -0.1, 0.1)
    assert is_uniform(views["blur"][views["blur"] > 0], 0.1, 2.0)
    assert is_uniform(views["sol"][views["sol"] < 1], 0.0, 1.0)
    r = np.corrcoef(color.T)[np.triu_indices(4, 1)]
    assert np.abs(r).max() < 4 / np.sqrt(len(color))


def test_rotation_is_uniform_over_the_four_quarters_where_it_is_applied(views):
    counts = np.bincount(views["rot"], minlength=4)
    expected = N * np.array([0.5 + 0.125, 0.125, 0.125, 0.125])
    assert stats.chisquare(counts, expected).pvalue > ALPHA


def test_order_is_uniform_over_the_24_permutations(views):
    permutations = list(itertools.permutations(range(4)))
    counts = [np.sum((views["order"] == p).all(axis=1)) for p in permutations]
    assert sum(counts) == N
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_factor_is_never_negative_and_a_strength_of_zero_is_no_jitter(strength):
    policy = Policy(brightness=strength, color=1.0)
    brightness = draw(policy, KEY, 64, 64)["color"][:, 0]
    assert (brightness.min() >= 0) and (brightness.max() <= 1 + strength)
    assert strength or (brightness == 1).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 120), (20, 20), (64, 96)])
def test_the_crop_has_the_distribution_of_torchvisions_random_resized_crop(height, width):
    policy = Policy()
    ours = draw(policy, (0, 0, np.arange(4000), 0), height, width)["crop"]
    ours = np.rint(ours * [height, width, height, width])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, list(policy.scale), list(policy.ratio))
            for _ in range(4000)
        ]
    )
    measures = {
        "top": lambda c: c[:, 0],
        "left": lambda c: c[:, 1],
        "height": lambda c: c[:, 2],
        "width": lambda c: c[:, 3],
        "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: c[:, 3] / c[:, 2],
        "right": lambda c: c[:, 1] + c[:, 3],
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > ALPHA, name


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 4000), (1999, 0, 2000, 1)),  # as wide as 4/3 of the height allows: 1 pixel
        ((4000, 1), (0, 1999, 1, 2000)),
        ((3, 4000), (1998, 0, 2002, 3)),  # 4 x 3
        ((4000, 3), (0, 1998, 3, 2002)),  # 3 x 4
    ],
)
def test_an_image_no_crop_fits_gives_its_largest_central_box(size, expected):
    policy = Policy(scale=(0.9, 1.0))
    for box in draw(policy, (0, 0, np.arange(50), 0), *size)["crop"]:
        assert pixel_box(box, *size) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 5), (375, 500), (2999, 3001)])
def test_a_pixel_box_is_whole_pixels_inside_the_image(size):
    height, width = size
    for box in draw(Policy(), (0, 0, np.arange(300), 0), *size)["crop"]:
        left, top, right, bottom = pixel_box(box, *size)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        np.testing.assert_allclose(
            [top / height, left / width, (bottom - top) / height, (right - left) / width], box
        )


def test_pixel_box_by_hand():
    assert pixel_box((0.25, 0.1, 0.5, 0.8), 200, 50) == (5, 50, 45, 150)
