"""The preprocessing contract: parity with the stock processor, and images that mean harm.

Every file is made here.
"""

import contextlib
import dataclasses
import io
import json
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from augself_hub.errors import (
    EmptyImage,
    ImageError,
    ModelFolderError,
    TooManyPixels,
    UndecodableImage,
    UnsupportedImage,
    UsageError,
)
from augself_hub.preprocess import (
    MAX_SCANS,
    Preprocessing,
    crop_resized,
    decode,
    load,
    preprocess,
)


def photograph(height, width, seed=0):
    """Waves and noise in three colours: smooth areas, edges, no symmetry."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width, 0:1][:2]
    waves = 60 * np.sin(x / 7.3) * [1, 0.5, 0.2] + 50 * np.cos(y / 5.1 + x / 31) * [0.3, 1, 0.6]
    pixels = 128 + waves + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, color, rows, *more):
    """A PNG by hand: header, other chunks, data, end."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND")]
    )


PHOTOGRAPH = photograph(48, 64)
PNG = encoded(PHOTOGRAPH, "PNG")
JPEG = encoded(PHOTOGRAPH, "JPEG", quality=95)


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


# -- Parity with transformers ----------------------------------------------------------------------

SIZES = [
    (1, 1), (1, 7), (7, 1), (1, 100), (33, 57), (97, 96), (224, 224), (225, 301), (301, 225),
    (375, 500), (501, 333), (40, 1000), (300, 20),
]  # fmt: skip


def stock(backend, size, image):
    transformers = pytest.importorskip("transformers")
    pil = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil
    processor = {"pil": pil, "torchvision": transformers.BitImageProcessor}[backend](
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    return np.asarray(pixels).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("picture", [photograph, noise])
def test_equal_to_the_stock_processor(size, height, width, picture):
    """Within a grey level and 0.001 on average of the Pillow backend.

    The torchvision backend rounds differently while it enlarges: it is up to 2 grey levels from
    the Pillow backend, and no farther from us.
    """
    image = picture(height, width)
    ours = preprocess(image, size)
    pillow, torchvision = stock("pil", size, image), stock("torchvision", size, image)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
    assert difference(ours, pillow).max() <= 1
    assert difference(ours, pillow).mean() <= 0.001
    shrinks = min(height, width) >= size
    assert difference(ours, torchvision).max() <= (1 if shrinks else 2)
    assert difference(ours, torchvision).mean() <= max(
        0.01, difference(pillow, torchvision).mean() + 0.001
    )


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_are_equal_to_the_stock_processor_too(backend, mode):
    image = photograph(60, 80).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize((80, 60)))
    ours = preprocess(decode(encoded(image, "PNG")), 48)
    assert difference(ours, stock(backend, 48, image)).max() <= 1


def test_only_the_crop_is_computed():
    """1 x 40,000 pixels would be 224 x 8,960,000 if the whole were resized."""
    image = Image.new("RGB", (40_000, 1), (10, 20, 30))
    image.paste((200, 100, 0), (20_000, 0, 40_000, 1))
    ours = preprocess(image, 224)
    assert (ours[:, 0] == (10, 20, 30)).all() and (ours[:, -1] == (200, 100, 0)).all()


def test_the_training_crop_is_pillows_antialiased_bilinear_resize():
    image = photograph(100, 120)
    ours = crop_resized(image, (20, 10, 110, 90), 32)
    theirs = image.crop((20, 10, 110, 90)).resize((32, 32), Image.Resampling.BILINEAR)
    assert difference(ours, theirs)[1:-1, 1:-1].max() <= 1  # edges see beyond the box


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    path = tmp_path / "photograph.txt"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(load(path, 24), preprocess(PHOTOGRAPH, 24))


# -- Formats and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_read_and_upright_rgb(image_format):
    image = decode(encoded(PHOTOGRAPH, image_format))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert difference(image, PHOTOGRAPH).mean() <= (0 if image_format in ("PNG", "BMP") else 20)


@pytest.mark.parametrize("space", ["CMYK", "L"])
def test_a_jpeg_of_another_colour_space_is_near_its_rgb_twin(space):
    twin = PHOTOGRAPH.convert(space).convert("RGB")
    data = encoded(PHOTOGRAPH.convert(space), "JPEG", quality=95)
    assert difference(decode(data), twin).mean() < 4


def test_sixteen_bits_are_scaled_not_clipped():
    values = [0, 128, 129, 257, 32_896, 65_407, 65_535]  # 128/257 rounds to 0, 129/257 to 1
    image = decode(png(7, 1, 16, 0, [struct.pack(">7H", *values)]))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_sixteen_bit_colour_is_scaled():
    image = decode(png(2, 1, 16, 2, [struct.pack(">6H", 0, 257, 32_896, 65_535, 25_700, 514)]))
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
    image = decode(png(2, 1, 8, color, [row], *more))
    assert difference(np.asarray(image)[0], expected).max() <= 1


def test_one_bit_is_black_and_white():
    image = decode(png(8, 1, 1, 0, [b"\xa0"]))
    assert np.asarray(image)[0, :3, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used(image_format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert (np.asarray(decode(data)) == (255, 0, 0)).all()


def test_a_gif_of_100_000_frames_is_answered_at_once():
    one = encoded(Image.new("L", (4, 4), 255), "GIF")
    at = one.index(b",")  # the image block: from its separator to the trailer
    data = one[:at] + one[at:-1] * 100_000 + b";"
    started = time.monotonic()
    assert decode(data).size == (4, 4)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = encoded(PHOTOGRAPH, image_format, exif=exif, **options.get(image_format, {}))
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
    without = decode(encoded(PHOTOGRAPH, "JPEG"))
    np.testing.assert_array_equal(decode(encoded(PHOTOGRAPH, "JPEG", exif=exif)), without)


def test_damage_elsewhere_in_exif_does_not_lose_the_orientation():
    """A maker's note of a type that cannot be written back, which ImageOps.exif_transpose does."""
    entries = [struct.pack(">HHII", 0x0112, 3, 1, 6 << 16), struct.pack(">HHII", 0x8769, 2, 4, 0)]
    exif = EXIF + struct.pack(">H", 2) + b"".join(entries) + bytes(4)
    assert decode(encoded(PHOTOGRAPH, "JPEG", exif=exif)).size == (48, 64)


@pytest.mark.parametrize(
    "damaged", [b"name\0\0no zlib", b"name\0\0" + zlib.compress(b"no profile")]
)
def test_a_picture_with_a_damaged_colour_profile_is_read(damaged):
    rows = [bytes([1, 2, 3])]
    assert decode(png(1, 1, 8, 2, rows, chunk(b"iCCP", damaged))).getpixel((0, 0)) == (1, 2, 3)


def test_a_picture_with_damaged_xmp_is_read():
    assert decode(encoded(PHOTOGRAPH, "JPEG", xmp=b"\xff\0<x:xmpmeta")).size == (64, 48)


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
        PNG, encoded(Image.linear_gradient("L"), "PNG"), JPEG,
        encoded(PHOTOGRAPH, "JPEG", progressive=True), encoded(PHOTOGRAPH, "WEBP"),
        encoded(PHOTOGRAPH, "BMP"), encoded(PHOTOGRAPH, "GIF"),
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


@pytest.mark.parametrize("data", [PNG, JPEG, encoded(PHOTOGRAPH.convert("P"), "GIF"),
                                  encoded(PHOTOGRAPH, "WEBP"), encoded(PHOTOGRAPH, "BMP")],
                         ids=["PNG", "JPEG", "GIF", "WebP", "BMP"])  # fmt: skip
def test_flipped_bits_are_an_image_or_a_typed_error(data):
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 400), size=3):
            damaged[at] ^= 1 << random.integers(8)
        with contextlib.suppress(ImageError):
            assert decode(bytes(damaged), max_pixels=1_000_000).mode == "RGB"


OTHER_TYPES = {
    "TIFF": encoded(PHOTOGRAPH, "TIFF"),
    "big-endian TIFF": b"MM\0*\0\0\0\x08",
    "BigTIFF": b"II+\0\x08\0\0\0",
    "ICO": encoded(PHOTOGRAPH, "ICO"),
    "EPS": encoded(PHOTOGRAPH, "EPS"),
    "PDF": encoded(PHOTOGRAPH, "PDF"),
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
    refused(png(side, side, 8, 2, [bytes(1000)]), TooManyPixels, "50000000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_the_limit_is_the_callers():
    assert decode(PNG, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(TooManyPixels, match="64 x 48 pixels, more than the 3071 allowed"):
        decode(PNG, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0), (0, 0)])
def test_no_pixels_are_refused(width, height):
    refused(png(width, height, 8, 2, [b""]), UndecodableImage)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000)))],
        [chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(300_000_000)))],
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 300,
        [chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000)))],
    ],
    ids=["zTXt", "iTXt", "many zTXt", "iCCP"],
)
def test_a_bomb_in_text_or_profile_is_bounded(chunks):
    data = png(1, 1, 8, 2, [bytes(3)], *chunks)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(data, UndecodableImage)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB
    assert time.monotonic() - started < 2


def jpeg_of_scans(extra):
    """A progressive JPEG whose last scan comes `extra` times more."""
    head, *scans = encoded(PHOTOGRAPH, "JPEG", progressive=True)[:-2].split(b"\xff\xda")
    return b"\xff\xda".join([head, *scans, *[scans[-1]] * extra]) + b"\xff\xd9", len(scans)


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data, usual = jpeg_of_scans(5000)
    started = time.monotonic()
    refused(data, UndecodableImage, "more than 100 scans")
    assert time.monotonic() - started < 1
    assert decode(jpeg_of_scans(MAX_SCANS - usual)[0]).size == (64, 48)
    refused(jpeg_of_scans(MAX_SCANS - usual + 1)[0], UndecodableImage)


def test_what_follows_an_image_is_ignored():
    """JPEG + ZIP polyglots, motion photographs: also when it looks like thousands of scans."""
    for tail in (b"PK\3\4" + bytes(1000), b"\xff\xda" * 5000):
        assert decode(JPEG + tail).size == (64, 48)
        assert decode(PNG + tail).size == (64, 48)


# -- preprocessor_config.json ----------------------------------------------------------------------

CONFIG = {
    "size": {"shortest_edge": 96},
    "crop_size": {"height": 96, "width": 96},
    "resample": 3,
    "image_mean": [0.43, 0.42, 0.39],
    "image_std": [0.27, 0.26, 0.27],
}


def write_config(folder, **changes):
    (folder / "preprocessor_config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def test_a_folders_preprocessing_is_read(tmp_path):
    ours = Preprocessing.from_folder(write_config(tmp_path, do_resize=True))
    assert ours == Preprocessing(96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27))


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 2}, {"crop_size": {"height": 96, "width": 64}}, {"size": {"height": 96}},
        {"size": {"shortest_edge": 110}}, {"image_mean": None}, {"crop_size": 96},
    ],
)  # fmt: skip
def test_another_contract_is_refused(tmp_path, changes):
    with pytest.raises(ModelFolderError, match=r"preprocessor_config\.json"):
        Preprocessing.from_folder(write_config(tmp_path, **changes))


def test_a_folder_without_it_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="is missing"):
        Preprocessing.from_folder(tmp_path)


def test_fast_decoding_is_near_the_exact_one_and_never_the_default(photographs):
    """On a photograph that is large enough to be decoded at half its size."""
    way = Preprocessing(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = photographs[0].read_bytes()
    exact, fast = (dataclasses.replace(way, decode=d).prepare(data) for d in ("exact", "fast"))
    assert (way.prepare(data) == exact).all()
    difference = np.abs(exact.astype(int) - fast.astype(int))
    assert 0 < difference.mean() < 2


def test_fast_decoding_leaves_what_is_small_or_no_jpeg_alone(photographs):
    large = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="fast")
    small = dataclasses.replace(large, decode="exact")
    image = Image.open(photographs[0]).resize((300, 260))
    for kind in ("JPEG", "PNG"):
        data = io.BytesIO()
        image.save(data, kind)
        assert (large.prepare(data.getvalue()) == small.prepare(data.getvalue())).all()


def test_another_way_to_decode_is_refused():
    with pytest.raises(UsageError, match="there is no decode 'lossy': give exact or fast"):
        Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="lossy")
