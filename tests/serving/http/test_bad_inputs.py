"""Bad images against the real process, each followed by a good one: same answer, same memory."""

from __future__ import annotations

import base64
import io
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import httpx
import numpy as np
import pytest
from handmade import DAMAGED_PALETTES, chunk, png, saved
from PIL import Image

BAND = 100  # megabytes: any one of the bombs below would take more
Bytes = Callable[[], bytes]


@pytest.fixture(scope="module", autouse=True)
def no_growth(server) -> Iterator[None]:
    """All rows together leave the memory in its band."""
    before = server.megabytes()
    yield
    assert server.megabytes() < before + BAND


@pytest.fixture(autouse=True)
def unharmed(server, client, pixels, encoded, expected, vectors) -> Iterator[None]:
    """After each row a good image has its answer, and at no moment was the memory beyond."""
    server.forget_peak()
    before = server.megabytes()
    yield
    good = client.post("/v1/embeddings", files={"image": encoded(pixels(9))})
    np.testing.assert_allclose(vectors(good)[0], expected(pixels(9)), rtol=1e-4, atol=1e-5)
    assert server.megabytes("VmHWM") < before + BAND


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    """Waves in three colours, without symmetry."""
    y, x = np.mgrid[0:height, 0:width, 0:1][:2]
    waves = 60 * np.sin(x / 7.3) * [1, 0.5, 0.2] + 50 * np.cos(y / 5.1 + x / 31) * [0.3, 1, 0.6]
    return Image.fromarray((128 + waves).astype(np.uint8))


PHOTOGRAPH = photograph()
PNG, JPEG = saved(PHOTOGRAPH, "PNG"), saved(PHOTOGRAPH, "JPEG", quality=95)


def ask(client: httpx.Client, data: bytes) -> httpx.Response:
    """Everything comes as image/jpeg: the type is sniffed from the bytes."""
    return client.post("/v1/embeddings", content=data, headers={"Content-Type": "image/jpeg"})


# -- Refused ---------------------------------------------------------------------------------------


def damaged(data: bytes, kind: bytes) -> bytes:
    """A PNG with one bit of this chunk's checksum turned."""
    at = data.index(kind)
    end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


@cache
def explosive() -> bytes:
    """300 megabytes in a few."""
    return zlib.compress(bytes(300_000_000), 1)


def bomb(kind: bytes, head: bytes) -> bytes:
    return png((1, 1), [bytes(3)], chunk(kind, head + explosive()))


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(PHOTOGRAPH, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 5000 + data[-2:]


UNDECODABLE: dict[str, Bytes] = {
    **{
        f"{name} cut at {share}": lambda d=data, s=share: d[: int(len(d) * s)]
        for name, data in {
            "JPEG": JPEG,
            "PNG": PNG,
            "progressive JPEG": saved(PHOTOGRAPH, "JPEG", progressive=True),
        }.items()
        for share in (0.1, 0.5, 0.99)
    },
    "random bytes": lambda: np.random.default_rng(0).bytes(10_000),
    "text": lambda: b"hello",
    "HTML": lambda: b"<!doctype html><html><body><svg></svg></body></html>",
    "an object array": lambda: b"\x93NUMPY\1\0v\0{'descr': '|O', 'shape': (1,), }",
    "0xN": lambda: png((0, 5), []),
    "Nx0": lambda: png((5, 0), []),
    "bad CRC of the header": lambda: damaged(PNG, b"IHDR"),
    "bad CRC of the data": lambda: damaged(PNG, b"IDAT"),
    "no IEND": lambda: PNG[:-12],
    **{name: lambda d=data: d for name, data in DAMAGED_PALETTES.items()},
    "thousands of scans": many_scans,
    "Exif bomb": lambda: bomb(b"zTXt", b"Raw profile type exif\0\0"),
    "XMP bomb": lambda: bomb(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
}
UNSUPPORTED: dict[str, Bytes] = {
    **{form: lambda f=form: saved(PHOTOGRAPH, f) for form in ("TIFF", "PDF", "EPS", "ICO")},
    "SVG": lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "PSD": lambda: b"8BPS\0\1" + bytes(20),
    "JP2": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
    "J2K": lambda: b"\xff\x4f\xff\x51\0\x2f" + bytes(20),
    "HEIC": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}
TOO_LARGE: dict[str, Bytes] = {
    "10000x10000": lambda: png((10_000, 10_000), [bytes(30_000)] * 10_000),
    "30000x30000": lambda: png((30_000, 30_000), [bytes(999)]),
    "the largest that a header can say": lambda: png((2**31 - 1, 2**31 - 1), [bytes(999)]),
}
REFUSED = {
    "empty": (lambda: b"", 400, "empty_image"),
    **{name: (data, 400, "undecodable_image") for name, data in UNDECODABLE.items()},
    **{name: (data, 415, "unsupported_image") for name, data in UNSUPPORTED.items()},
    **{name: (data, 413, "too_many_pixels") for name, data in TOO_LARGE.items()},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_in_time(client, problem, name):
    make, status, code = REFUSED[name]
    data, started = make(), time.monotonic()
    assert problem(ask(client, data)) == (status, code, "image")
    assert time.monotonic() - started < 10  # a hang, not a speed: most take milliseconds


@pytest.mark.parametrize("name", ["JPEG cut at 0.5", "TIFF", "30000x30000", "empty"])
def test_one_bad_of_eight_is_named_in_json_and_in_a_form(client, problem, name):
    """Also when it is called photo.jpg."""
    make, status, code = REFUSED[name]
    images = [PNG] * 3 + [make()] + [PNG] * 4
    urls = ["data:image/jpeg;base64," + base64.b64encode(data).decode() for data in images]
    listed = client.post("/v1/embeddings", json={"input": urls})
    assert problem(listed) == (status, code, "input[3]")
    files = [("image", ("photo.jpg", data, "image/jpeg")) for data in images]
    assert problem(client.post("/v1/embeddings", files=files)) == (status, code, "image[3]")
    pair = {"a": urls[0], "b": urls[3]}
    answer = client.post("/v1/augmentations", json={"pairs": [pair]})
    assert problem(answer) == (status, code, "pairs[0].b")


# -- Unusual and answered --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")],
    ids=["text", "international text", "ICC"],
)
def test_a_bomb_that_no_pixel_needs_is_never_inflated(client, kind, head):
    started = time.monotonic()
    assert ask(client, bomb(kind, head)).status_code == 200
    assert time.monotonic() - started < 10


def ycck() -> bytes:
    """Pillow's CMYK JPEG with YCbCr of (C, M, Y) in its channels, and the marker that says so."""
    *inks, black = PHOTOGRAPH.convert("CMYK").split()
    luma = Image.merge("RGB", inks).convert("YCbCr").split()
    inverted = [channel.point(lambda value: 255 - value) for channel in luma]
    data = saved(Image.merge("CMYK", [*inverted, black]), "JPEG", quality=98)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\2" + data[at + 12 :]


def sixteen_bits(channels: int) -> bytes:
    """Every 8-bit value v as v * 257."""
    pixels = np.asarray(PHOTOGRAPH)[..., :channels].astype(">u2") * np.uint16(257)
    rows = [row.astype(">u2").tobytes() for row in pixels]
    return png(PHOTOGRAPH.size, rows, depth=16, color=2 if channels == 3 else 0)


def with_alpha(mode: str) -> Image.Image:
    image = PHOTOGRAPH.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(PHOTOGRAPH.size))
    return image


def over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def palette() -> Image.Image:
    image = PHOTOGRAPH.quantize(16)
    image.info["transparency"] = 3
    return image


def animated(form: str) -> bytes:
    frames = [PHOTOGRAPH, *(Image.new("RGB", PHOTOGRAPH.size, color) for color in ("red", "blue"))]
    options = {"lossless": True} if form == "WEBP" else {}
    return saved(frames[0], form, save_all=True, append_images=frames[1:], **options)


def long_gif() -> bytes:
    """100,000 frames."""
    one = saved(Image.new("L", (4, 4), 255), "GIF")
    at = one.index(b",")  # the image block: from its separator to the trailer
    return one[:at] + one[at:-1] * 100_000 + b";"


def polyglot() -> bytes:
    file = io.BytesIO(JPEG)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("script.py", "import os")
    return file.getvalue()


def jpeg(**options: object) -> Bytes:
    return lambda: saved(PHOTOGRAPH, "JPEG", quality=95, **options)


def like(mode: str) -> Image.Image:
    return PHOTOGRAPH.convert(mode)


EXIF = b"Exif\0\0MM\0*\0\0\0\x08"
UNUSUAL: dict[str, tuple[Bytes, Image.Image]] = {
    "CMYK JPEG": (lambda: saved(like("CMYK"), "JPEG", quality=95), PHOTOGRAPH),
    "YCCK JPEG": (ycck, PHOTOGRAPH),
    "16-bit gray": (lambda: sixteen_bits(1), PHOTOGRAPH.getchannel("R")),
    "16-bit RGB": (lambda: sixteen_bits(3), PHOTOGRAPH),
    **{mode: (lambda m=mode: saved(like(m), "PNG"), like(mode)) for mode in ("1", "L", "P")},
    "LA": (lambda: saved(with_alpha("L"), "PNG"), over_white(with_alpha("L"))),
    "RGBA": (lambda: saved(with_alpha("RGB"), "PNG"), over_white(with_alpha("RGB"))),
    "P with tRNS": (lambda: saved(palette(), "PNG"), over_white(palette())),
    "animated GIF": (lambda: animated("GIF"), PHOTOGRAPH),
    "animated WebP": (lambda: animated("WEBP"), PHOTOGRAPH),
    "animated PNG": (lambda: animated("PNG"), PHOTOGRAPH),
    "BMP": (lambda: saved(PHOTOGRAPH, "BMP"), PHOTOGRAPH),
    "GIF of 100,000 frames": (long_gif, Image.new("RGB", (4, 4), "white")),
    **{
        f"{w}x{h}": (lambda w=w, h=h: saved(photograph(w, h), "PNG"), photograph(w, h))
        for w, h in ((1, 1), (1, 4000), (4000, 1))
    },
    "JPEG and ZIP in one": (polyglot, PHOTOGRAPH),
    "corrupt EXIF": (jpeg(exif=EXIF + b"\xff\xff" + b"\x01\x12" * 4), PHOTOGRAPH),
    "corrupt ICC": (jpeg(icc_profile=b"no profile"), PHOTOGRAPH),
    "corrupt XMP": (jpeg(xmp=b"\xff\0<x:xmpmeta"), PHOTOGRAPH),
}
LOSSY = ("JPEG", "EXIF", "ICC", "XMP", "GIF")


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_has_its_plain_twins_features(client, vectors, name):
    make, twin = UNUSUAL[name]
    data, started = make(), time.monotonic()
    found = vectors(ask(client, data))
    assert time.monotonic() - started < 10
    plain = vectors(ask(client, saved(twin.convert("RGB"), "PNG")))
    lossy = any(word in name for word in LOSSY)
    assert np.linalg.norm(found - plain) < (0.2 if lossy else 0.02) * np.linalg.norm(plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_first(client, vectors, orientation):
    """EXIF orientation, one policy for every format: applied."""
    way = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    upright = PHOTOGRAPH if way is None else PHOTOGRAPH.transpose(way)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = vectors(ask(client, saved(PHOTOGRAPH, "PNG", exif=exif)))
    np.testing.assert_allclose(found, vectors(ask(client, saved(upright, "PNG"))), atol=1e-5)


def test_the_largest_picture_allowed_is_answered(client, vectors):
    """One pixel more is refused; what lies between is never a crash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert vectors(ask(client, saved(photograph(1000, 1000), "PNG"))).size
    assert ask(client, saved(Image.new("L", (1001, 1000)), "PNG")).status_code == 413
