"""What takes long says how far it is: in lines where nobody looks at a bar."""

from __future__ import annotations

import re

import pytest
import torch

from augself_hub import AugSelfLoss, AugSelfModel, progress
from augself_hub.augmentations.spec import Policy
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.preprocess import Preprocessing
from augself_hub.progress import counted
from training.data.batches import ViewsDataset
from training.data.sources import open_images
from training.methods.uncertainty import fit_uncertainty
from training.monitoring.awareness import held_out_pairs
from training.monitoring.monitor import features


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "shows_bars", lambda: False)
    caplog.set_level("INFO")


def test_a_line_is_said_when_eight_seconds_have_passed(monkeypatch, caplog):
    """Parts of three seconds: after nine, eighteen and twenty-seven; those of half a second say
    nothing."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    for seconds in (3.0, 0.5):
        done = []
        for part in counted(["ab", "cde"] * 5, 25, "encoding views", "pair"):
            now += seconds
            done.append(part)
        assert done == ["ab", "cde"] * 5
    assert caplog.messages == [
        "encoding views: 7 of 25 pairs, 9 s",
        "encoding views: 15 of 25 pairs, 18 s",
        "encoding views: 22 of 25 pairs, 27 s",
    ]


def test_a_part_is_done_when_the_next_is_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    parts = counted(["ab", "cde"], 5, "work", "image")
    next(parts)
    assert caplog.messages == []
    next(parts)
    assert caplog.messages == ["work: 2 of 5 images, 0 s"]


def test_what_follows_a_runs_last_step_is_never_silent(monkeypatch, caplog, photo_folder):
    """Every part of it says a line where none may wait."""
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    policy = Policy(size=32)
    torch.manual_seed(0)
    encoder = build_encoder("resnet18-w16", 32)
    loss = AugSelfLoss(encoder.dim, {"color": 1}, policy)
    preprocessing = Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD)
    model = AugSelfModel(encoder.network, loss.heads, loss.spec, preprocessing).eval()
    images = ViewsDataset(open_images(str(photo_folder)), policy, 0)
    held_out_pairs(model, images, 120)
    features(model, images.images)
    fit_uncertainty(model, images, pairs=80)
    said = [re.sub(r", \d+ s$", "", message) for message in caplog.messages]
    assert [m for m in said if not m.startswith("learning")] == [
        "looking at held-out views: 100 of 120 pairs",
        "looking at held-out views: 120 of 120 pairs",
        "taking features: 40 of 40 images",
        "encoding views: 64 of 80 pairs",
        "encoding views: 80 of 80 pairs",
        "encoding views: 40 of 40 pairs",
    ]
    assert [m for m in said if m.startswith("learning")] == [
        f"learning errors of each pair: {80 * n} of 960 pairs" for n in range(1, 13)
    ]
