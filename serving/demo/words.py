"""A predicted difference as sentences: what is different, by how much, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from augself_hub.augmentations.spec import Dimension, Head, Spec
from serving.demo.comparison import TITLES
from serving.inference.differences import BEYOND, not_learned, reason

SURE = 0.75  # a probability beyond which, or below its complement, yes or no is said
LEARNT = 0.95  # of guessing's error: where no mark says so, a head with more has learnt nothing
_FRACTIONS = {
    0.1: "a tenth",
    0.2: "a fifth",
    0.25: "a quarter",
    1 / 3: "a third",
    0.5: "half",
    2 / 3: "two thirds",
    0.75: "three quarters",
    1.0: "all",
}


@dataclass(frozen=True)
class Sentence:
    """One dimension of the difference in words.

    Args:
        kind: the augmentation it belongs to. number: value, error and unit, or nothing.
        told: False where the pictures or the model cannot tell.
    """

    kind: str
    text: str
    number: str
    told: bool = True


@dataclass(frozen=True)
class _Phrase:
    """How a signed number is said. `amount` fills the braces."""

    noun: str
    more: str
    less: str
    amount: Callable[[float], str]


def _part(value: float) -> str:
    """0.19 -> a fifth of."""
    size = abs(value)
    if size > 1.1:
        return f"{size:.1f} times"
    nearest = min(_FRACTIONS, key=lambda fraction: abs(fraction - size))
    return f"about {_FRACTIONS[nearest]} of" if size > 0.07 else "a little of"


def _times(value: float) -> str:
    return f"{math.exp(value):.2g} times"


def _degrees(value: float) -> str:
    return f"{abs(value) * 360:.0f} degrees"


def _pixels(value: float) -> str:
    return f"{abs(value):.1f} pixels"


def _share(value: float) -> str:
    return f"{abs(value):.0%}"


_PHRASES = {
    "y": _Phrase(
        "the height at which b is framed",
        "b is framed lower, by {} a's height",
        "b is framed higher, by {} a's height",
        _part,
    ),
    "x": _Phrase(
        "where b is framed sideways",
        "b is framed further right, by {} a's width",
        "b is framed further left, by {} a's width",
        _part,
    ),
    "height": _Phrase(
        "how much b shows from top to bottom",
        "b shows more from top to bottom: {} what a shows",
        "b shows less from top to bottom: {} what a shows",
        _times,
    ),
    "width": _Phrase(
        "how much b shows from side to side",
        "b shows more from side to side: {} what a shows",
        "b shows less from side to side: {} what a shows",
        _times,
    ),
    "brightness": _Phrase(
        "brightness", "b is brighter: {} a's brightness", "b is darker: {} a's brightness", _times
    ),
    "contrast": _Phrase(
        "contrast", "b has more contrast: {} a's", "b has less contrast: {} a's", _times
    ),
    "saturation": _Phrase(
        "saturation",
        "b is more colourful: {} a's saturation",
        "b is less colourful: {} a's saturation",
        _times,
    ),
    "hue": _Phrase(
        "hue",
        "b's hues are turned by {}, from red towards yellow",
        "b's hues are turned by {}, from red towards violet",
        _degrees,
    ),
    "sigma": _Phrase("sharpness", "b is more blurred, by {}", "b is sharper, by {}", _pixels),
    "inverted": _Phrase(
        "solarization",
        "more of b is inverted, by {} of the range",
        "less of b is inverted, by {} of the range",
        _share,
    ),
}


def sentences(
    spec: Spec,
    difference: dict[str, np.ndarray],
    gray: bool,
    match: tuple[float, bool] | None = None,
) -> list[Sentence]:
    """What takes picture a to picture b, in the order of the model's heads.

    Args:
        difference: kind -> (outputs,) in physical units.
        gray: at least one of the two pictures is gray.
        match: of `matching`; of unlike pictures nothing else is said.
    """
    if match is not None and match[1]:
        text = (
            "These look like two different pictures, and the model has only learned how two "
            "views of one thing differ: it says nothing about them"
        )
        return [Sentence("pair", text, f"probability of one thing {match[0]:.0%}", told=False)]
    said: list[Sentence] = []
    for kind, head in spec.heads.items():
        values, first = difference[kind], head.dimensions[0]
        if head.type != "regression" and first.learned is False:
            noun = {"mirrored": "mirroring", "same": "mirroring"}.get(first.name, "rotation")
            text = f"{noun}: this model has not learned it"
            said.append(Sentence(kind, _capital(text), not_learned(first), told=False))
        elif head.type == "binary":
            said.append(_yes_or_no(kind, head.dimensions[0].name, float(values[0])))
        elif head.type == "classes":
            said.append(_turned(kind, values))
        else:
            said += _numbers(kind, head, values, gray, spec.convention)
    return said


def _numbers(
    kind: str, head: Head, values: np.ndarray, gray: bool, convention: str
) -> Iterator[Sentence]:
    for dimension, value in zip(head.dimensions, values, strict=True):
        if convention == "paper":
            why = reason(dimension, float(value), gray)
            number = _number(dimension, float(value)) if why is None else why
            yield Sentence(kind, f"{dimension.name}, a minus b", number, told=why is None)
        else:
            yield _number_said(kind, dimension, float(value), gray)


def _number_said(kind: str, dimension: Dimension, value: float, gray: bool) -> Sentence:
    phrase, error = _PHRASES[dimension.name], dimension.standard_error or 0.0
    if dimension.learned is False:
        text = f"{phrase.noun}: this model has not learned it"
        return Sentence(kind, _capital(text), not_learned(dimension), told=False)
    if gray and dimension.needs_color:
        text = f"{phrase.noun}: the pictures cannot show it, at least one of them is gray"
        return Sentence(kind, _capital(text), "", told=False)
    why = reason(dimension, value, gray)
    if why is not None and why.startswith(BEYOND):
        text = f"{phrase.noun}: the answer lies {BEYOND}"
        return Sentence(kind, _capital(text), why.removeprefix(f"{BEYOND}: "), told=False)
    number = _number(dimension, value)
    if dimension.learned is None and error > LEARNT * dimension.std:
        text = f"{phrase.noun}: this model cannot tell"
        return Sentence(kind, _capital(text), number, told=False)
    if abs(value) <= error:
        return Sentence(kind, f"No clear difference in {phrase.noun}", number, told=False)
    text = (phrase.more if value > 0 else phrase.less).format(phrase.amount(value))
    return Sentence(kind, _capital(text), number)


def _number(dimension: Dimension, value: float) -> str:
    error = dimension.standard_error
    known = "error not measured" if error is None else f"± {error:.2f} on average"
    return f"{value:+.2f} {known}, {dimension.unit}"


def _yes_or_no(kind: str, name: str, p: float) -> Sentence:
    yes, no, unsure = {
        "mirrored": ("b is mirrored", "b is not mirrored", "whether b is mirrored"),
        "same": ("Neither or both are mirrored", "One is mirrored", "whether one is mirrored"),
    }[name]
    number = f"probability {p:.0%}"
    if 1 - SURE < p < SURE:
        return Sentence(kind, f"The model cannot tell {unsure}", number, told=False)
    return Sentence(kind, _capital(yes if p >= SURE else no), number)


def _turned(kind: str, values: np.ndarray) -> Sentence:
    turns, p = int(values.argmax()), float(values.max())
    number = f"probability {p:.0%}"
    if p < SURE:
        return Sentence(kind, "The model cannot tell how b is turned", number, told=False)
    text = (
        "B is not turned",
        "B is turned a quarter to the left",
        "B is upside down",
        "B is turned a quarter to the right",
    )[turns]
    return Sentence(kind, text, number)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def listed(said: list[Sentence]) -> str:
    """The sentences as HTML, under a heading for each augmentation."""
    if not said:
        return "<p>This model has no AugSelf heads, so it says nothing about differences.</p>"
    parts, kind = [], ""
    for sentence in said:
        if sentence.kind != kind:
            parts.append(f"{'</ul>' if kind else ''}<h4>{TITLES[sentence.kind]}</h4><ul>")
        kind = sentence.kind
        mark = "told" if sentence.told else "untold"
        number = f"<small>{escape(sentence.number)}</small>"
        parts.append(f'<li class="{mark}">{escape(sentence.text)}{number}</li>')
    return f"{''.join(parts)}</ul>"


STYLE = """
h4 { margin: 16px 0 4px; font-weight: 600; border-bottom: 1px solid var(--border-color-primary); }
ul { list-style: none; margin: 0; padding: 0; }
li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px;
  padding: 4px 0; }
li.untold { color: var(--body-text-color-subdued); }
small { color: var(--body-text-color-subdued); font-size: var(--text-sm);
  font-variant-numeric: tabular-nums; }
"""
