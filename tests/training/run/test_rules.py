"""What a setting may be, and the line that says so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from augself_hub.errors import UsageError
from training.run.rules import Rule


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (Rule(float), 2, 2.0),
        (Rule(float, 0, 1), np.float32(0.5), 0.5),
        (Rule(int, 1), np.int64(3), 3),
        (Rule(bool), False, False),
        (Rule(int, 1, optional=True), None, None),
        (Rule(str, choices=("a", "b")), "b", "b"),
    ],
)
def test_a_value_comes_back_in_its_own_type(rule, value, expected):
    checked = rule.checked("--x", value)
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        (Rule(float, 0, open=True), 0, "--x 0: give a number above 0"),
        (Rule(float, 0, 1), 2, "--x 2: give a number from 0 to 1"),
        (Rule(float), math.nan, "--x nan: give a number"),
        (Rule(float), math.inf, "--x inf: give a number"),
        (Rule(float), "1", "--x 1: give a number"),
        (Rule(float), True, "--x True: give a number"),
        (Rule(int, 1), 2.5, "--x 2.5: give a whole number of 1 or more"),
        (Rule(int, 1), 0, "--x 0: give a whole number of 1 or more"),
        (Rule(int, 1), True, "--x True: give a whole number of 1 or more"),
        (Rule(bool), 1, "--x 1: give True or False"),
        (Rule(bool), "yes", "--x yes: give True or False"),
        (Rule(str), 3, "--x 3: give a text"),
        (Rule(str), None, "--x None: give a text"),
        (Rule(str, choices=("a", "b", "c")), "d", "--x d: give a, b or c"),
    ],
)
def test_anything_else_is_one_line_that_says_what_to_give(rule, value, said):
    with pytest.raises(UsageError) as refused:
        rule.checked("--x", value)
    assert str(refused.value) == said
