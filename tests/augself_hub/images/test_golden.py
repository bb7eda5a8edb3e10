"""What 0.1 made of folders, lists, tars and parquet files is what is made of them now.

golden.json was recorded with the readers of 0.1 on what tests/making/places.py makes: ids, labels,
splits and pixels of extraction's rows, names of shards.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import places
import pytest

from augself_hub.images import open_source
from augself_hub.preprocess import decode

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
PLACES = {
    "folder": places.folder,
    "split": places.split_folder,
    "text": lambda top: places.listed(top)[0],
    "csv": lambda top: places.listed(top)[1],
    "tars": places.tars,
    "parquet": places.parquet,
}


def digest(data: bytes) -> str:
    return hashlib.sha256(np.asarray(decode(data)).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("kind", PLACES)
def test_rows_are_those_of_before(kind, tmp_path):
    source = open_source(PLACES[kind](tmp_path / kind))
    items = [item for shard in source.shards(4) for item in shard.items()]
    rows = [[item.id, item.label, item.split, digest(item.read()[0])] for item in items]
    wanted = GOLDEN["extract"][kind]
    assert (rows, source.classes) == (wanted["rows"], wanted["label_names"])
    if kind in GOLDEN["digests"]:
        assert [shard.name for shard in source.shards(4)] == GOLDEN["digests"][kind]


@pytest.mark.parametrize("kind", PLACES)
def test_a_listing_is_the_same_rows_in_the_same_order(kind, tmp_path):
    listing = open_source(PLACES[kind](tmp_path / kind)).listing()
    labels = [None if label < 0 else label for label in listing.labels]
    splits = listing.splits or [None] * len(labels)
    images = [digest(listing.read(i)) for i in range(len(labels))]
    rows = [list(row) for row in zip(listing.names, labels, splits, images, strict=True)]
    assert rows == GOLDEN["extract"][kind]["rows"]
