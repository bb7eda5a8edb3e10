"""Stated errors made to hold for pictures that nothing was fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

COVERED = 0.95  # of the pairs, within 1.96 stated errors
SLOPES = torch.linspace(0.5, 2, 16)  # tried
SHIFTS, HALVINGS = (-10.0, 10.0), 18  # of log variances, likewise


def covering(off: Callable[[Tensor, Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """(slope, shift), (n,) each, by which log variances become slope * log variance + shift.

    Of every slope the shift is the least by which 95% of all pairs lie within 1.96 errors, and the
    slope is the one of least quantile (pinball) loss of log errors, so that of the sure pairs about
    as many do as of the others. Slopes are tried for all dimensions together, but each keeps its
    own: with these the shifts are found once more, one after the other, since what is said of a
    place depends on what is stated of the sizes. A dimension that no pair shows is left as it is.

    Args:
        off: slope, shift -> (N, n) logs of the errors in multiples of 1.96 of the stated ones;
            NaN where a pair does not show a dimension.
        like: (n,), of the wanted type and device.
    """
    best, shift_of_best = torch.ones_like(like), torch.zeros_like(like)
    least = torch.full_like(like, math.inf)

    def least_shift(slope: Tensor, shift: Tensor, free: Tensor) -> Tensor:
        """The shift with what is `free` (n,) as small as covers enough."""
        low, high = (torch.where(free, end, shift) for end in SHIFTS)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rest = off(slope, middle)
            enough = (rest <= 0).sum(0) / (~rest.isnan()).sum(0) >= COVERED
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return high

    for slope in SLOPES.to(like):
        high = least_shift(slope, shift_of_best, torch.ones_like(like, dtype=torch.bool))
        rest = off(slope, high)
        loss = torch.maximum(COVERED * rest, (COVERED - 1) * rest).nanmean(0)
        better = loss < least
        least = torch.where(better, loss, least)
        best, shift_of_best = (
            torch.where(better, new, old) for new, old in ((slope, best), (high, shift_of_best))
        )
    shown = least < math.inf
    for dimension in reversed(range(len(like))):  # sizes first
        alone = torch.arange(len(like), device=like.device) == dimension
        shift_of_best = least_shift(best, shift_of_best, alone & shown)
    return best, shift_of_best
