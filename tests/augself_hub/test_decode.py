"""Image bytes -> upright RGB: formats, modes, and images that mean harm.

Every file is made here.
"""

import contextlib
import io
import resource
import struct
import time
import zlib
from itertools import chain

import numpy as np
import pytest
from handmade import DAMAGED_PALETTES, chunk, photograph, png, saved
from PIL import Image, ImageOps

from augself_hub.errors import (
    EmptyImage,
    ImageError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
)
from augself_hub.images.bounds import Bounds
from augself_hub.preprocess import MOST_PIXELS, Preprocessing, decode, decoded, load

PHOTOGRAPH = photograph(48, 64)
PNG = saved(PHOTOGRAPH, "PNG")
JPEG = saved(PHOTOGRAPH, "JPEG", quality=95)


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


# -- Formats and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_read_and_upright_rgb(image_format):
    image = decode(saved(PHOTOGRAPH, image_format))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert difference(image, PHOTOGRAPH).mean() <= (0 if image_format in ("PNG", "BMP") else 20)


@pytest.mark.parametrize("space", ["CMYK", "L"])
def test_a_jpeg_of_another_colour_space_is_near_its_rgb_twin(space):
    twin = PHOTOGRAPH.convert(space).convert("RGB")
    data = saved(PHOTOGRAPH.convert(space), "JPEG", quality=95)
    assert difference(decode(data), twin).mean() < 4


def test_sixteen_bits_are_scaled_not_clipped():
    values = [0, 128, 129, 257, 32_896, 65_407, 65_535]  # 128/257 rounds to 0, 129/257 to 1
    image = decode(png((7, 1), [struct.pack(">7H", *values)], depth=16, color=0))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_sixteen_bit_colour_is_scaled():
    image = decode(png((2, 1), [struct.pack(">6H", 0, 257, 32_896, 65_535, 25_700, 514)], depth=16))
    assert np.asarray(image)[0].tolist() == [[0, 1, 128], [255, 100, 2]]


@pytest.mark.parametrize(
    ("color", "row", "more", "expected"),
    [
        (6, bytes([200, 100, 0, 255, 200, 100, 0, 0]), (), [[200, 100, 0], [255] * 3]),
        (6, bytes([200, 100, 0, 51] * 2), (), [[244, 224, 204]] * 2),  # a fifth of it, on white
        (4, bytes([100, 255, 100, 0]), (), [[100] * 3, [255] * 3]),
        (2, bytes([1, 2, 3, 4, 5, 6]), [chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))],
         [[255] * 3, [4, 5, 6]]),
        (0, bytes([7, 8]), [chunk(b"tRNS", bytes([0, 7]))], [[255] * 3, [8] * 3]),
        (3, bytes([0, 1]), [chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4]))], [[9, 8, 7], [6, 5, 4]]),
        (3, bytes([0, 1]),
         [chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])), chunk(b"tRNS", bytes([0, 255]))],
         [[255] * 3, [6, 5, 4]]),
    ],
    ids=["RGBA", "half", "LA", "RGB+tRNS", "L+tRNS", "P", "P+tRNS"],
)  # fmt: skip
def test_alpha_is_over_white(color, row, more, expected):
    image = decode(png((2, 1), [row], *more, color=color))
    assert difference(np.asarray(image)[0], expected).max() <= 1


def packed(samples, depth):
    """Samples of one line -> its bytes, the first in the highest bits."""
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    return bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_white_at_every_depth(depth):
    """Its twin in RGBA has alpha 0 where the sample is the hidden one, in all its bits."""
    most = 2**depth - 1
    samples = sorted({0, 1, most // 3, most // 2, most // 2 + 1, most - 1, most})
    levels = [round(sample * 255 / most) for sample in samples]
    for hidden in samples:
        more = chunk(b"tRNS", struct.pack(">H", hidden))
        data = png((len(samples), 1), [packed(samples, depth)], more, depth=depth, color=0)
        rgba = [[v, v, v, 0 if s == hidden else 255] for s, v in zip(samples, levels, strict=True)]
        twin = decode(png((len(samples), 1), [bytes(chain(*rgba))], color=6))
        assert difference(decode(data), twin).max() <= (1 if depth == 16 else 0)


def test_the_transparent_color_of_sixteen_bits_is_compared_in_all_of_them():
    hidden, pixels = (0x1234, 0x5678, 0x9ABC), []
    for change in (0, 1, 0x100):
        pixels += [hidden[0], hidden[1], hidden[2] ^ change]
    more = chunk(b"tRNS", struct.pack(">3H", *hidden))
    image = decode(png((3, 1), [struct.pack(">9H", *pixels)], more, depth=16))
    assert np.asarray(image)[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9B]]


def test_unused_high_bits_of_a_transparent_sample_do_not_count():
    more = chunk(b"tRNS", struct.pack(">3H", 0xFF01, 2, 3))
    image = decode(png((2, 1), [bytes([1, 2, 3, 1, 2, 4])], more))
    assert np.asarray(image)[0].tolist() == [[255] * 3, [1, 2, 4]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [[0], [255, 0], [51], [255, 51], [255, 255], [0, 255]])
def test_palettes_are_their_rgba_twins_at_every_depth(depth, alphas):
    """Fewer alphas than colors: the rest are opaque."""
    palette = [(10, 20, 30), (200, 100, 50), (0, 0, 0), (255, 254, 253)][: 2**depth]
    more = chunk(b"PLTE", bytes(chain(*palette))), chunk(b"tRNS", bytes(alphas))
    row, count = packed(range(len(palette)), depth), len(palette)
    image = decode(png((count, 1), [row], *more, depth=depth, color=3))
    alphas = alphas + [255] * (count - len(alphas))
    twin = bytes(chain(*([*c, a] for c, a in zip(palette, alphas, strict=True))))
    assert difference(image, decode(png((count, 1), [twin], color=6))).max() == 0


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_damaged_transparent_color_is_refused(length):
    data = png((1, 1), [b"\7"], chunk(b"tRNS", bytes(length)), color=0)
    with pytest.raises(UndecodableImage, match="transparent color"):
        decode(data)


@pytest.mark.parametrize("data", DAMAGED_PALETTES.values(), ids=DAMAGED_PALETTES)
def test_a_damaged_palette_is_refused(data):
    refused(data, UndecodableImage, "palette")


def test_a_palette_without_pixels_of_it_is_nobodys_business():
    """A suggested palette of a PNG in true color may stand anywhere, or hold nothing."""
    image = decode(png((1, 1), [bytes([1, 2, 3])], chunk(b"PLTE"), color=2))
    assert image.getpixel((0, 0)) == (1, 2, 3)


def test_more_alphas_than_colors_are_read_up_to_256():
    more = chunk(b"PLTE", bytes([9, 8, 7])), chunk(b"tRNS", bytes([255] * 256))
    assert decode(png((1, 1), [bytes(1)], *more, color=3)).getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("size", [(64, 48), (1500, 1000)], ids=["whole", "in strips"])
@pytest.mark.parametrize("error", [AssertionError(), TypeError("of\ntwo lines"), EOFError()])
def test_what_pillow_raises_late_is_an_undecodable_image(monkeypatch, size, error):
    """Whatever the structure's check lets pass, in both ways a picture is read."""

    def convert(*given, **options):
        raise error

    data = saved(Image.new("L", size), "PNG")
    monkeypatch.setattr(Image.Image, "convert", convert)
    for read in (decode, Preprocessing(32, (0.5,) * 3, (0.5,) * 3).prepare):
        with pytest.raises(UndecodableImage, match=r"be decoded: (damaged|of)"):
            read(data)


def test_what_is_done_with_a_decoded_picture_may_raise_as_it_likes():
    with pytest.raises(ValueError, match="mine"), decoded(PNG):
        raise ValueError("mine")


def test_one_bit_is_black_and_white():
    image = decode(png((8, 1), [b"\xa0"], depth=1, color=0))
    assert np.asarray(image)[0, :3, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used(image_format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = saved(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert (np.asarray(decode(data)) == (255, 0, 0)).all()


def test_a_gif_of_100_000_frames_is_answered_at_once():
    one = saved(Image.new("L", (4, 4), 255), "GIF")
    at = one.index(b",")  # the image block: from its separator to the trailer
    data = one[:at] + one[at:-1] * 100_000 + b";"
    started = time.process_time()
    assert decode(data).size == (4, 4)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = saved(PHOTOGRAPH, image_format, exif=exif, **options.get(image_format, {}))
    pixels = np.asarray(PHOTOGRAPH)
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    assert difference(decode(data), upright).mean() < 2
    np.testing.assert_array_equal(
        decode(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    )


EXIF = b"Exif\0\0MM\0*\0\0\0\x08"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0", b"Exif\0\0garbage", EXIF, EXIF + b"\xff\xff" + b"\x01\x12" * 4,
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        EXIF + b"\0\1\x01\x12\0\2\xff\xff\xff\xff\xff\xff\xff\xff",
        EXIF + b"\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
    ],
)  # fmt: skip
def test_a_picture_with_damaged_exif_is_shown_as_stored(exif):
    without = decode(saved(PHOTOGRAPH, "JPEG"))
    np.testing.assert_array_equal(decode(saved(PHOTOGRAPH, "JPEG", exif=exif)), without)


def test_damage_elsewhere_in_exif_does_not_lose_the_orientation():
    """A maker's note of a type that cannot be written back, which ImageOps.exif_transpose does."""
    entries = [struct.pack(">HHII", 0x0112, 3, 1, 6 << 16), struct.pack(">HHII", 0x8769, 2, 4, 0)]
    exif = EXIF + struct.pack(">H", 2) + b"".join(entries) + bytes(4)
    assert decode(saved(PHOTOGRAPH, "JPEG", exif=exif)).size == (48, 64)


@pytest.mark.parametrize(
    "damaged", [b"name\0\0no zlib", b"name\0\0" + zlib.compress(b"no profile")]
)
def test_a_picture_with_a_damaged_colour_profile_is_read(damaged):
    rows = [bytes([1, 2, 3])]
    assert decode(png((1, 1), rows, chunk(b"iCCP", damaged))).getpixel((0, 0)) == (1, 2, 3)


def test_a_picture_with_damaged_xmp_is_read():
    assert decode(saved(PHOTOGRAPH, "JPEG", xmp=b"\xff\0<x:xmpmeta")).size == (64, 48)


# -- Bad inputs ------------------------------------------------------------------------------------


def refused(data, error, match="."):
    """Exactly this error, one line, no address in it; a good image after it is read."""
    with pytest.raises(error, match=match) as caught:
        decode(data)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    assert "object at" not in str(caught.value)
    np.testing.assert_array_equal(decode(PNG), PHOTOGRAPH)


def test_nothing_is_refused_as_empty():
    refused(b"", EmptyImage)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "data",
    [
        PNG, saved(Image.linear_gradient("L"), "PNG"), JPEG,
        saved(PHOTOGRAPH, "JPEG", progressive=True), saved(PHOTOGRAPH, "WEBP"),
        saved(PHOTOGRAPH, "BMP"), saved(PHOTOGRAPH, "GIF"),
    ],
    ids=["PNG", "smooth PNG", "JPEG", "progressive JPEG", "WebP", "BMP", "GIF"],
)  # fmt: skip
def test_a_truncated_file_is_refused(data, kept):
    refused(data[: int(len(data) * kept)], UndecodableImage)


@pytest.mark.parametrize("missing", [1, 4, 11, 12])
def test_a_png_without_its_end_is_refused(missing):
    refused(PNG[:-missing], UndecodableImage, "truncated")


def test_a_jpeg_without_its_end_is_refused():
    refused(JPEG[:-2], UndecodableImage, "truncated")


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND"])
def test_a_wrong_png_checksum_is_refused(kind):
    damaged = bytearray(PNG)
    at = PNG.index(kind)
    damaged[at + 4 + struct.unpack(">I", PNG[at - 4 : at])[0]] ^= 1
    refused(bytes(damaged), UndecodableImage)


@pytest.mark.parametrize(
    "data",
    [
        b"hello world", b"<html><body><svg></svg></body></html>", b"\xef\xbb\xbf<!DOCTYPE html>",
        b"\xff", b"\0" * 100, b"BMW is a car maker from Bavaria", b"GIF89a", b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b'{"image": 1}', b"PK\3\4" + b"\0" * 60,
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(data):
    refused(data, UndecodableImage)


def test_random_bytes_are_refused():
    random = np.random.default_rng(0)
    for size in (10, 100, 10_000):
        refused(random.bytes(size), UndecodableImage)


@pytest.mark.parametrize("data", [PNG, JPEG, saved(PHOTOGRAPH.convert("P"), "GIF"),
                                  saved(PHOTOGRAPH, "WEBP"), saved(PHOTOGRAPH, "BMP")],
                         ids=["PNG", "JPEG", "GIF", "WebP", "BMP"])  # fmt: skip
def test_flipped_bits_are_an_image_or_a_typed_error(data):
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 400), size=3):
            damaged[at] ^= 1 << random.integers(8)
        with contextlib.suppress(ImageError):
            assert decode(bytes(damaged), max_pixels=1_000_000).mode == "RGB"


def test_chunks_out_of_order_are_an_image_or_a_typed_error():
    """With good checksums, so that what is in the chunks is read."""
    random = np.random.default_rng(0)
    quantized = PHOTOGRAPH.quantize(16)
    seeds = [
        PNG,
        saved(quantized, "PNG"),
        saved(quantized, "PNG", transparency=bytes([0, 128, 255])),
        saved(PHOTOGRAPH.convert("L"), "PNG", transparency=5),
        saved(PHOTOGRAPH.convert("1"), "PNG"),
    ]
    for _ in range(600):
        data, chunks, at = seeds[random.integers(len(seeds))], [], 8
        while at < len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            chunks.append((data[at + 4 : at + 8], data[at + 8 : end]))
            at = end + 4
        for _ in range(random.integers(1, 4)):
            number = int(random.integers(1, len(chunks)))
            kind, body = chunks.pop(number) if len(chunks) > 2 else chunks[number]
            way, to = random.integers(4), int(random.integers(1, len(chunks) + 1))
            if way == 1:
                chunks.insert(to, (kind, body[: random.integers(len(body) + 1)]))
            elif way == 2:
                chunks.insert(to, (kind, (body * 40)[:3000]))
            elif way == 3:
                chunks.insert(to, ((b"PLTE", b"tRNS")[to % 2], random.bytes(to * 150)))
        damaged = data[:8] + b"".join(chunk(*one) for one in chunks)
        with contextlib.suppress(ImageError):
            assert decode(damaged, max_pixels=1_000_000).mode == "RGB"


OTHER_TYPES = {
    "TIFF": saved(PHOTOGRAPH, "TIFF"),
    "big-endian TIFF": b"MM\0*\0\0\0\x08",
    "BigTIFF": b"II+\0\x08\0\0\0",
    "ICO": saved(PHOTOGRAPH, "ICO"),
    "EPS": saved(PHOTOGRAPH, "EPS"),
    "PDF": saved(PHOTOGRAPH, "PDF"),
    "PSD": b"8BPS\0\1" + bytes(20),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG with prologue": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<svg/>',
    "SVG with doctype": b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''><svg/>",
    "JP2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "J2K": b"\xff\x4f\xff\x51\0\x2f",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif",
}


@pytest.mark.parametrize("data", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_images_of_other_types_are_unsupported(data):
    refused(data, UnsupportedImage, "send JPEG, PNG, WebP, GIF or BMP")


@pytest.mark.parametrize("name", ["TIFF", "SVG", "ICO"])
def test_also_when_they_are_named_jpg(tmp_path, name):
    path = tmp_path / "photograph.jpg"
    path.write_bytes(OTHER_TYPES[name])
    with pytest.raises(UnsupportedImage):
        load(path, 32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7072, 10_000, 30_000, 2**31 - 1])
def test_a_header_of_too_many_pixels_is_refused_without_the_memory(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(png((side, side), [bytes(1000)]), TooManyPixels, "50000000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_the_limit_is_the_callers():
    assert decode(PNG, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(TooManyPixels, match="64 x 48 pixels, more than the 3071 allowed"):
        decode(PNG, max_pixels=64 * 48 - 1)


def test_pillows_own_limit_is_not_told_as_the_callers(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooManyPixels, match="more than the 2000 pixels that Pillow opens"):
        decode(PNG)


def test_the_most_that_a_limit_may_be_is_what_pillow_opens():
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0), (0, 0)])
def test_no_pixels_are_refused(width, height):
    refused(png((width, height), [b""]), UndecodableImage)


def jpeg_of_scans(extra):
    """A progressive JPEG whose last scan comes `extra` times more."""
    head, *scans = saved(PHOTOGRAPH, "JPEG", progressive=True)[:-2].split(b"\xff\xda")
    return b"\xff\xda".join([head, *scans, *[scans[-1]] * extra]) + b"\xff\xd9", len(scans)


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data, usual = jpeg_of_scans(5000)
    started = time.process_time()
    refused(data, UndecodableImage, "more than 100 scans")
    assert time.process_time() - started < 1
    assert decode(jpeg_of_scans(Bounds.jpeg_scans - usual)[0]).size == (64, 48)
    refused(jpeg_of_scans(Bounds.jpeg_scans - usual + 1)[0], UndecodableImage)


def test_what_follows_an_image_is_ignored():
    """JPEG + ZIP polyglots, motion photographs: also when it looks like thousands of scans."""
    for tail in (b"PK\3\4" + bytes(1000), b"\xff\xda" * 5000):
        assert decode(JPEG + tail).size == (64, 48)
        assert decode(PNG + tail).size == (64, 48)
