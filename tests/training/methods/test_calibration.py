"""Stated errors cover what they say, of each dimension by itself and where they hang together."""

from __future__ import annotations

import math

import pytest
import torch

from augself_hub.augmentations.matching import combined
from training.methods.calibration import covering

N = 20_000


def test_a_gaussian_is_covered_by_its_own_deviation():
    """Errors drawn with deviation 2 where 1 is stated: the log variance has to rise by log 4. A
    dimension that no pair shows is left alone.
    """
    torch.manual_seed(0)
    errors = 2 * torch.randn(N, 2)
    errors[:, 1] = torch.nan

    def off(slope, shift):
        return errors.abs().log() - math.log(1.96) - (0.0 * slope + shift) / 2

    slope, shift = covering(off, torch.zeros(2))
    assert shift[0] == pytest.approx(math.log(4), abs=0.05)
    assert (slope[1], shift[1]) == (1, 0)


def test_what_is_used_covers_what_was_asked_for():
    """Of sizes half the log variance is stated, of places all of it: their slopes differ.

    A place is turned round by the sizes, so how far it is off depends on how these are weighed.
    """
    random = torch.Generator().manual_seed(0)
    std = torch.tensor([0.2, 0.2, 0.3, 0.3])
    target = torch.randn(N, 4, generator=random) * std * torch.tensor([1, 1, 2, 2])
    said = []
    for order in (0, 1):
        size, place = target[:, 2:], target[:, :2]
        truth = torch.cat([-place / size.exp(), -size], 1) if order else target
        true = 3 * torch.randn(N, 4, generator=random) - 2  # log variances
        noise = torch.randn(N, 4, generator=random) * (true / 2).exp()
        stated = torch.where(torch.tensor([False, False, True, True]), true / 2, true)
        one = {"flip": torch.full((N, 1), -40.0), "match": torch.zeros(N, 1)}
        said.append({**one, "crop": truth / std + noise, "log_variance": stated})

    def off(slope, shift):
        ab, ba = ({**o, "log_variance": o["log_variance"] * slope + shift} for o in said)
        answer = combined(ab, ba, std, turns=False)
        return ((answer["crop"] - target).abs() / (1.96 * answer["standard_error"])).log()

    slope, shift = covering(off, std)
    assert slope[0] < 1.3 and slope[2] > 1.5
    covered = (off(slope, shift) <= 0).double().mean(0)
    assert covered.tolist() == pytest.approx([0.95] * 4, abs=0.0005)
