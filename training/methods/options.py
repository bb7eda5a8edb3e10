"""Hyperparameters of a method, or of the matcher: what its constructor takes with a default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from augself_hub.errors import UsageError

MOST = {"momentum": 1.0}
MAY_BE_0 = {"frozen_steps", "decay"}


def options_of(method: type) -> dict[str, int | float | bool]:
    """Name -> default, in the constructor's order."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def checked_options(
    name: str, method: type, given: Mapping[str, Any]
) -> dict[str, int | float | bool]:
    """What was given, each value of its option's type.

    Raises:
        UsageError: an option the method has not, a value of another type or out of range.
    """
    known = options_of(method)
    for option, value in given.items():
        if option not in known:
            has = ", ".join(f"{n}={v}" for n, v in known.items()) or "none"
            raise UsageError(f"{name} has no option {option!r}; its options are: {has}")
        kind = type(known[option])
        if kind is bool:
            if type(value) is not bool:
                raise UsageError(f"{name} option {option}={value} must be True or False")
            continue
        fits = type(value) in (int, kind)
        above_least = value >= 0 if fits and option in MAY_BE_0 else fits and value > 0
        if not above_least or not value <= MOST.get(option, float("inf")):
            wanted = "a whole number" if kind is int else "a number"
            most = f" up to {MOST[option]:g}" if option in MOST else ""
            above = "of 0 or more" if option in MAY_BE_0 else f"above 0{most}"
            raise UsageError(f"{name} option {option}={value} must be {wanted} {above}")
    return {option: type(known[option])(value) for option, value in given.items()}
