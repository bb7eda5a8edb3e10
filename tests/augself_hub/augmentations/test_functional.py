"""Every image operation against torchvision's function on single images, on numpy and on torch."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from augself_hub.augmentations import functional
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy

N, SIDE = 12, 32
POLICY = Policy(size=96)  # a blur of 9 taps
TOLERANCE = 2e-6  # float32, a handful of roundings; 1/500 of a grey level
LIBRARIES = {"numpy": lambda t: t.numpy(), "torch": lambda t: t}


@pytest.fixture
def views():
    """Random pixels, the first view with flat gray, black, white and pure colours in it."""
    views = torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    flat = torch.tensor([[0.5] * 3, [0.0] * 3, [1.0] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    views[0] = flat.repeat(SIDE * SIDE // 6 + 1, 1)[: SIDE * SIDE].T.reshape(3, SIDE, SIDE)
    return views


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


def parameters(n=N, **given):
    """Views that nothing is applied to, but for what is given (per sample, or one for all)."""
    identity = {
        "crop": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(n, 1),
        "flip": torch.zeros(n, dtype=torch.bool),
        "color": torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(n, 1),
        "order": torch.arange(4).repeat(n, 1),
        "sol": torch.ones(n),
        "gray": torch.zeros(n, dtype=torch.bool),
        "blur": torch.zeros(n),
        "rot": torch.zeros(n, dtype=torch.int64),
    }
    given = {kind: torch.as_tensor(value) for kind, value in given.items()}
    given = {
        k: v.expand(n, *v.shape[-(identity[k].ndim - 1) :] if identity[k].ndim > 1 else ())
        for k, v in given.items()
    }
    return {**identity, **given}


def random_parameters(n, policy):
    drawn = draw(policy, (0, 0, np.arange(n), 0), 100, 100)
    return {kind: torch.as_tensor(values) for kind, values in drawn.items()}


def run(views, given, library, policy=POLICY):
    given = {kind: library(values) for kind, values in given.items()}
    return torch.as_tensor(functional.augment(library(views), given, policy))


def reference(view, p, policy):
    """One (3, S, S) view through torchvision's functions, one by one."""
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    if p["flip"]:
        view = tv.hflip(view)
    if p["color"].tolist() != [1, 1, 1, 0]:
        for i in p["order"].tolist():
            view = operations[i](view, float(p["color"][i]))
    if p["sol"] < 1:
        view = tv.solarize(view, float(p["sol"].float()))
    if p["gray"]:
        view = tv.rgb_to_grayscale(view, num_output_channels=3)
    if p["blur"] > 0:
        view = tv.gaussian_blur(view, [policy.blur_kernel] * 2, [float(p["blur"])] * 2)
    return torch.rot90(view, int(p["rot"]), (1, 2))


def assert_close(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs.double()).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("operation", "reference_operation", "amounts"),
    [
        ("brightness", tv.adjust_brightness, [0.0, 0.6, 1.0, 1.4, 2.5]),
        ("contrast", tv.adjust_contrast, [0.0, 0.6, 1.0, 1.4, 2.5]),
        ("saturation", tv.adjust_saturation, [0.0, 0.6, 1.0, 1.4, 2.5]),
        ("hue", tv.adjust_hue, [-0.5, -0.1, 0.0, 0.1, 0.37, 0.5]),
        ("solarize", tv.solarize, [0.0, 0.3, 0.5, 0.9, 1.0]),
    ],
)
def test_an_operation_is_torchvisions(views, library, operation, reference_operation, amounts):
    amount = torch.tensor(list(itertools.islice(itertools.cycle(amounts), N)))
    ours = getattr(functional, operation)(library(views), library(amount))
    theirs = [reference_operation(v, float(a)) for v, a in zip(views, amount, strict=True)]
    assert_close(torch.as_tensor(ours), torch.stack(theirs))


@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_the_blur_is_torchvisions_with_the_same_kernel(views, library, kernel):
    sigma = torch.linspace(0.1, 2.0, N)
    ours = functional.gaussian_blur(library(views), library(sigma), kernel)
    theirs = [
        tv.gaussian_blur(v, [kernel] * 2, [float(s)] * 2) for v, s in zip(views, sigma, strict=True)
    ]
    assert_close(torch.as_tensor(ours), torch.stack(theirs))


@pytest.mark.parametrize(("size", "taps"), [(32, 3), (96, 9), (224, 23)])
def test_the_blur_of_augment_has_the_policys_taps(library, size, taps):
    """A bright pixel spreads over exactly the kernel."""
    point = torch.zeros(1, 3, 65, 65)
    point[:, :, 32, 32] = 1
    blurred = run(point, parameters(1, blur=2.0), library, Policy(size=size))
    assert (blurred[0, 0, 32] > 0).sum() == taps
    assert abs(blurred[0, 0].sum() - 1) < 1e-5


@pytest.mark.parametrize(
    ("given", "reference_operation"),
    [
        ({"flip": True}, tv.hflip),
        ({"gray": True}, lambda v: tv.rgb_to_grayscale(v, num_output_channels=3)),
        ({"rot": 1}, lambda v: tv.rotate(v, 90)),
        ({"rot": 2}, lambda v: tv.rotate(v, 180)),
        ({"rot": 3}, lambda v: tv.rotate(v, 270)),
        ({"sol": 0.25}, lambda v: tv.solarize(v, 0.25)),
        ({}, lambda v: v),
    ],
)
def test_one_augmentation_alone(views, library, given, reference_operation):
    ours = run(views, parameters(**given), library)
    assert_close(ours, torch.stack([reference_operation(v) for v in views]))


def test_a_threshold_of_1_leaves_white_alone(library):
    white = torch.ones(2, 3, SIDE, SIDE)
    assert (run(white, parameters(2), library) == 1).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_four_colour_operations_in_each_order(views, order):
    given = parameters(4, color=[1.4, 0.6, 1.3, 0.1], order=list(order))
    one = {kind: values[0] for kind, values in given.items()}
    ours = run(views[:4], given, LIBRARIES["torch"])
    assert_close(ours, torch.stack([reference(v, one, POLICY) for v in views[:4]]))


@pytest.mark.parametrize(
    "policy", [Policy(size=96), Policy(size=96, sol=0.5, rot=0.5, brightness=0.8, hue=0.2)]
)
def test_augment_is_torchvisions_functions_one_by_one(library, policy):
    """64 views, every augmentation, each view in its own order."""
    views = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    given = random_parameters(64, policy)
    ours = run(views, given, library, policy)
    for i, view in enumerate(views):
        one = {kind: values[i] for kind, values in given.items()}
        # A threshold that a pixel meets to the last bit may fall on either side.
        assert_close(ours[i], reference(view, one, policy), 5 * TOLERANCE)


def test_a_view_does_not_depend_on_the_batch_it_is_in(views):
    given = random_parameters(N, POLICY)
    together = run(views, given, LIBRARIES["torch"])
    alone = [
        run(views[i : i + 1], {k: v[i : i + 1] for k, v in given.items()}, LIBRARIES["torch"])
        for i in range(N)
    ]
    assert_close(together, torch.cat(alone))


def test_nothing_given_is_modified(views, library):
    given = random_parameters(N, Policy(size=96, sol=0.5, rot=0.5))
    before = views.clone(), {kind: values.clone() for kind, values in given.items()}
    run(views, given, library)
    assert torch.equal(views, before[0])
    assert all(torch.equal(given[kind], before[1][kind]) for kind in given)


def test_nothing_applied_gives_an_equal_copy(views, library):
    given = {kind: library(values) for kind, values in parameters().items()}
    ours = functional.augment(library(views), given, POLICY)
    assert torch.equal(torch.as_tensor(ours), views)
    ours[:] = 0
    assert views.any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float64, 1e-5)],
)
def test_the_type_of_the_views_is_kept(views, dtype, tolerance):
    """Close to float32 within the type's own precision; parameters come as float64."""
    given = random_parameters(N, POLICY)
    ours = run(views.to(dtype), given, LIBRARIES["torch"])
    assert ours.dtype == dtype
    assert_close(ours, run(views, given, LIBRARIES["torch"]), tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_type_of_numpy_views_is_kept(views, dtype):
    given = {kind: v.numpy() for kind, v in random_parameters(N, POLICY).items()}
    assert functional.augment(views.numpy().astype(dtype), given, POLICY).dtype == dtype


def test_values_stay_within_0_and_1(library):
    views = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).round()
    policy = Policy(size=96, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, color=1.0)
    ours = run(views, random_parameters(64, policy), library, policy)
    assert (ours.min() >= -TOLERANCE) and (ours.max() <= 1 + TOLERANCE)


def test_normalise(views, library):
    mean, std = (0.43, 0.42, 0.39), (0.27, 0.26, 0.27)
    ours = torch.as_tensor(functional.normalise(library(views), mean, std))
    assert_close(ours, torch.stack([tv.normalize(v, mean, std) for v in views]))


def scaled_in_hsv(pixel, factor):
    """What official runs did to one pixel's saturation, by the standard library."""
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
    return colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)


def test_saturation_in_hsv_is_colorsys_s(views, library):
    factors = torch.linspace(0, 3, N)
    found = torch.as_tensor(functional.saturation_hsv(library(views.clone()), library(factors)))
    for view, factor, out in zip(views, factors, found, strict=True):
        pixels = view.reshape(3, -1).T[::7]
        expected = torch.tensor([scaled_in_hsv(pixel, float(factor)) for pixel in pixels])
        torch.testing.assert_close(out.reshape(3, -1).T[::7], expected, atol=2e-6, rtol=0)


def test_the_policy_chooses_how_saturation_is_scaled(views):
    color = torch.tensor([[1.0, 1.0, 1.4, 0.0]]).repeat(N, 1)
    for word, function in (
        ("luma", functional.saturation),
        ("hsv", functional.saturation_hsv),
    ):
        policy = Policy(size=SIDE, saturate=word)
        found = functional.augment(views, parameters(color=color), policy)
        torch.testing.assert_close(found, function(views, color[:, 2]), atol=1e-6, rtol=0)
