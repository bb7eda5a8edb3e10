"""Going on with a run: from which checkpoint, and which of its settings may have changed.

settings.json in a run's folder is what a resume is compared with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augself_hub.augmentations.difference import standardised
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError
from augself_hub.images import Inventory
from training.data.sources import lines_of
from training.run import checkpoints
from training.run.settings import JOINT, Settings

SETTINGS = "settings.json"
FREE = (  # they decide nothing of how a run goes; of paths what is read there does
    *("data", "classes", "held_out", "inventory", "output", "workers", "license", "max_skipped"),
    *("monitor_every", "report_to", "push_to_hub", "private", "arguments", "matcher"),
    "matcher_options",
)
FREE_ARGUMENTS = (  # likewise of --set
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level"),
    *("run_name", "project", "save_strategy", "save_steps", "save_total_limit"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "torch_empty_cache_steps", "ddp_timeout"),
)

log = logging.getLogger(__name__)


def checkpoint_of(settings: Settings, resume: bool) -> Path | None:
    """The checkpoint to continue a run from; None: it begins, in a new folder.

    Raises:
        AugSelfError: the folder is there already, or has checkpoints of which none is whole.
    """
    output = settings.output
    if not resume and output.exists():
        raise AugSelfError(f"{output} exists: choose another --output, or continue with --resume")
    if not (output / SETTINGS).exists() and any(output.glob("[!.]*")):
        raise AugSelfError(f"{output} exists and is no run: choose another --output")
    checkpoint = checkpoints.newest_valid(output)
    if checkpoint is not None:
        return checkpoint
    if any(output.glob("checkpoint-*")):
        raise AugSelfError(f"no valid checkpoint in {output}: remove it and start without --resume")
    if resume:
        log.info("nothing to continue in %s: the run begins", output)
    return None


def decisive_settings(
    settings: Settings,
    images: int,
    names: Sequence[str],
    inventory: Inventory,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What settings.json says of a run.

    Args:
        before: what it says of the run that goes on.
    """
    return {
        **json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        **_decided_by_paths(settings.classes, settings.held_out),
        "images": images,
        "images_sha256": _digest_of(names, inventory.kind, (before or {}).get("images_sha256")),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "inventory": inventory.record(),
    }


def _digest_of(names: Sequence[str], kind: str, before: Any) -> str:
    """sha256 of the images' names. Of a glob's, which are paths, below the folder that they share,
    so that it may lie elsewhere when the run goes on; runs that were begun by 0.1 have all of them.
    """
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    if kind != "glob" or digest == before:
        return digest
    below = len(os.path.commonprefix(names).rpartition("/")[0])  # noqa: RUF071
    return hashlib.sha256("\n".join(name[below:] for name in names).encode()).hexdigest()


def _decided_by_paths(classes: str | Path | None, held_out: str | None) -> dict[str, Any]:
    """What a class list says, wherever it lies, and whether images are held out of --data.

    A list that is gone is its path.
    """
    said = None if classes is None else str(classes)
    if classes is not None and Path(classes).is_file():
        said = hashlib.sha256("\n".join(lines_of(Path(classes))).encode()).hexdigest()
    return {"classes_sha256": said, "holds_out": held_out is None}


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
    defaults |= {"column": [], "matcher_options": {}}  # as JSON has it
    if "holds_out" not in before:
        defaults |= _decided_by_paths(before.get("classes"), before.get("held_out"))
    # A matcher that comes after the run decides nothing of it; one that is trained with it does.
    joint = JOINT in (now["matcher"], before.get("matcher"))
    free = set(FREE) - ({"matcher", "matcher_options"} if joint else set())
    pairs = [
        (name, value, before.get(name, defaults.get(name)))
        for name, value in now.items()
        if name not in free
    ]
    set_now, set_before = now["arguments"], before.get("arguments", {})
    names = sorted({*set_now, *set_before} - set(FREE_ARGUMENTS))
    return pairs + [(name, set_now.get(name), set_before.get(name)) for name in names]


def begun_spec(settings: Settings, before: dict[str, Any], fresh: Spec) -> Spec:
    """What the heads of a run to be resumed have learned so far: the spec in its settings.json.

    Version 0.1 saved none: it standardised for square pictures, and its `paper` had another x.
    """
    if "spec" in before:
        return Spec.from_json(json.dumps(before["spec"]))
    if settings.convention == "paper" and "crop" in settings.augself:
        raise AugSelfError(
            f"the run in {settings.output} was begun by version 0.1, whose target of x was not "
            "that of convention paper: start it anew in another --output"
        )
    return dataclasses.replace(
        fresh, heads=standardised(fresh.heads, fresh.policy, fresh.convention)
    )
