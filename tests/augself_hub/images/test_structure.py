"""What a file may cost: hostile files are answered in linear time, legal ones are read.

Every file is made here. The oracle of the legal ones is Pillow on the file as it was made.
"""

import io
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from handmade import chunk, photograph, png, saved
from PIL import Image, ImageOps, PngImagePlugin

from augself_hub.errors import TooManyPixels, UndecodableImage
from augself_hub.images.bounds import Bounds
from augself_hub.images.structure import structure
from augself_hub.preprocess import decode

PHOTOGRAPH = photograph(48, 64)
JPEG = saved(PHOTOGRAPH, "JPEG", quality=95)
GIF = saved(PHOTOGRAPH, "GIF")
WEBP = saved(PHOTOGRAPH, "WEBP", lossless=True)
FRAME = struct.pack("<cHHHH", b",", 0, 0, 64, 48)  # of the GIF
ROW = [bytes(3)]


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def with_segments(*segments, jpeg=JPEG):
    """Behind a JPEG's start and JFIF segment."""
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def directory(*entries, order=">", more=b""):
    """Exif: a TIFF directory of (tag, kind, count, value or offset)."""
    mark = {">": b"MM\0*", "<": b"II*\0"}[order]
    rows = b"".join(struct.pack(f"{order}HHI4s", *entry) for entry in entries)
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + rows + bytes(4) + more


def gif_with(*blocks):
    """Behind a GIF's palette."""
    at = 13 + (3 << (GIF[10] & 7) + 1)
    return GIF[:at] + b"".join(blocks) + GIF[at:]


def riff(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_with(*chunks, flags=0):
    """The photograph as an extended WebP, other chunks behind it."""
    head = bytes([flags, 0, 0, 0]) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    length = int.from_bytes(WEBP[16:20], "little")
    return riff((b"VP8X", head), (b"VP8L", WEBP[20 : 20 + length]), *chunks)


def bmp_of_runs(width, height, runs):
    """A BMP with run-length encoding, 8 bits."""
    palette = bytes(range(256)) * 4
    header = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + header + palette + runs


EXIF_BOMB = directory(
    *[(n, 7, 60_000, struct.pack(">I", 8)) for n in range(1000, 6000)], more=bytes(3000)
)

# What Pillow does in seconds to hours, or in gigabytes; of these files no pixel needs it.
READ = {
    "JPEG, Exif joined segment by segment": lambda: with_segments(
        *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 500),
    "JPEG, Exif of 5,000 entries of 60 KB": lambda: with_segments(
        segment(0xE1, b"Exif\0\0" + EXIF_BOMB)),
    "JPEG, MPF of 5,000 entries of 60 KB": lambda: with_segments(
        segment(0xE2, b"MPF\0" + EXIF_BOMB)),
    "JPEG, Photoshop blocks": lambda: with_segments(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000)] * 500),
    "JPEG, bytes of no segment": lambda: with_segments(bytes(30_000_000)),
    "JPEG, stuffed bytes of no segment": lambda: JPEG[:2] + b"\xff\0" * 15_000_000 + JPEG[2:],
    "JPEG, fill bytes": lambda: JPEG[:2] + b"\xff" * 30_000_000 + JPEG[2:],
    "JPEG, restarts of no scan": lambda: JPEG[:2] + b"\xff\xd0" * 15_000_000 + JPEG[2:],
    "JPEG, pictures behind it": lambda: JPEG * 5000,
    "PNG, Exif of 5,000 entries of 60 KB": lambda: png((1, 1), ROW, chunk(b"eXIf", EXIF_BOMB)),
    "PNG, Exif of 30 MB": lambda: png((1, 1), ROW, chunk(b"eXIf", directory(
        *[(n, 7, 29_000_000, struct.pack(">I", 8)) for n in range(60_000)],
        more=bytes(29_000_000)))),
    "PNG, a text that inflates to 300 MB": lambda: png(
        (1, 1), ROW, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000)))),
    "PNG, a color profile of 300 MB": lambda: png(
        (1, 1), ROW, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000)))),
    "PNG, 300 texts of 1 MB": lambda: png(
        (1, 1), ROW, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 300),
    "PNG, an animation of 30,000 frames": lambda: png(
        (1, 1), ROW, chunk(b"acTL", struct.pack(">II", 30_000, 0)),
        *[chunk(b"fcTL", struct.pack(">IIIIIHHBB", n, 1, 1, 0, 0, 1, 1, 0, 0))
          for n in range(30_000)]),
    "GIF, frames behind it": lambda: GIF[:-1] + GIF[GIF.index(FRAME) : -1] * 10_000 + b";",
    "GIF, a comment of 15 MB": lambda: gif_with(b"!\xfe", (b"\xff" + b"a" * 255) * 60_000, b"\0"),
    "GIF, bytes of no block": lambda: gif_with(bytes(30_000_000)),
    "WebP, Exif of 5,000 entries of 60 KB": lambda: webp_with((b"EXIF", EXIF_BOMB), flags=8),
    "WebP, XMP of 30 MB": lambda: webp_with((b"XMP ", b"tiff:Orientation=" * 1_800_000), flags=4),
}  # fmt: skip

# What even the rest of a library would take too long over.
REFUSED = {
    "JPEG, 1.65 million Exif segments": (
        lambda: with_segments(*[segment(0xE1, b"Exif\0\0" + bytes(10))] * 1_650_000),
        "4096 segments"),
    "JPEG, comments": (lambda: with_segments(*[segment(0xFE, b"")] * 5_000_000), "4096 segments"),
    "JPEG, comments between scans": (
        lambda: JPEG[:-2] + segment(0xFE, b"") * 5_000_000 + JPEG[-2:], "4096 segments"),
    "JPEG, frame headers of 64 KB": (
        lambda: with_segments(
            *[segment(0xC0, b"\x08\0\x30\0\x40\x03" + b"\1\x11\0" * 21_000)] * 500),
        "frame header"),
    "JPEG, frame headers": (
        lambda: with_segments(*[segment(0xC0, b"\x08\0\x30\0\x40\x01" + b"\1\x11\0")] * 2000),
        "frame header"),
    "JPEG, tables": (
        lambda: with_segments(*[segment(0xDB, (b"\0" + bytes(range(1, 65))) * 1000)] * 500),
        "65536 bytes of tables"),
    "JPEG, Huffman tables": (
        lambda: with_segments(*[segment(0xC4, b"\0" + b"\1" * 16 + bytes(16))] * 3000),
        "65536 bytes of tables"),
    "JPEG, a segment of no known kind": (lambda: with_segments(segment(0xF3, b"")), "unknown kind"),
    "PNG, empty chunks of pixels": (
        lambda: png((1, 1), ROW, *[chunk(b"IDAT")] * 2_000_000), "65536 chunks"),
    "PNG, texts": (
        lambda: png((1, 1), ROW, *[chunk(b"tEXt", b"a\0b")] * 1_000_000), "65536 chunks"),
    "PNG, XMP that inflates to 300 MB": (
        lambda: png((1, 1), ROW, chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(300_000_000)))),
        "8388608 bytes of metadata"),
    "GIF, a comment of 33 MB": (
        lambda: gif_with(b"!\xfe", (b"\xff" + b"a" * 255) * 130_000, b"\0"), "65536 blocks"),
    "GIF, comments": (lambda: gif_with(b"!\xfe\1a\0" * 6_000_000), "65536 blocks"),
    "GIF, a comment byte by byte": (
        lambda: gif_with(b"!\xfe", b"\1a" * 15_000_000, b"\0"), "65536 blocks"),
    "WebP, chunks": (lambda: webp_with(*[(b"abcd", b"")] * 1_000_000), "65536 chunks"),
    "WebP, frames": (
        lambda: webp_with(*[(b"ANMF", bytes(24))] * 1_000_000, flags=2), "65536 chunks"),
    "BMP, one line of 50 million pixels that moves up": (
        lambda: bmp_of_runs(50_000_000, 1, b"\0\2\0\xff" * 10), "2500000 pixels"),
    "BMP, a long line that moves up": (
        lambda: bmp_of_runs(2_500_000, 1, b"\0\2\0\xff" * 10), "wider than"),
    "BMP, lines that end at once": (
        lambda: bmp_of_runs(1000, 1000, b"\0\0" * 15_000_000), "more runs than pixels"),
}  # fmt: skip


def measured(function):
    """Its seconds of a core, and MiB that the process grew by meanwhile."""

    def mebibytes(what):
        return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, started = mebibytes("VmRSS"), time.process_time()
    function()
    return time.process_time() - started, mebibytes("VmHWM") - before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READ)
def test_what_no_pixel_needs_costs_next_to_nothing(name):
    data = READ[name]()
    seconds, grown = measured(lambda: decode(data))
    assert seconds < 1 and grown < 100


@pytest.mark.parametrize("name", REFUSED)
def test_too_many_of_anything_is_refused_at_once(name):
    make, message = REFUSED[name]
    data = make()

    def refused():
        with pytest.raises(UndecodableImage, match=message) as caught:
            decode(data)
        assert "\n" not in str(caught.value)

    seconds, grown = measured(refused)
    assert seconds < 1 and grown < 20


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (JPEG.replace(b"\xff\xc0\0\x11\x08\0\x30\0\x40", b"\xff\xc0\0\x11\x08\x40\0\x40\0"), 1000),
        (riff((b"VP8X", bytes(4) + b"\xff\xff\0\xff\xff\0")), None),
        (riff((b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(9))), None),
        (riff((b"VP8 ", bytes(3) + b"\x9d\1\x2a" + struct.pack("<HH", 16383, 16383))), None),
        (GIF[:6] + struct.pack("<HH", 65535, 65535) + GIF[10:], None),
        (bmp_of_runs(100_000, 100_000, b""), None),
    ],
    ids=["JPEG", "WebP", "lossless WebP", "lossy WebP", "GIF", "BMP"],
)
def test_pixels_are_counted_before_any_library_takes_memory(data, head):
    with pytest.raises(TooManyPixels, match="more than the 50000000 allowed"):
        structure(data[:head])


@pytest.mark.parametrize("label", [b"\xfe", b"\xf9"], ids=["comment", "control"])
def test_extensions_of_a_gif_without_a_block_count(label):
    """Three bytes each: a file of 32 MB has eleven million."""
    at = GIF.index(FRAME)
    assert structure(GIF[:at] + (b"!" + label + b"\0") * 65_536 + GIF[at:])
    with pytest.raises(UndecodableImage, match="more than 65536 blocks before its first frame"):
        structure(GIF[:at] + (b"!" + label + b"\0") * 65_537 + GIF[at:])


def test_a_first_frame_beyond_the_screen_of_a_gif_counts():
    at = GIF.index(FRAME)
    data = GIF[: at + 5] + struct.pack("<HH", 60_000, 60_000) + GIF[at + 9 :]
    with pytest.raises(TooManyPixels):
        structure(data)


def test_what_decoding_takes_counts_coefficients_of_scans_that_never_come():
    """libjpeg keeps room for all of them once it knows that more scans may follow."""
    photograph = Image.new("RGB", (640, 480))
    data = saved(photograph, "JPEG", progressive=True, subsampling=0)
    scans = [found.start() for found in re.finditer(b"\xff\xda", data)]
    assert structure(data).decoded_bytes == 640 * 480 * 10  # 4 bytes, and 2 for each of 3
    assert structure(data[: scans[1]] + b"\xff\xd9").decoded_bytes == 640 * 480 * 10
    data = saved(photograph, "JPEG", subsampling=0)
    assert structure(data).decoded_bytes == 640 * 480 * 4


def test_what_decoding_takes_counts_the_copies_of_a_hidden_gray():
    gray = Image.fromarray(np.zeros((480, 640), np.uint16))
    assert structure(saved(gray, "PNG")).decoded_bytes == 640 * 480 * 2
    assert structure(saved(gray, "PNG", transparency=7)).decoded_bytes == 640 * 480 * 6


def test_a_picture_over_white_takes_no_more_than_was_lent():
    """A picture of 4 bytes a pixel and one over white; four copies more were made of it."""
    sides = 3000, 3000
    data = saved(Image.new("RGBA", sides, (9, 9, 9, 128)), "PNG")
    decode(data)
    _, grown = measured(lambda: decode(data))
    assert grown < (structure(data).decoded_bytes + 4 * sides[0] * sides[1]) / 2**20 + 30


# -- Legal files are what Pillow makes of them ---------------------------------------------------


def as_pillow_reads(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker"
    exif[0x011A] = 72.0
    return exif


def variants():
    """(name, file) of legal kinds, metadata of every sort included."""
    frames = [photograph(48, 64, seed=n) for n in range(3)]
    icc, xmp = bytes(200_000), b"<x:xmpmeta tiff:Orientation='1'/>"
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "text", zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    raw = b"\nexif\n      %d\n%s\n" % (60, directory((0x0112, 3, 1, b"\0\x08\0\0")).hex().encode())
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    alpha = PHOTOGRAPH.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize((64, 48)))
    for quality in (10, 75, 100):
        for subsampling in (0, 1, 2):
            yield "JPEG", saved(PHOTOGRAPH, "JPEG", quality=quality, subsampling=subsampling)
    yield "progressive", saved(PHOTOGRAPH, "JPEG", progressive=True, icc_profile=icc)
    yield "restarts", saved(PHOTOGRAPH, "JPEG", restart_marker_blocks=1)
    yield "optimized", saved(PHOTOGRAPH, "JPEG", optimize=True, comment=b"a comment", dpi=(72, 72))
    yield "Exif and XMP", saved(PHOTOGRAPH, "JPEG", exif=exif_of(6), xmp=xmp, icc_profile=icc)
    yield "XMP alone", saved(PHOTOGRAPH, "JPEG", xmp=b'<x tiff:Orientation="8"/>')
    yield "Exif says upright", saved(
        PHOTOGRAPH, "JPEG", exif=exif_of(1), xmp=b'<x tiff:Orientation="8"/>')  # fmt: skip
    yield "CMYK", saved(PHOTOGRAPH.convert("CMYK"), "JPEG", exif=exif_of(3))
    yield "gray", saved(PHOTOGRAPH.convert("L"), "JPEG", exif=exif_of(5))
    yield "kept RGB", saved(PHOTOGRAPH, "JPEG", keep_rgb=True)
    yield "MPO", saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield "fill bytes", JPEG[:2] + b"\xff\xff\xff" + JPEG[2:]
    yield "no JFIF", JPEG[:2] + JPEG[4 + int.from_bytes(JPEG[4:6], "big") :]
    yield "behind it", JPEG + b"\xff\xe1\0\x10" * 100
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"PNG {mode}", saved(alpha.convert(mode), "PNG", pnginfo=info, icc_profile=icc)
    yield "PNG Exif", saved(PHOTOGRAPH, "PNG", exif=exif_of(7), pnginfo=info)
    yield "PNG raw profile", png((2, 1), [bytes(range(6))], profile)
    yield "APNG", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "APNG, default", saved(
        frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)  # fmt: skip
    for options in ({"lossless": True}, {"quality": 50}, {"quality": 50, "alpha_quality": 20}):
        yield "WebP", saved(PHOTOGRAPH, "WEBP", **options)
        yield "WebP alpha", saved(alpha, "WEBP", **options, exif=exif_of(6), xmp=xmp)
        yield "WebP XMP", saved(alpha, "WEBP", **options, xmp=b'<x tiff:Orientation="3"/>')
        yield (
            "WebP frames",
            saved(
                frames[0],
                "WEBP",
                save_all=True,
                append_images=frames[1:],
                icc_profile=icc,
                **options,
            ),
        )
    yield "GIF", saved(PHOTOGRAPH, "GIF", comment=b"a" * 1000)
    yield "GIF frames", saved(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)
    yield "GIF alpha", saved(alpha.quantize(), "GIF", transparency=3, comment=b"b" * 300)
    yield "GIF interlaced", saved(PHOTOGRAPH.convert("L"), "GIF", interlace=1)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", saved(alpha.convert(mode), "BMP")
    yield "BMP of runs", bmp_of_runs(8, 2, b"\x08\x07\0\0\0\3\1\2\3\0\5\4\0\1")


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in variants()])
def test_legal_files_have_the_pixels_that_pillow_reads(data):
    np.testing.assert_array_equal(decode(data), as_pillow_reads(data))
    found = structure(data)
    assert (found.width, found.height) == Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "layout"), [(3, "H2x"), (4, "I")])
def test_orientation_of_every_byte_order_and_kind(order, kind, layout):
    value = struct.pack(order + layout, 6)
    exif = directory((0x010F, 2, 3, b"a\0\0\0"), (0x0112, kind, 1, value), order=order)
    data = saved(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + exif)
    assert structure(data).orientation == 6
    np.testing.assert_array_equal(decode(data), as_pillow_reads(data))


def test_exif_in_two_segments_is_one():
    exif = directory(*[(n, 3, 1, bytes(4)) for n in range(100)], (0x0112, 3, 1, b"\0\6\0\0"))
    parts = [segment(0xE1, b"Exif\0\0" + part) for part in (exif[:700], exif[700:])]
    assert structure(with_segments(*parts)).orientation == 6


def test_metadata_is_cut_away_and_nothing_else_copied():
    assert structure(JPEG).data is JPEG
    plain = png((1, 1), ROW)
    assert structure(plain).data is plain
    assert b"maker" not in structure(saved(PHOTOGRAPH, "JPEG", exif=exif_of(1))).data


def test_a_bound_is_the_callers():
    data = saved(PHOTOGRAPH, "JPEG", progressive=True)
    usual = data.count(b"\xff\xda")
    assert structure(data, Bounds(jpeg_scans=usual)).format == "JPEG"
    with pytest.raises(UndecodableImage, match=f"more than {usual - 1} scans; save it again"):
        structure(data, Bounds(jpeg_scans=usual - 1))


@pytest.mark.parametrize(
    "data", [JPEG, saved(PHOTOGRAPH, "PNG"), WEBP, GIF, saved(PHOTOGRAPH, "BMP")]
)
def test_the_time_is_a_small_share_of_decoding(data):
    """About 2 % on 28,000 real pictures; here a bound that small ones keep, on a busy machine."""

    def best(function):
        times = []
        for _ in range(7):
            started = time.process_time()
            for _ in range(20):
                function(data)
            times.append(time.process_time() - started)
        return min(times)

    assert best(structure) < 0.5 * best(decode)


def test_nothing_else_opens_images():
    """But for the demo's own examples."""
    root = Path(__file__).parents[3]
    files = [
        p for room in ("augself_hub", "serving", "training") for p in (root / room).rglob("*.py")
    ]
    opening = {str(p.relative_to(root)) for p in files if "Image.open(" in p.read_text()}
    examples = {f"serving/demo/{name}.py" for name in ("what_changed", "your_pictures")}
    assert opening == {"augself_hub/preprocess.py"} | examples
