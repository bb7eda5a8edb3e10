"""What a setting may be: its type and range, and the one line that says so."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from augself_hub.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """What values a setting takes.

    Args:
        type: int, float, bool or str. Whole numbers are floats, too; bools are nothing but bools.
        least, most: the range of a number, both included; with `open` least itself is not.
        choices: the words that are allowed; empty for any.
        optional: None is allowed.
    """

    type: type
    least: float = -math.inf
    most: float = math.inf
    open: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    def checked(self, name: str, value: Any) -> Any:
        """The value in its own type.

        Raises:
            UsageError: another type, not finite or out of range; says what to give.
        """
        if value is None and self.optional:
            return None
        wanted = {int: numbers.Integral, float: numbers.Real}.get(self.type)
        if wanted is not None and isinstance(value, wanted) and not isinstance(value, bool):
            number = self.type(value)
            outside = not self.least <= number <= self.most or (self.open and number == self.least)
            if -math.inf < number < math.inf and not outside:
                return number
        elif (self.type is bool and isinstance(value, bool)) or (
            self.type is str and isinstance(value, str) and value in (self.choices or (value,))
        ):
            return value
        raise UsageError(f"{name} {value}: give {self}")

    def __str__(self) -> str:
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        kinds = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        kind, bounded = kinds[self.type], math.isfinite(self.most)
        least, most = (f"{n}" if isinstance(n, int) else f"{n:g}" for n in (self.least, self.most))
        if self.open:
            return f"{kind} above {least}" + (f", {most} at most" if bounded else "")
        if bounded:
            return f"{kind} from {least} to {most}"
        return f"{kind} of {least} or more" if math.isfinite(self.least) else kind
