"""The orientation of a picture, from its metadata: Exif's if it has one, else XMP's.

Damaged metadata is not a damaged picture: it is shown as stored.
"""

from __future__ import annotations

import re
import struct

_TAG = 0x0112
_LAYOUTS = {3: "H", 4: "L"}  # of SHORT and LONG
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Exif (a TIFF directory) and XMP, b"" where there is none -> 1 to 8; 1 is upright."""
    said = _XMP.search(xmp)
    return _from_exif(exif.removeprefix(b"Exif\0\0")) or (int(said[1]) if said else 1)


def _from_exif(exif: bytes) -> int:
    """0 where there is none. Only the first directory is read, and of it no value but this."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 0
    start = struct.unpack_from(f"{order}I", exif, 4)[0] + 2
    if start > len(exif):
        return 0
    count = struct.unpack_from(f"{order}H", exif, start - 2)[0]
    entries = exif[start : start + 12 * min(count, (len(exif) - start) // 12)]
    found = 0
    for tag, kind, values, value in struct.iter_unpack(f"{order}HHI4s", entries):
        if tag == _TAG and values == 1 and kind in _LAYOUTS:
            found = struct.unpack_from(order + _LAYOUTS[kind], value)[0]
    return found if 1 <= found <= 8 else 0
