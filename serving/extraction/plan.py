"""What a table is of: all that decides what is in it, written before its first part.

The same command goes on with an unfinished table only if its plan is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import PIL

from augself_hub.errors import UsageError
from augself_hub.features import DIFFERENCES, DIFFERENCES_FORMAT, FORMAT, TABLE
from augself_hub.folder import versions
from augself_hub.images import Options, Shard, Source
from serving.extraction.tables import TableSettings
from serving.inference.engine import DIGESTS, Engine

MOST_PARTS = 100_000  # part-00000 to part-99999: names that sort as their numbers do
_WORDS = {
    "table": "what is extracted",
    "preprocessing": "the preprocessing",
    "provider": "the provider",
    "precision": "the precision",
    "dtype": "--dtype",
    "normalized": "--normalize",
    "layout": "--format",
    "shard_rows": "--shard-rows",
}


def plan_of(
    source: Source,
    shards: Sequence[Shard],
    engine: Engine,
    settings: TableSettings,
    options: Options,
    layout: str,
    shard_rows: int,
) -> dict[str, Any]:
    """The plan of a table, as its manifest keeps it.

    Raises:
        UsageError: more shards than a table may have parts.
    """
    if len(shards) > MOST_PARTS:
        raise UsageError(
            f"{len(shards)} shards are more than the {MOST_PARTS} parts of a table: raise "
            "--shard-rows, or extract the source as several tables"
        )
    digests = [{"name": shard.name, "sha256": shard.digest} for shard in shards]
    fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    known = source.inventory.images is not None and not settings.pairs
    names = list(source.classes) if known else []
    # Of what decides the numbers.
    decisive = {n: v for n, v in versions().items() if n.startswith(("augself", "onnxr"))}
    return {
        "format": DIFFERENCES_FORMAT if settings.pairs else FORMAT,
        "table": DIFFERENCES if settings.pairs else TABLE,
        "layout": layout,
        "model": {
            "name": engine.name,
            "revision": engine.name.partition("@")[2] or None,
            # Features are the encoder's alone: new heads change nothing in them.
            **(engine.digests if settings.pairs else dict.fromkeys(DIGESTS)),
            "sha256": engine.sha256,
            "features": engine.spec.features,
        },
        "preprocessing": json.loads(json.dumps(dataclasses.asdict(engine.preprocessing))),
        "provider": engine.provider,
        "precision": engine.precision,
        "dtype": settings.dtype,
        "normalized": settings.normalize,
        **({"label_names": names} if names else {}),  # else they are known in the end
        "shard_rows": shard_rows,
        "source": {
            "location": source.location,
            "sha256": fingerprint,
            "columns": dataclasses.asdict(options.columns),
            "split": options.split,
            "read_as": options.kind,
            "image_root": None if options.image_root is None else str(options.image_root),
        },
        "shards": digests,
        "versions": {**decisive, "pillow": PIL.__version__},
    }


def changes(begun: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """What differs between two plans, in words."""
    if begun.get("format") != plan["format"]:
        return ["another version of augself-hub"]
    found = []
    for digest, word in DIGESTS.items():
        old, new = (p["model"].get(digest) or "none" for p in (begun, plan))
        if old != new and digest in begun["model"]:  # 0.1.0 kept no spec_sha256
            found.append(f"{word} ({old[:12]} then, {new[:12]} now)")
    # Of a data set the digests tell neither which columns are read nor where its paths lead.
    for key, option in (("columns", "--column"), ("image_root", "--image-root")):
        old, new = (_given(p["source"].get(key)) for p in (begun, plan))
        if old != new:
            found.append(f"{option} ({old} then, {new} now)")
    had, has = begun.get("label_names") or [], plan.get("label_names") or []
    if had and has and had != has:
        renamed = itertools.zip_longest(had, has, fillvalue="none")
        old, new = next(pair for pair in renamed if pair[0] != pair[1])
        found.append(f"the classes ({old} then, {new} now)")
    found += [
        f"{word} ({begun[key]} then, {plan[key]} now)"
        for key, word in _WORDS.items()
        if begun[key] != plan[key]
    ]
    if begun["shards"] != plan["shards"] and begun["shard_rows"] == plan["shard_rows"]:
        pairs = itertools.zip_longest(begun["shards"], plan["shards"])
        first = next((new or old)["name"] for old, new in pairs if old != new)
        counts = f"{len(begun['shards'])} shards then, {len(plan['shards'])} now"
        found.append(f"the input, first in {first} ({counts})")
    return found


def _given(value: dict[str, str | None] | str | None) -> str:
    """What an option of the source was given; of columns as on the command line."""
    if isinstance(value, dict):
        value = " ".join(f"{role}={name}" for role, name in value.items() if name)
    return value or "none"
