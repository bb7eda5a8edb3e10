"""What a model says of a pair of pictures, in words first: one line, what it cannot tell, numbers.

Words are made of what /v1/augmentations answers (`describe`), whichever head answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from augself_hub.augmentations.spec import Spec
from augself_hub.differences import records
from augself_hub.sentences import headline, unanswered
from serving.inference.client import ModelClient

Described = dict[str, Any]  # kind -> what records() says of it


@dataclass(frozen=True)
class Answer:
    """What a model says of one pair.

    Args:
        spec: the model's, with the heads that answered: of the matcher where there is one.
        predicted: kind -> (1, outputs) in physical units. errors: kind -> (1, n) standard errors
            of this very pair, where they are known. gray: whether either picture is.
        unlike: whether the model takes them for pictures of two things.
    """

    spec: Spec
    predicted: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    described: Described
    gray: bool
    unlike: bool


def ask(model: ModelClient, views: Sequence[np.ndarray] | np.ndarray, one: bool = False) -> Answer:
    """What a model says of two prepared views, (S, S, 3) uint8 each.

    Args:
        one: both are known to be of one picture.

    Raises:
        AugSelfError: the server is full.
    """
    answered = model.predict(list(views))
    if one:
        answered = replace(answered, unlike=np.zeros(1, bool))
    told = next(records(model.spec, answered))["differences"]
    answering = model.spec.answering(answered.prediction.match is not None)
    spec = replace(model.spec, heads={kind: head for kind, (_, head) in answering.items()})
    values = {kind: np.asarray(answered.prediction.values[kind]) for kind in answering}
    gray, unlike = bool(answered.gray[0]), bool(answered.unlike[0])
    return Answer(spec, values, answered.prediction.errors, told, gray, unlike)


def told_html(answer: Answer, truth: Described | None = None, numbers: str = "") -> str:
    """The answer as HTML: the model's line, the true one, what cannot be told, numbers folded.

    Args:
        truth: in the same form; None: nobody knows it.
        numbers: HTML; empty: a table of what is described.
    """
    if not answer.spec.heads:
        return "<p>This model has no AugSelf heads, so it says nothing about differences.</p>"
    if answer.unlike:
        return (
            '<p class="line">These look like two different pictures. The model only knows how two '
            "views of one thing differ, so it says nothing more.</p>"
        )
    if answer.spec.convention != "relative":
        line = "This model says differences as the paper does, a minus b: see the numbers."
        return f'<p class="line">{line}</p>{_folded(numbers or _table(answer.described))}'
    line = headline(answer.described)
    lines = [f'<p class="line"><i class="predicted"></i>The model says: {line}.</p>']
    if truth is not None:
        lines.append(f'<p class="line"><i class="true"></i>In truth: {headline(truth)}.</p>')
    if missing := unanswered(answer.described):
        lines.append(f'<p class="untold">{escape(missing)}</p>')
    return "".join(lines) + _folded(numbers or _table(answer.described))


def _folded(numbers: str) -> str:
    return f"<details><summary>Numbers</summary>{numbers}</details>"


def _table(described: Described) -> str:
    rows = []
    for told in described.values():
        if isinstance(told, list):
            for record in told:
                value, error = record["value"], record["standard_error"]
                shown = escape(record.get("reason", "")) if value is None else f"{value:+.2f}"
                known = "" if value is None or error is None else f"± {error:.2f}"
                if known and record["standard_error_of"] == "average":
                    known += " on average"
                rows.append((record["name"], f"{shown} {known}", record["unit"]))
        else:
            name = next(name for name in told if name != "reason")
            value = told[name]
            if value is None:
                shown = escape(told["reason"])
            else:
                shown = ", ".join(
                    f"{p:.0%}" for p in (value if isinstance(value, list) else [value])
                )
            rows.append((name.replace("_", " "), shown, "probability"))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{shown}</td><td>{escape(unit)}</td></tr>'
        for name, shown, unit in rows
    )
    return f"<table><tbody>{body}</tbody></table><p>±: the standard error.</p>"


STYLE = """
.line { margin: 0 0 8px; font-size: 1.15rem; line-height: 1.5; color: var(--body-text-color); }
.untold { margin: 0 0 8px; color: var(--body-text-color-subdued); }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--body-text-color-subdued); padding: 4px 0; }
.line i { display: inline-block; width: 12px; height: 12px; margin-right: 8px; border-radius: 3px; }
i.true { background: #0d9488; } i.predicted { background: #a855f7; }
"""
