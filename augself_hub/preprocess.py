"""Image bytes -> uint8 array: THE preprocessing contract.

EXIF orientation applied; alpha over white; 16 bits scaled to 8; short side resized to S (bicubic,
antialiased), centre crop S x S with floored offsets. Only the crop is ever computed. Normalisation
is left to the model. Equal to the stock BitImageProcessor within one grey level for 8-bit images.

Pillow does it; what else was measured, and why it is not used, is in docs/engine-choices.md. What a
file may cost is bounded before Pillow sees it: `augself_hub.images.structure`.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from augself_hub.configs import MAX_SIDE, image_statistics, number, read_json
from augself_hub.errors import (
    ImageError,
    ModelFolderError,
    TooManyPixels,
    UndecodableImage,
    UsageError,
)
from augself_hub.images.bounds import Bounds, Structure, check_pixels
from augself_hub.images.budget import DECODED
from augself_hub.images.structure import structure
from augself_hub.images.words import DECODES

MAX_PIXELS = Bounds.pixels
MOST_PIXELS = 2 * 89_478_485  # of any limit: Pillow's own, unless Image.MAX_IMAGE_PIXELS is changed
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
        """Image bytes -> (S, S, 3) uint8. Raises as the function `decode` does.

        The same as `preprocess(decode(data), size)`, without a second copy of a large picture.
        """
        found = structure(data, Bounds(pixels=max_pixels))
        with DECODED.lend(found.decoded_bytes), damage_named():
            least = 2 * self.size if self.decode == "fast" else None
            return _prepared(_decoded(found, max_pixels, least), found.orientation, self.size)

    @classmethod
    def from_folder(cls, folder: Path) -> Preprocessing:
        """Read a model folder's preprocessor_config.json.

        Raises:
            ModelFolderError: the file is missing or describes another contract than this one.
        """
        path = folder / "preprocessor_config.json"
        config = read_json(path)
        try:
            side = config["size"]["shortest_edge"]
            crop = config["crop_size"]["height"], config["crop_size"]["width"]
        except (KeyError, TypeError) as error:
            raise ModelFolderError(f"{path} cannot be read: {error!r}") from error
        number(side, f"{path}: size.shortest_edge", 1, MAX_SIDE, whole=True)
        mean, std = image_statistics(config, path)
        if (*crop, config.get("resample")) != (side, side, 3):
            raise ModelFolderError(
                f"{path} must resize the short side to the crop's side, bicubic (resample 3)"
            )
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        fixed = dict.fromkeys(steps, True) | {"do_flip_channel_order": False}
        for name, value in fixed.items():
            if config.get(name) not in (None, value):
                raise ModelFolderError(f"{path}: {name} must be {str(value).lower()} or left out")
        factor = number(config.get("rescale_factor") or 1 / 255, f"{path}: rescale_factor", 0, 1)
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ModelFolderError(f"{path}: rescale_factor must be 1/255 or left out")
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
    with decoded(data, max_pixels, least) as image:
        return image


@contextmanager
def decoded(
    data: bytes, max_pixels: int = MAX_PIXELS, least: int | None = None
) -> Iterator[Image.Image]:
    """The same, its bytes lent for as long as the `with` lasts: another one inside may wait for
    ever. Arguments and errors are `decode`'s."""
    found = structure(data, Bounds(pixels=max_pixels))
    with DECODED.lend(found.decoded_bytes + 4 * found.width * found.height):
        with damage_named():
            image = to_rgb(_decoded(found, max_pixels, least), found.orientation)
        yield image


@contextmanager
def damage_named() -> Iterator[None]:
    """What Pillow raises of a damaged picture becomes an ImageError.

    It checks much of a file only when it converts the picture, and some of it by assertions.

    Raises:
        UndecodableImage, TooManyPixels.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("the image cannot be decoded: damaged data") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TooManyPixels(
            f"the image has more than the {most} pixels that Pillow opens"
        ) from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged data"
        raise UndecodableImage(f"the image cannot be decoded: {reason}") from error


_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
)


def _decoded(found: Structure, max_pixels: int, least: int | None) -> Image.Image:
    """In Pillow's mode and as stored; a hidden color is one of alpha 0, or white already."""
    image = Image.open(io.BytesIO(found.data), formats=(found.format,))
    check_pixels(image.size, max_pixels)
    if least is not None:
        image.draft(None, (least, least))  # only JPEGs have one
    image.load()
    return _hidden(image, found) if found.hidden else image


def _hidden(image: Image.Image, found: Structure) -> Image.Image:
    """A PNG's one transparent color, compared in all its bits, which Pillow does for 8 only."""
    if found.depth < 16:
        samples = tuple(sample * 255 // (2**found.depth - 1) for sample in found.hidden)
        image.info["transparency"] = samples if len(samples) == 3 else samples[0]
        return image
    del image.info["transparency"]
    if len(found.hidden) == 1:
        gray = np.array(image)
        gray[gray == found.hidden[0]] = 65535
        return Image.fromarray(gray)
    low = Image.open(io.BytesIO(found.data), formats=(found.format,))
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # the other byte of each sample
    high, hidden = np.array(image), np.array(found.hidden)
    same = (high == hidden >> 8) & (np.asarray(low) == hidden & 255)
    high[same.all(axis=-1)] = 255
    return Image.fromarray(high)


def to_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Any mode -> upright RGB: 16 bits scaled, alpha over white.

    Args:
        orientation: Exif's, 1 to 8; None: what the image itself says.
    """
    if orientation is None:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # damaged metadata is not a damaged picture: it is shown as stored
            orientation = 1
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "RGB" and not image.has_transparency_data and image.format != "WEBP":
        return image  # WebP's decoder keeps more pictures as long as this one lives
    if image.mode.startswith("I"):
        eight = _TO_8_BITS[np.clip(np.asarray(image), 0, 65535)]
        return Image.fromarray(eight).convert("RGB")
    if image.has_transparency_data:
        whole = Image.new("RGB", image.size)
        every = max(1, _STRIP // image.width)
        for start in range(0, image.height, every):  # each step of it makes a copy of 4 bytes
            end = min(start + every, image.height)
            strip = image.crop((0, start, image.width, end)).convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, start))
        return whole
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


_TO_8_BITS = np.round(np.arange(65536) / 257).astype(np.uint8)


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> (size, size, 3) uint8: short side to `size`, bicubic, centre crop."""
    return _resampled(image, _seen(image.size, size), size, Image.Resampling.BICUBIC)


def _seen(sides: tuple[int, int], size: int) -> Box:
    """What of an upright picture the model sees: left, top, right, bottom, in its pixels."""
    width, height = sides
    if width <= height:
        resized = size, int(size * height / width)
    else:
        resized = int(size * width / height), size
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    x, y = width / resized[0], height / resized[1]
    return _within((left * x, top * y, (left + size) * x, (top + size) * y), sides)


def _within(box: Box, sides: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return max(left, 0.0), max(top, 0.0), min(right, sides[0]), min(bottom, sides[1])


_STRIP = 2**20  # pixels that are made upright and composited at a time


def _prepared(image: Image.Image, orientation: int, size: int) -> np.ndarray:
    """`preprocess(to_rgb(image, orientation), size)`, bit by bit, a strip of lines at a time.

    Pillow resizes along lines, then along columns; so the lines of a strip are resized by
    themselves, and the columns of all strips together. No full copy of the picture is made to turn
    it, to put it over white, or to change its mode.
    """
    sides = image.size[::-1] if orientation >= 5 else image.size
    if orientation == 1 and image.mode == "RGB" and not image.has_transparency_data:
        return preprocess(image, size)
    if sides[0] * sides[1] <= _STRIP:
        return preprocess(to_rgb(image, orientation), size)
    # Pillow takes boxes as float32: rounded here, they stay the same where lines are left out.
    left, top, right, bottom = (float(np.float32(side)) for side in _seen(sides, size))
    reach = 2 * max(1.0, (bottom - top) / size) + 2  # of the bicubic filter
    first, last = max(0, int(top - reach)), min(sides[1], int(bottom + reach) + 1)
    # Only of what is more than a hundred times as high as wide does Pillow resize columns first.
    narrow = sides[1] > 100 * sides[0]
    width, every = sides[0] if narrow else size, max(1, _STRIP // sides[0])
    lines = Image.new("RGB", (width, last - first))
    for start in range(first, last, every):
        end = min(start + every, last)
        strip = to_rgb(image.crop(_stored(orientation, image.size, start, end)), orientation)
        if not narrow:
            box = (left, 0, right, end - start)
            strip = strip.resize((width, end - start), Image.Resampling.BICUBIC, box)
        lines.paste(strip, (0, start - first))
    seen = (0, top - first, width, bottom - first)
    lines = lines.resize((width, size), Image.Resampling.BICUBIC, seen)
    across = (left, 0, right, size) if narrow else (0, 0, size, size)
    return np.asarray(lines.resize((size, size), Image.Resampling.BICUBIC, across))


def _stored(
    orientation: int, sides: tuple[int, int], start: int, end: int
) -> tuple[int, int, int, int]:
    """Where lines of the upright picture lie in the stored one: left, top, right, bottom."""
    width, height = sides
    if orientation in (1, 2):
        return 0, start, width, end
    if orientation in (3, 4):
        return 0, height - end, width, height - start
    if orientation in (5, 6):
        return start, 0, end, height
    return width - end, 0, width - start, height


def crop_resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """The training crop: a box (left, top, right, bottom) in pixels -> (size, size, 3) uint8.

    Bilinear, antialiased.
    """
    return _resampled(image, box, size, Image.Resampling.BILINEAR)


def _resampled(image: Image.Image, box: Box, size: int, method: Image.Resampling) -> np.ndarray:
    return np.asarray(image.resize((size, size), method, box=_within(box, image.size)))


def load(path: Path, size: int) -> np.ndarray:
    """Image file -> (size, size, 3) uint8 as the encoder wants it. Raises as `decode` does."""
    return Preprocessing(size, (0.5,) * 3, (0.5,) * 3).prepare(path.read_bytes())
