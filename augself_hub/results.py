"""evaluation.json of a model folder, read as a stranger's: every record can be shown.

A record names its task, number and metric; `training.evaluation.results` writes ours. Other fields
may stand beside them: they are kept, and shown nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augself_hub.configs import number, read_json, renamed
from augself_hub.errors import ModelFolderError
from augself_hub.folder import EVALUATION

if TYPE_CHECKING:  # images name Hub ids, which the Hub's part knows, which reads this
    from augself_hub.images import Inventory

_LONGEST = 2000  # letters of a protocol
_MOST = 10_000
_TEXTS = ("task", "name", "metric")  # in every record
_NUMBERS = ("baseline", "margin_of_error")
_RENAMED = {  # as version 0.1 wrote them, and code between the releases
    "trivial": "baseline",
    "interval": "margin_of_error",
    "interval_95": "confidence_interval",
    "beside": "compared_with",
    "cut": "calibration",
}

log = logging.getLogger(__name__)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """{"protocol": ..., "results": [record, ...]}; no results where there is no file.

    Raises:
        ModelFolderError: names the record and the field that cannot be shown.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return {"results": []}
    evaluation = read_json(path)
    results = evaluation.get("results")
    if not isinstance(results, list) or len(results) > _MOST:
        raise ModelFolderError(f"{path} cannot be read: results is no list of at most {_MOST}")
    old: set[str] = set()
    for place, record in enumerate(results):
        what = f"{path}: results[{place}]"
        if not isinstance(record, dict):
            raise ModelFolderError(f"{what} is no object")
        old |= renamed(record, _RENAMED)
        for field in (*_TEXTS, *(f for f in ("dataset", "unit", "protocol") if f in record)):
            _text(record.get(field), f"{what}.{field}")
        if "protocol" not in record:
            _text(evaluation.get("protocol"), f"{path}: protocol")
        number(record.get("value"), f"{what}.value", -1e12, 1e12)
        for field in _NUMBERS:
            if record.get(field) is not None:
                number(record[field], f"{what}.{field}", -1e12, 1e12)
        _check_compared(record.get("compared_with", {}), f"{what}.compared_with")
    if old:
        log.info("%s: %s", path, ", ".join(f"{n} is read as {_RENAMED[n]}" for n in sorted(old)))
    return evaluation


def with_inventories(
    evaluation: dict[str, Any], command: str, inventories: Mapping[str, Inventory]
) -> dict[str, Any]:
    """evaluation.json that says of what a command has read: what was found, used and left out."""
    if not inventories:
        return evaluation
    there = evaluation.get("inventories")
    before = there if isinstance(there, dict) else {}
    of_command = before.get(command)
    kept = of_command if isinstance(of_command, dict) else {}
    new = {name: inventory.record() for name, inventory in inventories.items()}
    return {**evaluation, "inventories": {**before, command: {**kept, **new}}}


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
        raise ModelFolderError(f"{what} is {repr(value)[:40]}, no text of one line")


def _check_compared(compared: Any, what: str) -> None:
    """{another model: its value, the difference, and that one's 95% interval or None}."""
    if not isinstance(compared, dict):
        raise ModelFolderError(f"{what} is no object")
    for label, other in compared.items():
        _text(label, f"{what}: a name")
        if not isinstance(other, dict):
            raise ModelFolderError(f"{what}.{label} is no object")
        renamed(other, {"interval": "confidence_interval"})
        interval = other.get("confidence_interval") or []
        if not isinstance(interval, list) or len(interval) not in (0, 2):
            raise ModelFolderError(f"{what}.{label}.confidence_interval is no list of two")
        for value in (other.get("value"), other.get("difference"), *interval):
            number(value, f"{what}.{label}", -1e12, 1e12)
