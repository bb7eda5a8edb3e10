"""The structure of the file of each format that is read: one pass, linear in its bytes.

Pillow keeps and parses much that no pixel depends on, some of it in time or memory that grows with
the square of the file: Exif segments and GIF comments are joined one by one, the directories of
Exif and MPF are copied entry by entry, frame headers and tables of a JPEG are kept as often as they
come, texts of a PNG are inflated. So metadata is cut away here before Pillow sees the file (only
the orientation is read), animations are cut after their first frame, and what is left is counted.

Each function: the file, the bounds -> its Structure. They raise UndecodableImage and TooManyPixels,
and struct.error or IndexError where the file ends too early.
"""

from __future__ import annotations

import re
import struct
import zlib

from augself_hub.images.bounds import Bounds, Structure, cannot, check_pixels, too_many
from augself_hub.images.orientation import orientation

_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # not stuffing, restarts or fill bytes
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_TABLES = frozenset({0xC4, 0xCC, 0xDB})
_UNKNOWN = frozenset({*range(0x02, 0xC0), 0xC8, *range(0xF0, 0xFE)})
_SCAN, _END = 0xDA, 0xD9
# APP0 (JFIF) and APP14 (Adobe) are none: they say how colors are stored.
_METADATA = frozenset({*range(0xE1, 0xF0), 0xFE} - {0xEE})


def jpeg(data: bytes, bounds: Bounds) -> Structure:
    """Segments before the first scan are kept or cut away; those after it are only counted."""
    kept, exif, xmp, frame = [data[:2]], [], b"", b""
    first_scan, segments, scans, tables = 0, 0, 0, 0
    sequential = whole = True
    at, end = 2, len(data)
    while found := _MARKER.search(data, at):
        start, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            end = start + 2
            break
        segments += 1
        scans += marker == _SCAN
        if segments > bounds.jpeg_segments:
            raise too_many("JPEG", bounds.jpeg_segments, "segments")
        if scans > bounds.jpeg_scans:
            raise too_many("JPEG", bounds.jpeg_scans, "scans")
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        at = start + 2 + length
        if length < 2 or at > len(data):
            raise cannot("the JPEG is truncated")
        if marker in _UNKNOWN:
            raise cannot("the JPEG has a segment of an unknown kind")
        if first_scan:
            continue
        if marker == _SCAN:
            first_scan = start
            whole = data[start + 4] == len(frame[7::3])  # the scan has all components
        elif marker in _METADATA:
            if marker == 0xE1 and data.startswith(b"Exif\0\0", start + 4):
                exif.append(data[start + 10 : at])
            elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start + 4):
                xmp = data[start + 4 : at]
        else:
            kept.append(data[start:at])
        if marker in _FRAMES:
            if frame or length != 8 + 3 * data[start + 9] or length == 8:
                raise cannot("the JPEG has more than one frame header, or a damaged one")
            frame, sequential = data[start + 4 : at], marker in _SEQUENTIAL
            height, width = struct.unpack_from(">HH", frame, 1)
            check_pixels((width, height), bounds.pixels)
        tables += length * (marker in _TABLES)
        if tables > bounds.jpeg_table_bytes:
            raise too_many("JPEG", bounds.jpeg_table_bytes, "bytes of tables")
    if not frame or not first_scan:
        raise cannot("the JPEG is truncated")
    if sum(map(len, kept)) < first_scan or end < len(data):
        data = b"".join([*kept, memoryview(data)[first_scan:end]])
    factors = [(byte >> 4, byte & 15) for byte in frame[7::3]]
    pixel = 1 if len(factors) == 1 else 4
    if scans > 1 or not (sequential and whole):
        # All coefficients are kept meanwhile, 2 bytes each, also for scans that never come.
        largest = max(x for x, _ in factors) * max(y for _, y in factors)
        pixel += -(-2 * sum(x * y for x, y in factors) // max(1, largest))
    upright = orientation(b"".join(exif), xmp)
    return Structure("JPEG", width, height, data, upright, width * height * pixel)


_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_PIXEL = {0: 1, 2: 4, 3: 1, 4: 4, 6: 4}  # bytes in Pillow's memory, by type of color


def png(data: bytes, bounds: Bounds) -> Structure:
    """Every chunk is there up to IEND with its checksum, which Pillow would not ask for.

    Without its own chunks an animation (APNG) is its first frame.
    """
    kept: list[bytes | memoryview] = [data[:8]]
    texts: dict[bytes, tuple[bytes, int, int]] = {}
    at, kind, chunks, view = 8, b"", 0, memoryview(data)
    exif, hidden, ended, palette = b"", b"", False, False
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        before, kind, start, end = kind, data[at + 4 : at + 8], at + 8, at + 12 + length
        if len(data) < end:
            raise cannot("the PNG is truncated")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise cannot("a PNG checksum is wrong")
        chunks += 1
        if chunks > bounds.png_chunks:
            raise too_many("PNG", bounds.png_chunks, "chunks")
        if (chunks == 1) != (kind == b"IHDR" and length == 13):
            raise cannot("the PNG does not begin with its one header")
        ended |= before == b"IDAT" and kind != b"IDAT"
        if kind == b"IEND" or (kind in _PNG_KEPT and not ended):
            kept.append(view[at:end])
        if chunks == 1:
            width, height, depth, color = struct.unpack_from(">IIBB", data, start)
            check_pixels((width, height), bounds.pixels)
        elif kind == b"tRNS" and color in (0, 2) and not ended:
            hidden = data[start : end - 4]
            if length != (2 if color == 0 else 6):
                raise cannot("a PNG's transparent color is damaged")
        elif kind == b"tRNS" and color == 3 and length > 256 and not ended:
            raise cannot("the PNG has more alphas than a palette has colors")
        elif kind == b"PLTE":
            palette |= length > 0
        elif kind == b"IDAT" and color == 3 and not palette:
            raise cannot("the PNG has no palette before its pixels")
        elif kind == b"eXIf":
            exif = data[start : end - 4]
        elif kind in _PNG_TEXTS:
            name = data[start : start + 80].partition(b"\0")[0]
            texts[name] = kind, start + len(name) + 1, end - 4
        at = end
    if sum(map(len, kept)) < len(data):
        data, original = b"".join(kept), data
    else:
        original = data
    if not exif and (profile := _png_text(original, texts, b"Raw profile type exif", bounds)):
        # ImageMagick's: a name and a length on lines of their own, then hexadecimal digits.
        digits = b"".join(profile.split(b"\n")[3:])
        exif = bytes.fromhex(digits.decode("ascii", "ignore")) if _HEX.fullmatch(digits) else b""
    xmp = _png_text(original, texts, b"XML:com.adobe.xmp", bounds)
    pixels = width * height
    samples = tuple(sample & (1 << depth) - 1 for (sample,) in struct.iter_unpack(">H", hidden))
    pixel = _PNG_PIXEL.get(color, 4)
    if depth == 16:  # gray stays at 16 bits; for a hidden color there are copies and a mask
        pixel = (6 if samples else 2) if color == 0 else 4 * (3 if samples else 1)
    return Structure("PNG", width, height, data, orientation(exif, xmp), pixels * pixel, depth,
                     samples)  # fmt: skip


_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})*")


def _png_text(
    data: bytes, texts: dict[bytes, tuple[bytes, int, int]], name: bytes, bounds: Bounds
) -> bytes:
    """The text of this name, inflated within the bounds; b"" where there is none."""
    kind, start, end = texts.get(name, (b"tEXt", 0, 0))
    text = data[start:end]
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]
    elif kind == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    if not compressed:
        return text
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(text, bounds.text_bytes)
    except zlib.error:
        return b""
    if inflater.unconsumed_tail:
        raise too_many("PNG", bounds.text_bytes, "bytes of metadata in one text")
    return text


_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM"})
# libwebp keeps two canvases of 4 bytes a pixel, Pillow the frame and the picture, besides what
# the decoder takes itself: as measured.
_WEBP_PIXEL = 20


def webp(data: bytes, bounds: Bounds) -> Structure:
    """Of an animation the first frame is kept."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise cannot("the WebP is truncated")
    kept: list[bytes | memoryview] = [data[8:12]]
    exif, xmp, size = b"", b"", (0, 0)
    at, chunks, frames, view = 12, 0, 0, memoryview(data)
    while at + 8 <= end:
        kind, start = data[at : at + 4], at + 8
        stop = start + int.from_bytes(data[at + 4 : start], "little")
        after = stop + (stop & 1)
        if stop > end:
            raise cannot("the WebP is truncated")
        chunks += 1
        if chunks > bounds.webp_chunks:
            raise too_many("WebP", bounds.webp_chunks, "chunks")
        if chunks == 1:
            size = _webp_size(kind, data[start : start + 10])
            check_pixels(size, bounds.pixels)
        frames += kind == b"ANMF"
        if kind in _WEBP_KEPT or (kind == b"ANMF" and frames == 1):
            kept.append(view[at:after])
        elif kind == b"EXIF":
            exif = exif or data[start:stop]
        elif kind == b"XMP ":
            xmp = xmp or data[start:stop]
        at = after
    if 8 + sum(map(len, kept)) < len(data):
        body = bytearray().join(kept)
        if body[4:8] == b"VP8X":
            body[12] &= ~0x2C & 0xFF  # neither color profile, Exif nor XMP follows
        data = b"RIFF" + len(body).to_bytes(4, "little") + body
    pixels = size[0] * size[1]
    return Structure("WEBP", *size, data, orientation(exif, xmp), pixels * _WEBP_PIXEL)


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int]:
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 6)
    return width & 0x3FFF, height & 0x3FFF


_GIF_BLOCK = re.compile(rb"[!,;]")
_CONTROL = 0xF9  # the extension that says which color is transparent


def gif(data: bytes, bounds: Bounds) -> Structure:
    """Extensions before the first frame are cut away, but for its control."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept, blocks = [data[:at]], 0
    while (found := _GIF_BLOCK.search(data, at)) and found[0] == b"!":
        start, at, blocks = found.start(), found.start() + 2, blocks + 1
        while size := data[at]:
            at += 1 + size
            blocks += 1
            if blocks > bounds.gif_blocks:
                break
        if blocks > bounds.gif_blocks:  # an extension may have no block, and counts as one
            raise too_many("GIF", bounds.gif_blocks, "blocks before its first frame")
        at += 1
        if data[start + 1] == _CONTROL:
            kept.append(data[start:at])
    if not found or found[0] == b";":
        raise cannot("the GIF has no picture")
    left, top, *sides = struct.unpack_from("<HHHH", data, found.start() + 1)
    width, height = max(width, left + sides[0]), max(height, top + sides[1])
    check_pixels((width, height), bounds.pixels)
    if sum(map(len, kept)) < found.start():
        data = b"".join([*kept, memoryview(data)[found.start() :]])
    return Structure("GIF", width, height, data, 1, width * height)


_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
_BMP_RUNS = frozenset({1, 2})


def bmp(data: bytes, bounds: Bounds) -> Structure:
    """Only its header is looked at; of runs (RLE) their number too."""
    header = struct.unpack_from("<I", data, 14)[0]
    if header not in _BMP_HEADERS:
        raise cannot("the BMP has a header of an unknown kind")
    if header == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<IIHHI", data, 18)
        height = 2**32 - height if data[25] == 0xFF else height  # negative: from the top
    check_pixels((width, height), bounds.pixels)
    pixels = width * height
    if compression not in _BMP_RUNS:
        return Structure("BMP", width, height, data, 1, pixels * (1 if depth <= 8 else 4))
    if pixels > bounds.rle_pixels:
        raise too_many("BMP", bounds.rle_pixels, "pixels with run-length encoding")
    runs = len(data) - struct.unpack_from("<I", data, 10)[0]
    if width > bounds.rle_width:
        raise cannot(f"a BMP with run-length encoding is wider than {bounds.rle_width} pixels")
    # Two bytes a pixel where no two are alike, two to end a line, and some room.
    if runs > 2 * pixels + 4 * height + 1024:
        raise cannot("the BMP has more runs than pixels; save it again")
    return Structure("BMP", width, height, data, 1, pixels * 3 + 255 * width)
