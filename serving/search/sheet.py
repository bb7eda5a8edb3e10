"""What a search found, as pictures: the query and its matches, best first, on one contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from augself_hub.atomic import whole_file
from augself_hub.errors import AugSelfError, ImageError
from augself_hub.images import Item, Options, Shard, ShardError, open_recorded, open_source
from augself_hub.preprocess import decode
from serving.search.index import Match

SIDE, GAP, COLUMNS = 160, 12, 6  # pixels, pixels, tiles in a row
_LINE, _LETTERS = 18, 22  # height of a caption's line, letters it has room for
_PAPER, _INK, _EMPTY = "white", "black", "#dddddd"


def pictures(
    table: dict[str, Any], matches: Sequence[Match], source: str | None
) -> dict[str, Image.Image]:
    """Id -> the picture, of those that are still where the table's source had them.

    Shard k of the source is part k of the table, so only the shards that hold a match are read.

    Args:
        table: its manifest. source: where its images are now; None: where they were.

    Raises:
        AugSelfError: `source` is none.
    """
    shards = _shards(table, source)
    found: dict[str, Image.Image] = {}
    for number in {match.part for match in matches} & set(range(len(shards))):
        wanted = {match.id for match in matches if match.part == number}
        found |= {
            item.id: image for item in _items(shards[number], wanted) for image in _read(item)
        }
    return found


def _shards(table: dict[str, Any], source: str | None) -> Sequence[Shard]:
    """Of the table's source, opened as it was then; none where it is gone."""
    was = table["source"]
    try:
        if source is None:
            opened = open_recorded(was)
        else:
            opened = open_source(source, Options.of_record(was))
    except AugSelfError:
        if source is not None:
            raise
        return []
    return opened.shards(table["shard_rows"])


def _items(shard: Shard, wanted: set[str]) -> Iterator[Item]:
    """Those items of a shard, as far as it can be read; it is read no further than needed."""
    left = set(wanted)
    try:
        for item in shard.items():
            if item.id in left:
                yield item
                left.remove(item.id)
            if not left:
                return
    except ShardError:
        return


def _read(item: Item) -> Iterator[Image.Image]:
    """The item's picture, if it can be read."""
    try:
        for data in item.read():
            yield decode(data, least=SIDE)
    except (OSError, ImageError):
        return


def draw(
    query: Image.Image, matches: Sequence[Match], found: dict[str, Image.Image]
) -> Image.Image:
    """The query, then the matches; one whose picture was not found is a gray tile with its name."""
    tiles = [_tile(query, "the query", "")]
    for rank, match in enumerate(matches, 1):
        tiles.append(_tile(found.get(match.id), f"{rank}.  {match.cosine:.3f}", match.id))
    rows = -(-len(tiles) // COLUMNS)
    width, height = SIDE + GAP, SIDE + 2 * _LINE + GAP
    size = (min(len(tiles), COLUMNS) * width + GAP, rows * height + GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        sheet.paste(tile, (GAP + column * width, GAP + row * height))
    return sheet


def _tile(picture: Image.Image | None, head: str, name: str) -> Image.Image:
    """A picture, whole, over two lines of text; of a long name its end."""
    tile = Image.new("RGB", (SIDE, SIDE + 2 * _LINE), _PAPER)
    shown = Image.new("RGB", (SIDE, SIDE), _EMPTY)
    if picture is not None:
        shown = ImageOps.pad(picture, (SIDE, SIDE), color=_PAPER)
    tile.paste(shown)
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(_LINE * 2 // 3)
    pen.text((0, SIDE + 2), head, _INK, font)
    pen.text(
        (0, SIDE + 2 + _LINE), name if len(name) <= _LETTERS else f"…{name[-_LETTERS:]}", _INK, font
    )
    return tile


def save(sheet: Image.Image, path: Path) -> None:
    """A PNG that is there whole or not at all.

    Raises:
        AugSelfError: it cannot be written.
    """
    try:
        with whole_file(path) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise AugSelfError(f"{path} cannot be written: {error.strerror}") from error
