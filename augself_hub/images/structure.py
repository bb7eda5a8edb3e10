"""What the file of an image holds, found before any library opens it.

    structure(bytes) -> its format, sides, orientation, what decoding it takes, and a file of the
                        same picture that has nothing else in it

The one place that bounds what a file may cost: training, extraction, the server and its demo read
images through `augself_hub.preprocess`, which asks here first. The type of an image is sniffed from
its bytes, never trusted from a name or header.
"""

from __future__ import annotations

import struct

from augself_hub.errors import EmptyImage, ImageError, UndecodableImage, UnsupportedImage
from augself_hub.images import formats
from augself_hub.images.bounds import Bounds, Structure, cannot

TYPES = "JPEG, PNG, WebP, GIF or BMP"
_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
}
_READERS = {
    "JPEG": formats.jpeg,
    "PNG": formats.png,
    "WebP": formats.webp,
    "GIF": formats.gif,
    "BMP": formats.bmp,
}


def structure(data: bytes, bounds: Bounds = Bounds()) -> Structure:  # noqa: B008  frozen
    """The structure of the file of an image, in time linear in its bytes.

    Raises:
        EmptyImage, UnsupportedImage, TooManyPixels, UndecodableImage: one line each; the last also
            where the file holds more of something than the bounds allow.
    """
    if not data:
        raise EmptyImage(f"the image is empty: send the bytes of a {TYPES}")
    name = kind(data)
    if name is None:
        raise _unidentified(data)
    try:
        return _READERS[name](data, bounds)
    except (struct.error, IndexError):
        raise cannot(f"the {name} is truncated") from None


def kind(data: bytes) -> str | None:
    """JPEG, PNG, WebP, GIF or BMP, by the first bytes; None: no such image."""
    if data.startswith(b"RIFF") and data[8:15] == b"WEBPVP8":
        return "WebP"
    return next((name for name, starts in _STARTS.items() if data.startswith(starts)), None)


_OTHER_TYPES = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PDF": (b"%PDF",),
    "PSD": (b"8BPS",),
    "EPS": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "ICO": (b"\0\0\1\0", b"\0\0\2\0"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL ", b"\xff\x0a"),
}


def _unidentified(data: bytes) -> ImageError:
    """Text and noise cannot be decoded; a real image of another type is unsupported."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    names = [name for name, starts in _OTHER_TYPES.items() if head.startswith(starts)]
    if data[4:8] == b"ftyp":
        names = ["HEIC, AVIF or video"]
    if head.startswith(b"<") and b"<svg" in head and b"<html" not in head.lower():
        names = ["SVG"]
    if names:
        return UnsupportedImage(f"{names[0]} is not read: send {TYPES}")
    return UndecodableImage(f"the data is not an image: send {TYPES}")
