"""A matcher that is trained with the encoder: whom its gradient reaches, what it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch

from augself_hub import AugSelfLoss
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import UsageError
from augself_hub.modeling import maps
from augself_hub.modeling.encoders import Encoder, build_encoder
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training.methods import METHODS
from training.methods.joint import JointMatcher, JointSettings
from training.monitoring.matching import TASK
from training.run import pretraining, publishing
from training.run.objective import Pretraining
from training.run.settings import Settings

POLICY = Policy(size=32)
PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def batch(eight):
    return eight(POLICY)


@pytest.fixture
def build(small_options):
    def made(name, joint=True, **settings):
        torch.manual_seed(0)
        encoder = build_encoder("resnet18-w16", 32)
        augself = AugSelfLoss(encoder.dim, {"crop": 1.0}, POLICY)
        classes = {"classes": 2} if METHODS[name].needs_labels else {}
        method = METHODS[name](encoder, **small_options[name], **classes)
        how = JointSettings(**settings)
        matcher = JointMatcher(method, augself.spec, PREPROCESSING, how, 0) if joint else None
        return Pretraining(method, augself, PREPROCESSING, matcher).train()

    return made


def views_of(batch):
    """Both views, (N, 3, S, S) each, as a step has them."""
    both = {name: torch.cat([batch["w1"][name], batch["w2"][name]]) for name in batch["w1"]}
    views = finish_views(batch["crops"], both, POLICY, PREPROCESSING.mean, PREPROCESSING.std)
    return views.chunk(2)


@pytest.mark.parametrize("method", METHODS)
def test_its_gradient_reaches_the_maps_and_no_target_network(build, method, batch):
    """All of the encoder up to the map, nothing beyond it: of the matcher's loss alone."""
    model = build(method)
    before = {n: b.clone() for n, b in model.method.named_buffers()}
    x1, x2 = views_of(batch)
    labels = (batch["labels"],) if model.method.needs_labels else ()
    model.method(x1, x2, *labels)
    statistics = {n: b.clone() for n, b in model.method.named_buffers()}
    assert any(not torch.equal(before[n], b) for n, b in statistics.items())
    loss = model.joint(model.method, batch["w1"], batch["w2"], model.augself.spec)
    loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    encoder = {n.removeprefix("method.encoder.network.") for n in reached if ".encoder." in n}
    # at 32 pixels the map of 8 cells is that of the first of four stages
    parts = {"embedder" if n.startswith("embedder") else n.split(".layers")[0] for n in encoder}
    assert parts == {"embedder", "encoder.stages.0"}
    assert all(n.startswith(("joint.", "method.encoder.")) for n in reached)
    silent = {n for n, p in model.joint.named_parameters() if p.grad is None}
    assert not silent
    # blank pictures leave no trace in batch statistics, nor a mode
    assert all(torch.equal(b, statistics[n]) for n, b in model.method.named_buffers())
    assert model.method.encoder.training and not any(
        m.maps for m in model.modules() if isinstance(m, Encoder)
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_own_loss_is_what_it_is_without(build, method, batch):
    """Before the first step, bit for bit; and the total is the sum with the weight."""
    with_one, without = build(method, weight=0.5)(**batch), build(method, joint=False)(**batch)
    for name in ("method", "crop", "feature_std"):
        assert torch.equal(with_one[name], without[name]), name
    torch.testing.assert_close(with_one["loss"], without["loss"] + 0.5 * with_one["matcher"])


def test_both_maps_are_the_online_encoders_or_as_the_method_has_its_features(build, batch):
    """By the maps a forward leaves, against those of each view by itself."""
    for method in ("simsiam", "moco"):
        model = build(method).eval()
        x1, x2 = views_of(batch)
        model.method(x1, x2)
        names = model.method.seen_by
        taken = [getattr(model.method, n) for n in dict.fromkeys(names)]
        found = [m for encoder in taken for m in encoder.maps]
        for name, view, got in zip(names, (x1, x2), found, strict=True):
            network = getattr(model.method, name).network
            expected = maps.features_and_map(network, view, model.joint.place)[1]
            torch.testing.assert_close(got, expected)


def test_it_standardises_by_what_the_maps_are_now(build):
    """The first steps are averaged, later ones count 5%; by hand on constant statistics."""
    joint = build("simsiam").joint
    channels = joint.place.channels
    torch.manual_seed(0)
    for level in (1.0, 3.0):
        joint._follow(level + 2 * torch.randn(400, channels, 8, 8))
    torch.testing.assert_close(joint.matcher.mean, torch.full((channels,), 2.0), atol=0.1, rtol=0)
    expected = torch.full((channels,), 2.0)
    torch.testing.assert_close(joint.matcher.deviation, expected, atol=0.1, rtol=0)
    joint.steps.fill_(1000)
    joint._follow(12 + 2 * torch.randn(400, channels, 8, 8))
    torch.testing.assert_close(joint.matcher.mean, torch.full((channels,), 2.5), atol=0.1, rtol=0)


def test_a_dead_channel_is_not_made_loud(build):
    joint = build("simsiam").joint
    maps_ = torch.randn(64, joint.place.channels, 8, 8)
    maps_[:, 0] = 0
    joint._follow(maps_)
    assert joint.matcher.deviation[0] == pytest.approx(0.01, rel=0.1)


def test_it_begins_by_the_seed_and_draws_nothing_of_the_runs_random_numbers(build):
    torch.manual_seed(5)
    model = build("simsiam", joint=False)
    state = torch.get_rng_state()
    how, spec = JointSettings(), model.augself.spec
    first = [
        JointMatcher(
            model.method, spec, model.preprocessing, how, seed
        ).matcher.vote.straight.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_an_encoder_without_maps_is_refused(build, monkeypatch):
    model = build("simsiam", joint=False)
    monkeypatch.setattr(maps, "_square", lambda *_: None)
    with pytest.raises(UsageError, match="gives no feature maps"):
        JointMatcher(model.method, model.augself.spec, model.preprocessing, JointSettings(), 0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, painted):
    """What a run of a minute on painted pictures measured of its matcher, on others."""
    place = tmp_path_factory.mktemp("painted")
    settings = Settings(
        data=str(painted(place / "known", 160, 0)),
        held_out=str(painted(place / "new", 120, 1)),
        output=place / "run",
        method="simclr",
        encoder="resnet18-w16",
        size=64,
        policy={"color": 0.0, "gray": 0.0, "blur": 0.0},
        augself={"crop": 1.0},
        matcher="joint",
        epochs=50.0,
        batch_size=32,
        workers=0,
        monitor_every=0.0,
        report_to=(),
        arguments={"save_strategy": "no"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "find_spec", lambda name: None)  # graphs have tests of their own
        patch.setattr(pretraining, "PAIRS", 600)
        folder = pretraining.pretrain(settings)
    results = json.loads((folder / "evaluation.json").read_text())["results"]
    return {r["dimension"]: r["value"] for r in results if r["task"] == TASK}


@pytest.mark.slow
def test_painted_pictures_are_learned_within_the_stated_error(learned):
    for name in ("y", "x", "height", "width"):
        assert learned[name] > 0.5, (name, learned)
        assert learned[f"{name}_coverage"] > 0.88, (name, learned)


@pytest.mark.slow
def test_mirrored_pairs_and_strangers_are_told(learned):
    assert learned["mirrored"] > 0.9
    assert learned["match"] > 0.9
