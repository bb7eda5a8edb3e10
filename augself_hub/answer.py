"""Difference: what a model says of a pair of images, to be printed, kept and read.

The encoder (`serving.encoder`), the client of a server and the torch model answer with it alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from augself_hub.augmentations.spec import Spec
from augself_hub.commands import table
from augself_hub.differences import UNLIKE, Answered, records
from augself_hub.sentences import sentences

COLUMNS = ("augmentation", "name", "value", "unit", "standard error")


@dataclass(frozen=True, repr=False)
class Difference:
    """What takes image a to image b; `print` shows it as a table, a notebook likewise.

    Args:
        model: its name. convention: its spec's, `relative` or `paper`.
        differences: kind -> as /v1/augmentations answers; what cannot be told is None and has a
            reason: not learned, not observable, beyond what was trained on, unlike pictures.
        match: probability that both images show one thing; None: the model cannot tell.
    """

    model: str
    convention: str
    differences: dict[str, Any]
    match: float | None

    @classmethod
    def of(cls, model: str, spec: Spec, answered: Answered) -> list[Difference]:
        """From what was computed of some pairs, one each."""
        return [
            cls(model, spec.convention, record["differences"], record["match"])
            for record in records(spec, answered)
        ]

    @property
    def unlike(self) -> bool:
        """Whether the model takes them for images of two things, of which it says nothing."""
        return any(reason.startswith(UNLIKE) for *_, value, _, reason in self.rows())

    def to_dict(self) -> dict[str, Any]:
        """What `augself predict --json` prints."""
        return {"model": self.model, "match": self.match, "differences": self.differences}

    def words(self) -> str:
        """The same as sentences, one a line, with their numbers in brackets.

        ± is one standard error; "No clear difference" is said of what is not larger than that.
        """
        said = sentences(self.differences, self.match, self.convention)
        return "\n".join(f"{one.text} ({one.number})" if one.number else one.text for one in said)

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """(augmentation, name, value, unit, standard error or why there is no value)."""
        for kind, told in self.differences.items():
            if isinstance(told, list):
                yield from (_row(kind, record) for record in told)
                continue
            name, value = next((n, v) for n, v in told.items() if n not in ("reason", "head"))
            if value is None:
                yield kind, name, "-", "probability", told["reason"]
                continue
            values = dict(enumerate(value)) if isinstance(value, list) else {"": value}
            for which, p in values.items():
                yield kind, f"{name} {which}".strip(), f"{p:.3f}", "probability", ""

    def __str__(self) -> str:
        text = table(COLUMNS, list(self.rows()), numbers="value")
        return text if self.match is None else f"{text}\n{self._matched()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table, for notebooks; what cannot be told is gray."""
        heads = "".join(f"<th style='text-align: left'>{head}</th>" for head in COLUMNS)
        rows = "".join(
            f"<tr style='opacity: {0.55 if row[2] == '-' else 1}'>"
            + "".join(
                f"<td style='text-align: {side}'>{escape(cell)}</td>"
                for cell, side in zip(row, ("left", "left", "right", "left", "left"), strict=True)
            )
            + "</tr>"
            for row in self.rows()
        )
        below = "" if self.match is None else f"<p>{escape(self._matched())}</p>"
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{below}"

    def _matched(self) -> str:
        return f"both pictures show one thing: probability {self.match:.3f}"


def _row(kind: str, record: dict[str, Any]) -> tuple[str, str, str, str, str]:
    if record["value"] is None:
        return kind, record["name"], "-", record["unit"], record["reason"]
    error = record["standard_error"]
    known = "not measured" if error is None else f"{error:.3f}"
    if error is not None and record.get("standard_error_of") != "pair":
        known += " on average"
    return kind, record["name"], f"{record['value']:+.3f}", record["unit"], known
