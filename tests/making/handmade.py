"""Pictures that tests make by hand: a photograph of waves, and PNGs chunk by chunk.

pytest has this folder on its path (pyproject.toml), so tests of every part import it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Waves and noise in three colours: smooth areas, edges, no symmetry."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width, 0:1][:2]
    waves = 60 * np.sin(x / 7.3) * [1, 0.5, 0.2] + 50 * np.cos(y / 5.1 + x / 31) * [0.3, 1, 0.6]
    pixels = 128 + waves + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The bytes of its file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: tuple[int, int], rows: Sequence[bytes], *more: bytes, depth: int = 8, color: int = 2
) -> bytes:
    """A PNG by hand: header, other chunks, data, end.

    Args:
        size: width and height as the header says them, whatever the rows are.
        rows: of pixels, not filtered.
        color: the format's number: 0 gray, 2 RGB, 3 palette, 4 and 6 with alpha.
    """
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND")]
    )


DAMAGED_PALETTES = {
    "a PNG without its palette": png((8, 6), [bytes(8)] * 6, color=3),
    "a PNG with a palette of nothing": png((8, 6), [bytes(8)] * 6, chunk(b"PLTE"), color=3),
    "a PNG with its palette behind the pixels": png((8, 6), [bytes(8)] * 6, color=3)[:-12]
    + chunk(b"PLTE", bytes(6))
    + chunk(b"IEND"),
    "a PNG with more alphas than colors": png(
        (8, 6), [bytes(8)] * 6, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes(257)), color=3
    ),
}
"""Their chunks have good checksums. Pillow opens and loads them, and raises AssertionError or
ValueError no earlier than in the conversion to RGB."""
