"""What the file of one image may hold, and what was found in it."""

from __future__ import annotations

from dataclasses import dataclass

from augself_hub.errors import TooManyPixels, UndecodableImage


@dataclass(frozen=True)
class Bounds:
    """What the file of one image may hold; docs/images.md says what real files were found to hold.

    Args:
        pixels: width times height.
        jpeg_segments: of a JPEG's first picture, metadata included; each has at most 64 KB.
        jpeg_scans: of a progressive JPEG; each is a pass over the picture, ten are usual.
        jpeg_table_bytes: of quantization and Huffman tables before the first scan.
        png_chunks: whatever they hold; usually 8 KiB of pixels each, or more.
        text_bytes: of a compressed text of a PNG, inflated, that may hold the orientation.
        gif_blocks: of 255 bytes at most, in the extensions before the first frame.
        webp_chunks: an animation has one a frame.
        rle_pixels: of a BMP with run-length encoding, which Pillow decodes pixel by pixel.
        rle_width: of such a BMP, whose runs may move up by 255 lines at once.
    """

    pixels: int = 50_000_000
    jpeg_segments: int = 4096
    jpeg_scans: int = 100
    jpeg_table_bytes: int = 65_536
    png_chunks: int = 65_536
    text_bytes: int = 8 * 2**20
    gif_blocks: int = 65_536
    webp_chunks: int = 65_536
    rle_pixels: int = 2_500_000
    rle_width: int = 65_536


@dataclass(frozen=True)
class Structure:
    """What the file of one image holds.

    Args:
        format: JPEG, PNG, WEBP, GIF or BMP.
        width, height: as stored, in pixels.
        data: a file of the same first picture, without metadata and what follows it.
        orientation: Exif's, 1 to 8; 1 is upright.
        decoded_bytes: of memory that Pillow takes to decode it, at most.
        depth: bits of a sample.
        hidden: samples of the one color of a PNG without alpha that is transparent; else ().
    """

    format: str
    width: int
    height: int
    data: bytes
    orientation: int
    decoded_bytes: int
    depth: int = 8
    hidden: tuple[int, ...] = ()

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height, in pixels, once the orientation is applied."""
        size = self.width, self.height
        return size[::-1] if self.orientation >= 5 else size


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raises UndecodableImage for no pixels, TooManyPixels for more than these."""
    width, height = size
    if width * height == 0:
        raise cannot(f"it is {width} x {height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the image has {width} x {height} pixels, more than the {max_pixels} allowed"
        )


def cannot(reason: str) -> UndecodableImage:
    return UndecodableImage(f"the image cannot be decoded: {reason}")


def too_many(kind: str, bound: int, what: str) -> UndecodableImage:
    return cannot(f"a {kind} of more than {bound} {what}; save it again")
