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
    exif, found = exif.removeprefix(b"Exif\0\0"), 0
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is not None and len(exif) >= 8:
        # Only the first directory is read, and of it no value but this.
        start = struct.unpack_from(f"{order}I", exif, 4)[0] + 2
        if start <= len(exif):
            count = struct.unpack_from(f"{order}H", exif, start - 2)[0]
            entries = exif[start : start + 12 * min(count, (len(exif) - start) // 12)]
            for tag, kind, values, value in struct.iter_unpack(f"{order}HHI4s", entries):
                if tag == _TAG and values == 1 and kind in _LAYOUTS:
                    found = struct.unpack_from(order + _LAYOUTS[kind], value)[0]
    if 1 <= found <= 8:
        return found
    in_xmp = _XMP.search(xmp)
    return int(in_xmp[1]) if in_xmp else 1
