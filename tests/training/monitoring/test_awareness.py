"""What counts as learned, and how strangers are told: against other people's arithmetic."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from augself_hub import AugSelfLoss, AugSelfModel
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.matcher import Matcher, MatcherShape
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.preprocess import Preprocessing
from training.data.batches import ViewsDataset
from training.data.sources import Images, open_images
from training.monitoring import awareness, matching
from training.monitoring.awareness import _match, held_out_pairs, scores, with_results
from training.monitoring.matching import matched_pairs

N = 2000
SPEC = Spec("relative", Policy(), heads_for(("crop", "flip"), Policy()), features=8)


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crop_records(share: float, image: torch.Tensor | None = None) -> list[dict]:
    """Of answers that explain `share` of each target's variance."""
    target, noise = numbers(0), numbers(1)
    value = share * target + (share * (1 - share)) ** 0.5 * noise
    mask = torch.ones(N, 4, dtype=torch.bool)
    return scores("crop", SPEC.heads["crop"], value, target, mask, image)


def flip_records(accuracy: float) -> list[dict]:
    truth = (torch.arange(N) % 2).double()
    right = torch.from_numpy(np.random.default_rng(0).random(N) < accuracy)
    value = torch.where(right, truth, 1 - truth)[:, None]
    return scores("flip", SPEC.heads["flip"], value, truth[:, None], torch.ones(N, 1) > 0)


@pytest.mark.parametrize(("share", "learned"), [(0.0, False), (0.03, False), (0.2, True)])
def test_a_dimension_is_learned_where_its_r_squared_is_surely_worth_something(share, learned):
    for record in crop_records(share):
        assert record["learned"] is learned
        low, high = record["confidence_interval"]
        assert low <= record["value"] <= high and record["value"] == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("accuracy", "learned"), [(0.5, False), (0.54, False), (0.6, True)])
def test_an_accuracy_hardly_above_the_more_frequent_answer_is_not_learned(accuracy, learned):
    (record,) = flip_records(accuracy)
    assert record["learned"] is learned
    low, high = record["confidence_interval"]
    expected = 1.96 * (record["value"] * (1 - record["value"]) / N) ** 0.5  # binomial
    assert (high - low) / 2 == pytest.approx(expected, rel=0.12)


def test_pairs_of_one_image_are_drawn_together():
    """Every pair ten times over: no more is known, and the interval must not shrink."""
    target, noise = numbers(0)[:200], numbers(1)[:200]
    value, mask = 0.3 * target + 0.4 * noise, torch.ones(200, 4, dtype=torch.bool)
    head = SPEC.heads["crop"]
    once = scores("crop", head, value, target, mask)[0]["confidence_interval"]
    many = [tensor.repeat(10, 1) for tensor in (value, target, mask)]
    image = torch.arange(200).repeat(10)
    again = scores("crop", head, *many, image)[0]["confidence_interval"]
    assert again == pytest.approx(once, abs=1e-9)
    apart = scores("crop", head, *many)[0]["confidence_interval"]
    assert apart[1] - apart[0] < 0.5 * (once[1] - once[0])


def test_of_few_images_nothing_is_said():
    for record in crop_records(0.5, torch.arange(N) % 19):
        assert "learned" not in record and "confidence_interval" not in record


def test_strangers_are_told_by_the_cosine_and_the_spec_keeps_how():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(N, 8, generator=generator, dtype=torch.float64)
    ya, yb = (own + 0.8 * torch.randn(own.shape, generator=generator).double() for _ in (0, 1))
    gray = torch.zeros(N, dtype=torch.bool)
    other = np.roll(np.arange(N), -N // 2)
    strangers = torch.arange(N), torch.from_numpy(other)
    (record,) = _match(ya, yb, (gray, gray), strangers)
    cosines = torch.cat([torch.cosine_similarity(ya, b, dim=1) for b in (yb, yb[other])]).numpy()
    truth = np.repeat([1, 0], N)
    assert record["value"] == pytest.approx(roc_auc_score(truth, cosines))
    cut = with_results(SPEC, [record]).match.alike
    probability = 1 / (1 + np.exp(-(cut.slope * cosines + cut.intercept)))
    assert (probability[:N] < cut.threshold).mean() == pytest.approx(0.05, abs=0.001)
    assert (probability[N:] < cut.threshold).mean() == pytest.approx(cut.detection_rate)
    deciles = np.quantile(probability, np.linspace(0, 1, 11))
    for low, high in pairwise(deciles):  # it is a probability
        inside = (probability >= low) & (probability <= high)
        assert truth[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.08)


def test_one_gray_picture_is_a_case_of_its_own():
    y = numbers(3)
    gray = torch.arange(N) % 4 == 0, torch.zeros(N, dtype=torch.bool)
    names = [
        record["dimension"]
        for record in _match(y, y, gray, (torch.arange(N), torch.arange(N).flip(0)))
    ]
    assert names == ["alike", "one_gray"]


def test_the_spec_takes_what_was_measured():
    spec = with_results(SPEC, [*crop_records(0.2), *flip_records(0.5)])
    x, mirrored = spec.heads["crop"].dimensions[1], spec.heads["flip"].dimensions[0]
    assert (x.learned, mirrored.learned) == (True, False)
    assert x.standard_error == pytest.approx(0.89, abs=0.05)  # sqrt(1 - 0.2) of a target of 1
    assert mirrored.standard_error is None and mirrored.baseline == pytest.approx(0.5)
    assert Spec.from_json(spec.to_json()) == spec


class Stubs(ViewsDataset):
    """3,000 images, thirty to a class, that are drawn and never read; `seen` are their rows."""

    def __init__(self, groups=None):
        names = [f"{i:04d}" for i in range(3000)]
        labels = [i // 30 for i in range(3000)]
        images = Images(names, labels, [str(c) for c in range(100)], names, groups=groups)
        super().__init__(images, Policy(size=16), 0)
        self.seen = []

    def __getitems__(self, keys):
        self.seen += [index for _, index in keys]
        items = []
        for epoch, index in keys:
            w = draw(self.policy, (0, epoch, index, [0, 1]), 100, 100)
            w1, w2 = ({n: v[[side]] for n, v in w.items()} for side in (0, 1))
            crops = np.full((2, 16, 16, 3), index % 256, np.uint8)
            items.append({"crops": crops, "w1": w1, "w2": w2, "label": 0, "skipped": []})
        return items


@pytest.fixture
def model():
    encoder = build_encoder("resnet18-w16", 16)
    loss = AugSelfLoss(encoder.dim, {"crop": 1, "flip": 1}, Policy(size=16))
    preprocessing = Preprocessing(16, IMAGENET_MEAN, IMAGENET_STD)
    model = AugSelfModel(encoder.network, loss.heads, loss.spec, preprocessing)
    std = tuple(d.std for d in loss.spec.heads["crop"].dimensions)
    return model.with_matcher(Matcher(MatcherShape(16, 4, width=4, hidden=8), std), -4).eval()


@pytest.mark.parametrize("measure", [held_out_pairs, matched_pairs])
def test_pairs_are_of_the_whole_list_and_strangers_of_other_classes(model, monkeypatch, measure):
    """The first 600 rows are the first twenty classes of a hundred."""
    module = awareness if measure is held_out_pairs else matching
    images, two = Stubs(), []
    strangers = module.strangers

    def noted(kin, random):
        rows, other = strangers(kin, random)
        two.extend(zip(kin[rows].tolist(), kin[other].tolist(), strict=True))
        return rows, other

    monkeypatch.setattr(module, "strangers", noted)
    measure(model, images, 600)
    assert len(set(images.seen)) == 600
    counts = np.bincount(np.array(images.seen) // 300, minlength=10)
    assert counts.min() > 35 and counts.max() < 85
    assert len(two) == 600 and all(a != b for a, b in two)
    assert {a for a, _ in two} <= set(range(100))  # classes, and no rows
    assert len({(a, b) for a, b in two}) > 550


@pytest.mark.parametrize("measure", [held_out_pairs, matched_pairs])
def test_an_interval_is_over_groups_where_they_are_known(model, measure):
    """Of three thousand images in 21 groups no more is known than of so many; of 19 too little."""
    alone, grouped, few = (
        {r["dimension"]: r for r in measure(model, Stubs(groups), 600)}
        for groups in (None, [i % 21 for i in range(3000)], [i % 19 for i in range(3000)])
    )
    values = {each["mirrored"]["value"] for each in (alone, grouped, few)}
    assert len(values) == 1
    of = "confidence_interval"
    assert alone["mirrored"][of] != grouped["mirrored"][of] and of not in few["mirrored"]


@pytest.mark.parametrize("measure", [held_out_pairs, matched_pairs])
def test_where_all_pictures_are_of_one_thing_there_are_no_strangers(model, measure):
    """Nothing is said of match, and the rest is."""
    said = {r["dimension"] for r in measure(model, Stubs([0] * 3000), 40)}
    assert "mirrored" in said and "match" not in said


def test_of_gray_photographs_no_saturation_and_no_hue_are_scored(photo_folder, tmp_path):
    """They are what no pair shows, and count as not learned; with pairs of one coloured, too."""
    for number, path in enumerate(sorted(photo_folder.rglob("*.*"))[:24]):
        Image.open(path).convert("L").convert("RGB").save(tmp_path / f"{number:02d}.jpg")
    policy = Policy(size=16, gray=0.3)
    encoder = build_encoder("resnet18-w16", 16)
    loss = AugSelfLoss(encoder.dim, {"color": 1}, policy)
    preprocessing = Preprocessing(16, IMAGENET_MEAN, IMAGENET_STD)
    model = AugSelfModel(encoder.network, loss.heads, loss.spec, preprocessing).eval()
    results = held_out_pairs(model, ViewsDataset(open_images(str(tmp_path)), policy, 0), 60)
    names = [r["dimension"] for r in results if r["kind"] == "color"]
    assert names == ["brightness", "brightness_sign", "contrast"]
    assert [r["dimension"] for r in results if r["kind"] == "match"] == ["alike"]
    marks = with_results(model.spec, results).heads["color"].dimensions
    assert [d.score is None for d in marks] == [False, False, True, True]
    assert [d.learned for d in marks[2:]] == [False, False]
