"""Whether differences say the same."""

from __future__ import annotations

import numpy as np


def same_answers(found, wanted):
    """The same words, and numbers up to what a batch's size changes in the last digits."""
    assert [(d.model, d.convention) for d in found] == [(d.model, d.convention) for d in wanted]
    for one, other in zip(found, wanted, strict=True):
        ours, theirs = flat(one.to_dict()), flat(other.to_dict())
        assert [v for v in ours if type(v) is not float] == [
            v for v in theirs if type(v) is not float
        ]
        np.testing.assert_allclose(
            [v for v in ours if type(v) is float],
            [v for v in theirs if type(v) is float],
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


def flat(told):
    """Keys and values of nested answers, one after the other."""
    if isinstance(told, dict):
        return [leaf for key, value in told.items() for leaf in (key, *flat(value))]
    return [leaf for one in told for leaf in flat(one)] if isinstance(told, list) else [told]
