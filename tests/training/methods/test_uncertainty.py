"""Errors of each pair: learned without touching what the heads say, and made to hold."""

from __future__ import annotations

import pytest
import torch

from augself_hub import AugSelfLoss, AugSelfModel
from augself_hub.augmentations.spec import LOG_VARIANCE, Policy
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import open_images
from training.methods import uncertainty
from training.methods.uncertainty import fit_uncertainty
from training.monitoring.awareness import held_out_pairs

SIZE = 32
POLICY = Policy(size=SIZE, gray=0.2)


def model_that_says_no_difference():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18-w16", SIZE)
    loss = AugSelfLoss(encoder.dim, {"color": 1, "flip": 1}, POLICY)
    preprocessing = Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)
    model = AugSelfModel(encoder.network, loss.heads, loss.spec, preprocessing).eval()
    last = model.heads["color"][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    return model


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(uncertainty, "CALIBRATED", 40)


@pytest.fixture(scope="module")
def images(photo_folder):
    return ViewsDataset(open_images(str(photo_folder)), POLICY, 0)


def test_what_is_off_by_more_is_said_to_be(images, monkeypatch):
    """A model that says 0 is off by the difference itself, and how large that is the features show:
    of the brightness of two views at a glance. Learned from some pictures, asked of others.
    """
    model = model_that_says_no_difference()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known, new = (
        ViewsDataset(images.images.at(range(k, len(images), 2)), POLICY, 1) for k in (0, 1)
    )
    fitted = fit_uncertainty(model, known, pairs=400).eval()
    assert fitted.spec.head_outputs() == {"color": 4, "flip": 1, LOG_VARIANCE: 4}
    for name, value in before.items():  # and neither were the batch statistics
        assert torch.equal(fitted.state_dict()[name], value), name

    seen = []
    monkeypatch.setattr(
        "training.monitoring.awareness.coverage", lambda *given: seen.append(given) or []
    )
    held_out_pairs(fitted, new, 200)
    ((kind, _, off, error, mask),) = seen
    assert kind == "color" and off.shape == error.shape == mask.shape == (200, 4)
    brightness, stated = off[:, 0].abs(), error[:, 0]
    sure = stated <= stated.median()
    assert brightness[sure].square().mean() < 0.75 * brightness[~sure].square().mean()
    assert (brightness < 1.96 * stated).double().mean() > 0.75  # calibrated on one picture


def test_the_seed_decides(images):
    model = model_that_says_no_difference()
    one, two, three = (
        fit_uncertainty(model, images, pairs=64, seed=seed).heads[LOG_VARIANCE].state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["network.1.weight"], three["network.1.weight"])


def test_errors_are_calibrated_on_pictures_that_nothing_was_learned_from(images):
    """By views that jitter more the network is the same, and stretched otherwise."""
    model = model_that_says_no_difference()
    louder = ViewsDataset(images.images, POLICY.with_color_strength(2.0), 0)
    plain, loud = (
        fit_uncertainty(model, images, by, pairs=64).heads[LOG_VARIANCE] for by in (images, louder)
    )
    assert torch.equal(plain.network[1].weight, loud.network[1].weight)
    assert not torch.equal(plain.shift, loud.shift)


def test_of_many_new_pictures_so_many_pairs_are_drawn(images, monkeypatch):
    """In any order but theirs, and of few no more than MOST_EACH of each."""
    asked = []
    encoded = uncertainty.encoded

    def counted(network, views, spec, preprocessing, place, keys):
        asked.append(keys)
        return encoded(network, views, spec, preprocessing, place, keys)

    monkeypatch.setattr(uncertainty, "encoded", counted)
    monkeypatch.setattr(uncertainty, "CALIBRATED", 10)
    model = model_that_says_no_difference()
    fit_uncertainty(model, images, images, pairs=8)
    rows = [index for _, index in asked[-1]]
    assert len(rows) == len(set(rows)) == 10 and max(rows) > 20 and rows != sorted(rows)
    monkeypatch.setattr(uncertainty, "CALIBRATED", 100)
    fit_uncertainty(model, images, images.at([3, 8]), pairs=8)
    assert sorted(asked[-1]) == [(epoch, index) for epoch in range(20) for index in (0, 1)]
