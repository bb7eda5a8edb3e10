"""A matcher fitted for a minute on painted pictures says where boxes lie that it never saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from augself_hub.augmentations.difference import standardised, targets
from augself_hub.augmentations.matching import combined
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.errors import AugSelfError
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.matcher import Matcher, MatcherShape
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import Images, open_images
from training.methods import matcher as matcher_module
from training.methods.matcher import (
    KEPT_OUT,
    MatcherSettings,
    calibrate,
    fit_matcher,
    strangers,
)
from training.methods.pairs import EncodedViews, Pairs, encoded

SIZE = 64
PREPROCESSING = Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)
POLICY = Policy(size=SIZE, color=0.0, gray=0.0, blur=0.0)


def spec_of(policy, features=128):
    kinds = ("crop", "flip")
    heads = standardised(heads_for(kinds, policy), policy, "relative")
    return Spec("relative", policy, heads, features=features)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, painted):
    """A random ResNet, whose maps are good enough, and its matcher."""
    place = tmp_path_factory.mktemp("painted")
    torch.manual_seed(0)
    network = build_encoder("resnet18-w16", SIZE).network.eval()
    images = ViewsDataset(open_images(str(painted(place / "known", 120, 0))), POLICY, 0)
    settings = MatcherSettings(pairs=2400, passes=5, batch=32)
    matcher, where = fit_matcher(network, images, spec_of(POLICY), PREPROCESSING, settings)
    new = ViewsDataset(open_images(str(painted(place / "new", 100, 1))), POLICY, 1)
    keys = [(epoch, index) for epoch in range(3) for index in range(100)]
    views = encoded(network, new, spec_of(POLICY), PREPROCESSING, where, keys)
    return matcher, views.at(torch.arange(600).view(2, 300).T, torch.device("cpu"))


def said(matcher, a, b):
    with torch.no_grad():
        ab, ba = (vars(matcher(u.float(), v.float())) for u, v in ((a, b), (b, a)))
    return combined(ab, ba, matcher.std, turns=False)


def truth(pairs, kind):
    return targets(kind, pairs.wa, pairs.wb, POLICY, "relative")[0]


@pytest.mark.slow
def test_boxes_are_found_within_the_stated_error(fitted):
    matcher, pairs = fitted
    answer, target = said(matcher, pairs.a, pairs.b), truth(pairs, "crop")
    error = answer["crop"] - target
    r2 = 1 - error.square().mean(0) / target.square().mean(0)
    assert (r2 > 0.5).all(), r2
    within = (error.abs() < 1.96 * answer["standard_error"]).float().mean(0)
    assert (within > 0.88).all(), within


@pytest.mark.slow
def test_mirrored_pairs_are_told(fitted):
    matcher, pairs = fitted
    told = (said(matcher, pairs.a, pairs.b)["flip"] > 0.5).float() == truth(pairs, "flip")
    assert told.float().mean() > 0.9


@pytest.mark.slow
def test_a_view_and_itself_or_its_mirror_image(fitted):
    matcher, pairs = fitted
    same = said(matcher, pairs.a, pairs.a)
    assert (same["crop"].abs() < same["standard_error"]).float().mean() > 0.9
    assert (same["flip"] > 0.5).float().mean() < 0.05


@pytest.mark.slow
def test_strangers_are_told_from_pairs(fitted):
    matcher, pairs = fitted
    same = said(matcher, pairs.a, pairs.b)["match"]
    other = said(matcher, pairs.a, pairs.b.roll(1, 0))["match"]
    auc = float((same > other.T).float().mean())
    assert auc > 0.9


def test_the_encoder_is_left_alone_and_the_seed_decides(tmp_path, painted):
    network = build_encoder("resnet18-w16", SIZE).network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = ViewsDataset(open_images(str(painted(tmp_path / "few", 8, 2))), POLICY, 0)
    settings = MatcherSettings(pairs=32, passes=1, batch=16)
    one, two, three = (
        fit_matcher(network, images, spec_of(POLICY), PREPROCESSING, settings, seed)[0]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, three)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def views_of(*pictures):
    """Views whose maps tell which view they are of."""
    count = len(pictures)
    maps = torch.arange(count, dtype=torch.float16)[:, None, None, None].expand(count, 1, 1, 1)
    return EncodedViews(maps, {"flip": torch.zeros(count)}, torch.tensor(pictures))


def test_a_short_fit_sees_pictures_from_the_whole_folder(tmp_path, painted, monkeypatch):
    """Eight of 120 in order of their names, which is that of their classes, would be one class."""
    torch.manual_seed(0)
    network = build_encoder("resnet18-w16", SIZE).network.eval()
    images = ViewsDataset(open_images(str(painted(tmp_path / "a", 120, 0))), POLICY, 0)
    seen, of_keys = set(), ViewsDataset.__getitems__
    monkeypatch.setattr(
        ViewsDataset,
        "__getitems__",
        lambda self, keys: seen.update(index for _, index in keys) or of_keys(self, keys),
    )
    few = MatcherSettings(pairs=32, passes=1, batch=8, spared=2)
    fit_matcher(network, images, spec_of(POLICY), PREPROCESSING, few)
    used = {index for index in seen if index % KEPT_OUT}
    assert len(used) == 8 and max(used) > 60 and not used & set(range(0, 120, KEPT_OUT))


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({"spared": 7}, 7),
        ({"spared": 2000, "memory": 5 * 2 * 2 * 32 * 8 * 8}, 5),  # pairs of maps (32, 8, 8)
        ({"spared": 30}, 30),
    ],
)
def test_errors_are_calibrated_on_no_more_pairs_than_was_said(monkeypatch, settings, pairs):
    """Of 400 pictures 20 are spared. Whatever was allowed, these were all encoded, to the last."""
    asked = []

    def fake(network, images, spec, preprocessing, place, keys):
        asked.append(keys)
        picture = torch.tensor([index for _, index in keys]).repeat(2)
        maps = torch.randn(len(picture), place.channels, place.cells, place.cells).half()
        boxes = torch.tensor([0.2, 0.2, 0.5, 0.5]) + 0.1 * torch.rand(len(picture), 4)
        parameters = {"crop": boxes, "flip": picture % 2 == 0, "rot": torch.zeros_like(picture)}
        return EncodedViews(maps, parameters, picture)

    monkeypatch.setattr(matcher_module, "encoded", fake)
    network = build_encoder("resnet18-w16", SIZE).network.eval()
    listed = Images([""] * 400, [0] * 400, ["a"], lambda index: None)
    few = MatcherSettings(pairs=32, passes=1, batch=8, **settings)
    fit_matcher(network, ViewsDataset(listed, POLICY, 0), spec_of(POLICY), PREPROCESSING, few)
    *fitted, calibrated = asked
    rows = [index for _, index in calibrated]
    assert len(rows) == len(set(calibrated)) == pairs
    assert set(rows) <= set(range(0, 400, KEPT_OUT)) and rows != sorted(rows)
    assert len(set(rows)) == min(pairs, 20)
    assert not any(index % KEPT_OUT == 0 for keys in fitted for _, index in keys)
    assert sum(map(len, fitted)) >= 32 and max(map(len, fitted)) <= max(32, pairs)


def test_views_are_paired_within_their_picture_and_anew_every_time():
    views = views_of(7, 3, 7, 3, 3, 7, 3, 7, 5, 5)
    torch.manual_seed(0)
    passes = [views.paired() for _ in range(20)]
    for pairs in passes:
        assert sorted(pairs.flatten().tolist()) == list(range(10))
        assert (views.picture[pairs[:, 0]] == views.picture[pairs[:, 1]]).all()
    partners = {frozenset(pair) for pairs in passes for pair in pairs.tolist()}
    assert len(partners) == 6 + 6 + 1  # all pairs of four views, twice, and the only one of two
    pairs = views.at(passes[0], torch.device("cpu"))
    assert torch.equal(pairs.a.flatten(), passes[0][:, 0].float())
    assert torch.equal(pairs.picture, views.picture[passes[0][:, 0]])


def test_stated_errors_are_made_to_cover_new_pairs():
    """A matcher that always says no difference, give or take a hundredth: its errors grow."""
    shape = MatcherShape(3, 8, width=4, hidden=8, content=4)
    matcher = Matcher(shape, (0.2, 0.2, 0.3, 0.3)).eval()
    for parameter in (*matcher.network[-1].parameters(), matcher.scale):
        parameter.data.zero_()
    matcher.network[-1].bias.data[4:8] = -9.0
    random = np.random.default_rng(0)
    boxes = torch.from_numpy(random.uniform(0.2, 0.5, (2000, 4))).float()
    parameters = {"crop": boxes, "flip": torch.zeros(2000, dtype=torch.bool),
                  "rot": torch.zeros(2000, dtype=torch.long)}  # fmt: skip
    views = EncodedViews(torch.zeros(2000, 3, 8, 8), parameters, torch.zeros(2000).long())
    calibrate(matcher, views, spec_of(POLICY))
    pairs = views.at(views.paired(), torch.device("cpu"))
    answer = said(matcher, pairs.a, pairs.b)
    within = (truth(pairs, "crop") - answer["crop"]).abs() < 1.96 * answer["standard_error"]
    assert within.float().mean(0).tolist() == pytest.approx([0.95] * 4, abs=0.02)


def test_strangers_are_never_of_one_picture():
    few = Pairs(torch.zeros(4, 2, 3, 3), torch.ones(4, 2, 3, 3), {}, {}, torch.tensor([5, 5, 1, 2]))
    a, b = strangers(few, torch.full((2, 2, 3, 3), 7.0))
    assert len(a) == len(b) == 3
    assert (a[0] == 7).all() and (b[0] == 7).all() and not (a[1:] == 7).all()


@pytest.mark.parametrize("what", ["paper", "no crop", "one picture"])
def test_what_cannot_be_matched_is_refused(tmp_path, painted, what):
    policy = Policy(size=SIZE)
    kinds = ("flip",) if what == "no crop" else ("crop",)
    convention = "paper" if what == "paper" else "relative"
    spec = Spec(convention, policy, heads_for(kinds, policy, convention), features=128)
    folder = painted(tmp_path / "some", 1 if what == "one picture" else 3, 0)
    network = build_encoder("resnet18-w16", SIZE).network
    images = ViewsDataset(open_images(str(folder)), policy, 0)
    with pytest.raises(AugSelfError, match="--matcher off"):
        fit_matcher(network, images, spec, PREPROCESSING)
