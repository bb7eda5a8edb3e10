"""What a resume compares: settings.json of a run, and which of its settings may change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augself_hub.errors import AugSelfError
from augself_hub.images import Inventory
from training.run.settings import Settings

SETTINGS = "settings.json"
FREE = (  # they decide nothing of how a run goes
    *("data", "inventory", "output", "workers", "license", "max_skipped", "monitor_every"),
    *("report_to", "push_to_hub", "private", "arguments"),
)
FREE_ARGUMENTS = (  # likewise of --set
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level"),
    *("run_name", "project", "save_strategy", "save_steps", "save_total_limit"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "torch_empty_cache_steps", "ddp_timeout"),
)

log = logging.getLogger(__name__)


def decisive_settings(
    settings: Settings, images: int, names: Sequence[str], inventory: Inventory
) -> dict[str, Any]:
    """What settings.json says of a run."""
    return {
        **json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "images": images,
        "images_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "inventory": inventory.record(),
    }


def read_settings(output: Path) -> dict[str, Any] | None:
    """settings.json of a run; None where none has begun.

    Raises:
        AugSelfError: it is damaged.
    """
    path = output / SETTINGS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("arguments", {}), dict):
        raise AugSelfError(f"{path} is damaged: copy it from a run alike, or begin a new --output")
    return found


def check_resumed(output: Path, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Compare a run with how it is to go on; whether it is to go on for longer, which is said.

    Raises:
        AugSelfError: another setting that decides how a run goes.
    """
    longer = False
    for name, value, was in _decisive_pairs(before, now):
        if value == was:
            continue
        if name in ("epochs", "max_steps") and None not in (value, was) and value > was:
            longer = True
            log.warning(
                "%s is extended from %g to %g: from here on the learning rate is that of the "
                "longer schedule, which is not where the shorter one left off; a run of this "
                "length from the start would have another model",
                name,
                was,
                value,
            )
            continue
        more = " or more" if name in ("epochs", "max_steps") else ""
        raise AugSelfError(
            f"the run in {output} was started with {name} = {was}, not {value}: resume it with "
            f"{'that' if more else 'the settings in ' + SETTINGS}{more}"
        )
    return longer


def _decisive_pairs(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, now, before); what an older version did not write down was as its default is."""
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    defaults["column"] = []  # as JSON has it
    pairs = [
        (name, value, before.get(name, defaults.get(name)))
        for name, value in now.items()
        if name not in FREE
    ]
    set_now, set_before = now["arguments"], before.get("arguments", {})
    names = sorted({*set_now, *set_before} - set(FREE_ARGUMENTS))
    return pairs + [(name, set_now.get(name), set_before.get(name)) for name in names]
