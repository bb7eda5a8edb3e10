"""Image bytes -> uint8 array: THE preprocessing contract (DESIGN.md section 3).

EXIF orientation applied; alpha over white; 16 bits scaled to 8; short side resized to S (bicubic,
antialiased), centre crop S x S with floored offsets. Only the crop is ever computed. Normalisation
is left to the model. Equal to the stock BitImageProcessor within one grey level for 8-bit images.

The type of an image is sniffed from its bytes, never trusted from a name or header.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from augself_hub.errors import (
    EmptyImage,
    ImageError,
    ModelFolderError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_PIXELS = 50_000_000
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """What preprocessor_config.json says: side S in pixels, mean and std per channel in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

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
            crop = config["crop_size"]
            mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        except FileNotFoundError:
            raise ModelFolderError(f"{path} is missing: this is not a model folder") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFolderError(f"{path} cannot be read: {error!r}") from error
        if (crop["height"], crop["width"], config.get("resample")) != (side, side, 3):
            raise ModelFolderError(
                f"{path} must resize the short side to the crop's side, bicubic (resample 3)"
            )
        return cls(side, mean, std)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Image bytes -> RGB image, upright, over white, fully decoded.

    Args:
        data: a JPEG, PNG, WebP, GIF or BMP file; of an animation the first frame is used.
        max_pixels: checked on the header, before anything is decoded.

    Raises:
        EmptyImage, UnsupportedImage, TooManyPixels, UndecodableImage: one line each.
    """
    if not data:
        raise EmptyImage("the image is empty: send the bytes of a JPEG, PNG, WebP, GIF or BMP")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_pixels(image.size, max_pixels)
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


def _unidentified(data: bytes) -> ImageError:
    """Text and noise cannot be decoded; a real image of another type is unsupported."""
    head = data[:64].lstrip()
    known = (b"II*\0", b"MM\0*", b"%PDF", b"8BPS", b"%!PS", b"<svg", b"<?xml", b"\0\0\1\0")
    boxes = (b"ftyp", b"jP  ")
    if head.startswith(known) or data[:4] == b"\0\0\1\0" or data[4:8] in boxes:
        return UnsupportedImage("this type of image is not read: send JPEG, PNG, WebP, GIF or BMP")
    return UndecodableImage("the data is not an image: send JPEG, PNG, WebP, GIF or BMP")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> upright RGB: 16 bits scaled, alpha over white."""
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        pass  # damaged metadata is not a damaged picture: it is shown as stored
    if image.mode.startswith("I") or image.mode == "F":
        return _from_16_bits(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.float64) / 257.0
    return Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8)).convert("RGB")


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
