"""Predicted beside true differences: rows, and the table with bars that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Dimension, Head, Spec
from serving.demo.answer import Described

HIDDEN = "not visible in a gray picture"
UNTOLD = "not learned by this model"
TITLES = {
    "pair": "The two pictures",
    "crop": "Crop",
    "flip": "Mirroring",
    "color": "Colour",
    "blur": "Blur",
    "rot": "Rotation",
    "sol": "Solarization",
}


@dataclass(frozen=True)
class Row:
    """One number the model predicts about a pair.

    Args:
        true, predicted: in the unit; None where the pictures cannot show it, and what is predicted
            also where the model has not learned it.
        error: the standard error in the unit; None: not measured. of_pair: whether it is of this
            very pair, and not right on average alone.
        span: the largest value the bars show.
    """

    kind: str
    name: str
    unit: str
    true: float | None
    predicted: float | None
    error: float | None
    span: float
    of_pair: bool = False

    @property
    def chance(self) -> bool:
        """Is it a probability? Then the truth is yes or no."""
        return self.unit == "probability"


def compare(
    spec: Spec,
    a: Parameters,
    b: Parameters,
    predicted: dict[str, np.ndarray],
    errors: dict[str, np.ndarray] | None = None,
) -> list[Row]:
    """One pair's true and predicted differences, in the order of the model's heads.

    Args:
        a, b: parameters of the two views (N = 1); `gray` is what the pictures look like.
        predicted: kind -> (1, outputs) in physical units.
        errors: kind -> (1, n) standard errors of this very pair; of other kinds they are the
            model's, which hold on average.
    """
    rows: list[Row] = []
    for kind, head in spec.heads.items():
        true, seen = targets(kind, a, b, spec.policy, spec.convention)
        told = list(_ROWS[head.type](kind, head, true[0], seen[0], predicted[kind][0]))
        if errors and kind in errors:
            own = map(float, errors[kind][0])
            told = [replace(r, error=e, of_pair=True) for r, e in zip(told, own, strict=True)]
        rows += told
    return rows


def _regression(
    kind: str, head: Head, true: np.ndarray, seen: np.ndarray, predicted: np.ndarray
) -> Iterator[Row]:
    for d, t, shown, p in zip(head.dimensions, true, seen, predicted, strict=True):
        true_value, predicted_value = (float(t), _told(d, p)) if shown else (None, None)
        # tanh outputs end at 1; else three standard deviations hold nearly every pair.
        span = 1.0 if head.tanh else 3 * d.std
        yield Row(kind, d.name, d.unit, true_value, predicted_value, d.standard_error, span)


def _binary(
    kind: str, head: Head, true: np.ndarray, seen: np.ndarray, predicted: np.ndarray
) -> Iterator[Row]:
    d = head.dimensions[0]
    yield Row(kind, d.name, d.unit, float(true[0]), _told(d, predicted[0]), None, 1.0)


def _classes(
    kind: str, head: Head, true: np.ndarray, seen: np.ndarray, predicted: np.ndarray
) -> Iterator[Row]:
    d = head.dimensions[0]
    for k, p in enumerate(predicted):
        name = f"{d.name.replace('_', ' ')} = {k}"
        yield Row(kind, name, d.unit, float(true[0] == k), _told(d, p), None, 1.0)


def _told(dimension: Dimension, value: float) -> float | None:
    return None if dimension.learned is False else float(value)


_ROWS = {"regression": _regression, "binary": _binary, "classes": _classes}


def truth(rows: Sequence[Row]) -> Described:
    """The true differences in the form of the model's answer."""
    found: Described = {}
    for row in rows:
        if row.unit != "probability":
            record = {"name": row.name, "value": row.true, "standard_error": row.span / 50}
            found.setdefault(row.kind, []).append(record | {"reason": "not observable"})
        elif row.kind == "rot":
            found.setdefault("rot", {"quarter_turns": []})["quarter_turns"].append(row.true)
        else:
            found[row.kind] = {row.name: row.true}
    return found


def table(rows: list[Row]) -> str:
    """The rows as an HTML table: what, true, predicted, and a pair of bars.

    Names and units come from the model's folder, so they are escaped like any foreign text.
    """
    body, kind = [], None
    for row in rows:
        if row.kind != kind:
            body.append(
                f'<tr><th class="kind" colspan="4" scope="rowgroup">{TITLES[row.kind]}</th></tr>'
            )
        kind = row.kind
        body.append(_line(row))
    return f"<table>{_HEAD}<tbody>{''.join(body)}</tbody></table>"


_HEAD = (
    '<thead><tr><th scope="col">Difference</th><th scope="col"><i class="true"></i>True</th>'
    '<th scope="col"><i class="predicted"></i>Predicted</th><td></td></tr></thead>'
)


def _line(row: Row) -> str:
    name = f'<th scope="row">{escape(row.name)}<small>{escape(row.unit)}</small></th>'
    if row.true is None:
        return f'<tr>{name}<td class="hidden" colspan="3">{HIDDEN}</td></tr>'
    true = ("no", "yes")[int(row.true)] if row.chance else _number(row.true, row)
    if row.predicted is None:
        return f'<tr>{name}<td>{true}</td><td class="hidden" colspan="2">{UNTOLD}</td></tr>'
    on_average = "" if row.of_pair else " on average"
    error = "" if row.error is None else f"<small>± {row.error:.2f}{on_average}</small>"
    predicted = f"{row.predicted:.0%}" if row.chance else _number(row.predicted, row)
    cells = f"<td>{true}</td><td>{predicted}{error}</td>"
    return f'<tr>{name}{cells}<td class="bars">{_bars(row)}</td></tr>'


def _number(value: float, row: Row) -> str:
    digits = 2 if row.span > 0.5 else 3
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _bars(row: Row) -> str:
    """Two bars from a common zero in the middle, the predicted one with its standard error.

    What is larger than the span ends at its edge; what is not known has none.
    """
    bars = (
        f'<rect class="{name}" x="{100 + min(length, 0):.1f}" y="{y}" '
        f'width="{abs(length):.1f}" height="7"/>'
        for name, y, length in (
            ("true", 2, _length(row.true or 0.0, row.span)),
            ("predicted", 11, _length(row.predicted or 0.0, row.span)),
        )
    )
    return (
        '<svg viewBox="0 0 200 20" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(bars)}{_whisker(row)}"
        '<rect class="zero" x="99.5" y="0" width="1" height="20"/></svg>'
    )


def _whisker(row: Row) -> str:
    """One standard error to both sides of the prediction."""
    if row.error is None or row.predicted is None:
        return ""
    low, high = (_length(row.predicted + side * row.error, row.span) for side in (-1, 1))
    return (
        f'<rect class="error" x="{100 + low:.1f}" y="13.7" width="{high - low:.1f}" height="1.6"/>'
    )


def _length(value: float, span: float) -> float:
    return 100 * float(np.clip(value / span, -1, 1))


STYLE = """
table { width: 100%; border-collapse: collapse; font-size: var(--text-md); }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; color: var(--body-text-color); }
thead th { font-weight: 600; }
tr > th:first-child { text-align: left; font-weight: 400; padding-left: 0; }
thead tr > th:first-child, tr > th.kind { font-weight: 600; }
tr > th.kind { padding-top: 14px; border-bottom: 1px solid var(--border-color-primary); }
small { display: block; color: var(--body-text-color-subdued); font-size: var(--text-xs); }
td.hidden { text-align: left; color: var(--body-text-color-subdued); font-style: italic; }
td.bars { width: 99%; padding-right: 0; }
svg { display: block; width: 100%; height: 22px; }
i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; }
i.true { background: #0d9488; } rect.true { fill: #0d9488; }
i.predicted { background: #a855f7; } rect.predicted { fill: #a855f7; }
rect.error { fill: var(--body-text-color); }
rect.zero { fill: var(--body-text-color-subdued); }
@media (max-width: 480px) { table { font-size: var(--text-sm); } th, td { padding: 4px; } }
"""
