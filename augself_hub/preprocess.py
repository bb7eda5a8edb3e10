"""Image bytes -> uint8 array: THE preprocessing contract (DESIGN.md section 3).

EXIF orientation applied; alpha over white; 16 bits scaled to 8; short side resized to S (bicubic,
antialiased), centre crop S x S with floored offsets. Only the crop is ever computed. Normalisation
is left to the model. Equal to the stock BitImageProcessor within one grey level for 8-bit images.

Pillow does it; what else was measured, and why it is not used, is in docs/engine.md.

The type of an image is sniffed from its bytes, never trusted from a name or header.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from augself_hub.errors import (
    EmptyImage,
    ImageError,
    ModelFolderError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
    UsageError,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # of a progressive JPEG; each costs a pass over the picture, ten are usual
DECODES = ("exact", "fast")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """What preprocessor_config.json says: side S in pixels, mean and std per channel in [0, 1].

    Args:
        decode: `exact`, or `fast`: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its sides
            stay at least 2 S. Large photographs take a fraction of the time; features differ.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decode: str = "exact"

    def __post_init__(self) -> None:
        if self.decode not in DECODES:
            raise UsageError(f"there is no decode {self.decode!r}: give {' or '.join(DECODES)}")

    def prepare(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Image bytes -> (S, S, 3) uint8. Raises as the function `decode` does."""
        least = 2 * self.size if self.decode == "fast" else None
        return preprocess(decode(data, max_pixels, least), self.size)

    @classmethod
    def from_folder(cls, folder: Path) -> Preprocessing:
        """Read a model folder's preprocessor_config.json.

        Raises:
            ModelFolderError: the file is missing or describes another contract than this one.
        """
        path = folder / "preprocessor_config.json"
        try:
            config = json.loads(path.read_text())
            side = config["size"]["shortest_edge"]
            crop = config["crop_size"]["height"], config["crop_size"]["width"]
            mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        except FileNotFoundError:
            raise ModelFolderError(f"{path} is missing: this is not a model folder") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFolderError(f"{path} cannot be read: {error!r}") from error
        if (*crop, config.get("resample")) != (side, side, 3):
            raise ModelFolderError(
                f"{path} must resize the short side to the crop's side, bicubic (resample 3)"
            )
        return cls(side, mean, std)


def decode(data: bytes, max_pixels: int = MAX_PIXELS, least: int | None = None) -> Image.Image:
    """Image bytes -> RGB image, upright, over white, fully decoded.

    Args:
        data: a JPEG, PNG, WebP, GIF or BMP file; of an animation the first frame is used.
        max_pixels: checked on the header, before anything is decoded.
        least: a JPEG may be decoded smaller, its sides no less than this many pixels.

    Raises:
        EmptyImage, UnsupportedImage, TooManyPixels, UndecodableImage: one line each.
    """
    if not data:
        raise EmptyImage("the image is empty: send the bytes of a JPEG, PNG, WebP, GIF or BMP")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_pixels(image.size, max_pixels)
        _check_whole(data)
        if least is not None:
            image.draft(None, (least, least))  # only JPEGs have one
        image.load()
        return to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"the image has more than the {max_pixels} pixels allowed") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged data"
        raise UndecodableImage(f"the image cannot be decoded: {reason}") from error


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height == 0:
        raise UndecodableImage(f"the image cannot be decoded: it is {width} x {height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the image has {width} x {height} pixels, more than the {max_pixels} allowed"
        )


def _check_whole(data: bytes) -> None:
    """What Pillow would let pass: a PNG that is damaged or cut, a JPEG that takes minutes."""
    if data.startswith(b"\x89PNG"):
        _check_png(memoryview(data))
    elif data.startswith(b"\xff\xd8") and _scans(data) > MAX_SCANS:
        raise UndecodableImage(
            f"the image cannot be decoded: a JPEG of more than {MAX_SCANS} scans; save it again"
        )


def _check_png(data: memoryview) -> None:
    """Every chunk is there up to IEND, each with its checksum."""
    at, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = bytes(data[at + 4 : at + 8]), at + 8 + length
        if len(data) < end + 4:
            raise UndecodableImage("the image cannot be decoded: the PNG is truncated")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UndecodableImage("the image cannot be decoded: a PNG checksum is wrong")
        at = end + 4


_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # not stuffing, restarts or fill bytes
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def _scans(data: bytes) -> int:
    """How many scans the first picture of a JPEG file has."""
    scans, at = 0, 2
    while (marker := _JPEG_MARKER.search(data, at)) and marker[0][1] != _END_OF_IMAGE:
        scans += marker[0][1] == _START_OF_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


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
        return UnsupportedImage(f"{names[0]} is not read: send JPEG, PNG, WebP, GIF or BMP")
    return UndecodableImage("the data is not an image: send JPEG, PNG, WebP, GIF or BMP")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> upright RGB: 16 bits scaled, alpha over white."""
    image = _upright(image)
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


_UPRIGHT: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """ImageOps.exif_transpose, but other damaged EXIF fields do not lose the orientation."""
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata is not a damaged picture: it is shown as stored
        return image
    return image if method is None else image.transpose(method)


_TO_8_BITS = np.round(np.arange(65536) / 257).astype(np.uint8)


def _from_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(_TO_8_BITS[np.clip(np.asarray(image), 0, 65535)]).convert("RGB")


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> (size, size, 3) uint8: short side to `size`, bicubic, centre crop."""
    width, height = image.size
    if width <= height:
        resized = size, int(size * height / width)
    else:
        resized = int(size * width / height), size
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    x, y = width / resized[0], height / resized[1]
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return _resampled(image, box, size, Image.Resampling.BICUBIC)


def crop_resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """The training crop: a box (left, top, right, bottom) in pixels -> (size, size, 3) uint8.

    Bilinear, antialiased.
    """
    return _resampled(image, box, size, Image.Resampling.BILINEAR)


def _resampled(image: Image.Image, box: Box, size: int, method: Image.Resampling) -> np.ndarray:
    left, top, right, bottom = box
    within = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
    return np.asarray(image.resize((size, size), method, box=within))


def load(path: Path, size: int) -> np.ndarray:
    """Image file -> (size, size, 3) uint8 as the encoder wants it. Raises as `decode` does."""
    return preprocess(decode(path.read_bytes()), size)
