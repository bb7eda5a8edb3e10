"""A predicted difference as sentences: what is different, by how much, and what cannot be told.

`sentences` says every dimension; `headline` and `unanswered` are one line each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from augself_hub.differences import BEYOND, BLANK_REASON, GRAY_REASON, NOT_LEARNED, UNLIKE

SURE = 0.75  # a probability beyond which, or below its complement, yes or no is said
_BLANK = "the pictures cannot show it, at least one of them is blank"
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
        known: False where the pictures or the model cannot tell.
    """

    kind: str
    text: str
    number: str
    known: bool = True


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
    described: dict[str, Any], match: float | None = None, convention: str = "relative"
) -> list[Sentence]:
    """What takes picture a to picture b, in the order of the model's heads.

    Args:
        described: kind -> what `augself_hub.differences.describe` or /v1/augmentations says.
        match: probability that both pictures show one thing; None: not known. Of unlike pictures
            nothing else is said.
        convention: of the model: `paper` has other dimensions, and a minus b.
    """
    said = [
        sentence
        for kind, told in described.items()
        for sentence in (
            [_number_said(kind, record, convention) for record in told]
            if isinstance(told, list)
            else [_one_of(kind, told, convention)]
        )
    ]
    if match is not None and any(sentence.number.startswith(UNLIKE) for sentence in said):
        text = (
            "These look like two different pictures, and the model has only learned how two "
            "views of one thing differ: it says nothing about them"
        )
        return [Sentence("pair", text, f"probability of one thing {match:.0%}", known=False)]
    return said


def _number_said(kind: str, record: dict[str, Any], convention: str) -> Sentence:
    name, value, why = record["name"], record["value"], record.get("reason", "")
    if convention == "paper":
        number = why if value is None else _number(record)
        return Sentence(kind, f"{name}, a minus b", number, known=value is not None)
    phrase = _PHRASES.get(name) or _Phrase(name, f"more {name}", f"less {name}", str)
    if value is None:
        texts = {
            NOT_LEARNED: ("this model has not learned it", why),
            GRAY_REASON: ("the pictures cannot show it, at least one of them is gray", ""),
            BLANK_REASON: (_BLANK, ""),
            BEYOND: (f"the answer lies {BEYOND}", why.removeprefix(f"{BEYOND}: ")),
        }
        text, number = next((t for k, t in texts.items() if why.startswith(k)), ("not known", why))
        return Sentence(kind, _capital(f"{phrase.noun}: {text}"), number, known=False)
    number = _number(record)
    if abs(value) <= (record["standard_error"] or 0.0):
        return Sentence(kind, f"No clear difference in {phrase.noun}", number, known=False)
    text = (phrase.more if value > 0 else phrase.less).format(phrase.amount(value))
    return Sentence(kind, _capital(text), number)


def _number(record: dict[str, Any]) -> str:
    error = record["standard_error"]
    known = "error not measured" if error is None else f"± {error:.2f}"
    if error is not None and record.get("standard_error_of") != "pair":
        known += " on average"
    return f"{record['value']:+.2f} {known}, {record['unit']}"


def _one_of(kind: str, told: dict[str, Any], convention: str) -> Sentence:
    """Of a probability, or of one for each class."""
    name, p = next((n, v) for n, v in told.items() if n not in ("reason", "head"))
    if p is None:
        noun = {"mirrored": "Mirroring", "same": "Mirroring", "quarter_turns": "Rotation"}
        texts = {NOT_LEARNED: "this model has not learned it", BLANK_REASON: _BLANK}
        text = next((t for k, t in texts.items() if told["reason"].startswith(k)), "not known")
        return Sentence(kind, f"{noun.get(name, name)}: {text}", told["reason"], known=False)
    if isinstance(p, list):
        largest = max(p)
        number = f"probability {largest:.0%}"
        if largest < SURE:
            return Sentence(kind, "The model cannot tell how b is turned", number, known=False)
        turns = p.index(largest) * (-1 if convention == "paper" else 1)  # a's minus b's
        return Sentence(kind, _TURNS[turns % 4], number)
    yes, no, unsure = _ANSWERS[name]
    number = f"probability {p:.0%}"
    if 1 - SURE < p < SURE:
        return Sentence(kind, f"The model cannot tell {unsure}", number, known=False)
    return Sentence(kind, yes if p >= SURE else no, number)


_TURNS = (
    "B is not turned",
    "B is turned a quarter to the left",
    "B is upside down",
    "B is turned a quarter to the right",
)
_ANSWERS = {
    "mirrored": ("B is mirrored", "B is not mirrored", "whether b is mirrored"),
    "same": ("Neither or both are mirrored", "One is mirrored", "whether one is mirrored"),
}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


SIDEWAYS = 0.12  # of a's side: nearer centres count as the same place
SIZES = (0.87, 1.15)  # of a's side: between them b shows about as much
_NOUNS = {
    "y": "the place up or down",
    "x": "the place sideways",
    "height": "the height",
    "width": "the width",
    "sigma": "sharpness",
    "inverted": "solarization",
    "mirrored": "mirroring",
    "same": "mirroring",
    "quarter_turns": "rotation",
}
_TURNED = (
    "",
    "is turned a quarter to the left",
    "is upside down",
    "is turned a quarter to the right",
)


def headline(described: dict[str, Any]) -> str:
    """The difference in a few words: "b is 1.3 times brighter, shows the left part, is mirrored".

    Only what is larger than its standard error is said.
    """
    said = list(_said(described))
    return f"b {', '.join(said)}" if said else "b shows no clear difference from a"


def _said(described: dict[str, Any]) -> Iterator[str]:
    clear = {
        record["name"]: record["value"]
        for told in described.values()
        if isinstance(told, list)
        for record in told
        if record["value"] is not None and abs(record["value"]) > (record["standard_error"] or 0.0)
    }
    if "brightness" in clear:
        factor = math.exp(clear["brightness"])
        dark = f"is darker ({factor:.1f} times as bright)"
        yield f"is {factor:.1f} times brighter" if factor > 1 else dark
    for name, more, less in (
        ("contrast", "has more contrast", "has less contrast"),
        ("saturation", "is more colourful", "is less colourful"),
    ):
        if name in clear:
            yield more if clear[name] > 0 else less
    if "hue" in clear:
        towards = "yellow" if clear["hue"] > 0 else "violet"
        yield f"has its reds turned towards {towards} by {abs(clear['hue']) * 360:.0f} degrees"
    if place := _place(clear):
        yield place
    for name, value in _probabilities(described):
        if name == "mirrored" and value >= SURE:
            yield "is mirrored"
        if isinstance(value, list) and max(value) >= SURE and value.index(max(value)):
            yield _TURNED[value.index(max(value))]
    for name, more, less in (
        ("sigma", "is more blurred", "is sharper"),
        ("inverted", "has more of it inverted", "has less of it inverted"),
    ):
        if name in clear:
            yield more if clear[name] > 0 else less


def _place(clear: dict[str, float]) -> str:
    """Which part of a it shows. Centres in sides of a, sizes as log ratios; nothing: not clear."""
    size = math.exp((clear.get("height", 0.0) + clear.get("width", 0.0)) / 2)
    down, right = clear.get("y", 0.0), clear.get("x", 0.0)
    rows = "" if abs(down) < SIDEWAYS else "lower" if down > 0 else "upper"
    columns = "" if abs(right) < SIDEWAYS else "right" if right > 0 else "left"
    where = f"{rows} {columns}".strip()
    if size < SIZES[0]:
        return f"shows the {where or 'middle'} part"
    if size > SIZES[1]:
        return f"shows more around it{f', mostly {_towards(where)}' if where else ''}"
    return f"is moved {_towards(where)}" if where else ""


def _towards(where: str) -> str:
    return {"upper": "up", "lower": "down"}.get(where, f"to the {where}")


def _probabilities(described: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for told in described.values():
        if isinstance(told, dict):
            name = next(name for name in told if name != "reason")
            if told[name] is not None:
                yield name, told[name]


def unanswered(described: dict[str, Any]) -> str:
    """What the model cannot tell and why, in one short line; empty where it can tell all."""
    why: dict[str, list[str]] = {}
    for told in described.values():
        for record in told if isinstance(told, list) else [told]:
            if isinstance(told, list):
                name, value = record["name"], record["value"]
            else:
                name = next(name for name in record if name != "reason")
                value = record[name]
            if value is None:
                why.setdefault(_why(record["reason"]), []).append(_NOUNS.get(name, name))
            elif isinstance(told, dict) and not _sure(value):
                why.setdefault("unsure", []).append(_NOUNS[name])
    if not why:
        return ""
    parts = (f"{_and(names)} ({reason})" for reason, names in why.items())
    return f"It cannot tell {'; '.join(parts)}."


def _sure(probability: float | list[float]) -> bool:
    if isinstance(probability, list):
        return max(probability) >= SURE
    return not 1 - SURE < probability < SURE


def _why(reason: str) -> str:
    if reason.startswith(NOT_LEARNED):
        return "not learned"
    if reason.startswith(BEYOND):
        return "larger than in training"
    if reason == BLANK_REASON:
        return "a picture is blank"
    return "a picture is gray" if reason.startswith("not observable") else reason.split(":")[0]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
