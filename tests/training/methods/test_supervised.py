"""Supervised: the mean cross-entropy of both views."""

from __future__ import annotations

import math

import pytest
import torch

from training.methods.supervised import Supervised


def test_cross_entropy_on_each_view(encoder, views):
    method = Supervised(encoder, classes=3)
    labels = [0, 2, 1, 1, 0]
    loss, y1, y2 = method(*views, torch.tensor(labels))
    total = 0.0
    for y in (y1, y2):
        for logits, label in zip(method.classifier(y).double().tolist(), labels, strict=True):
            total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    assert loss.item() == pytest.approx(total / 10, rel=1e-5)


def test_it_asks_for_labels(encoder):
    assert Supervised.needs_labels
    assert Supervised(encoder, classes=7).classifier.weight.shape == (7, 6)
