"""The one door for images: whatever holds them -> items, labels, classes, splits, an inventory.

from augself_hub.images import open_source

source = open_source("PHOTOS")
print(source.inventory.text())
for shard in source.shards(2048):
    for item in shard.items():
        item.id, item.label, item.split, item.read()

One text means the same images, ids, labels, classes and splits, in the same order, to every part of
the project (docs/data-sources.md has the grammar and the meanings). Nothing of pyarrow, datasets or
fsspec is imported before a source needs it.
"""

from augself_hub.images.files import SUFFIXES, read_file
from augself_hub.images.inventory import Inventory
from augself_hub.images.opening import AS_FOUND, Options, open_recorded, open_source
from augself_hub.images.source import Item, Listing, Shard, ShardError, Source
from augself_hub.images.words import LAYOUTS, Columns, split_of

__all__ = [
    "AS_FOUND",
    "LAYOUTS",
    "SUFFIXES",
    "Columns",
    "Inventory",
    "Item",
    "Listing",
    "Options",
    "Shard",
    "ShardError",
    "Source",
    "open_recorded",
    "open_source",
    "read_file",
    "split_of",
]
