"""What a server's memory is while it decodes the worst legal requests, and afterwards.

    python benchmarks/decoding_memory.py [--decoders 1 2 4] [--kinds ...] [--images 16]

Each row is a server of its own with the embedded model, one request of so many pictures of almost
50 million pixels, and the memory of its process (VmRSS before and after, VmHWM at most), in MB. The
pictures are of one color: they are small files, and take the memory that any others take.
"""

from __future__ import annotations

import argparse
import io
import re
import struct
import time
import zlib
from pathlib import Path

import httpx
from PIL import Image
from server import AUGSELF, running

SIDE = 7071  # squared just below the limit of pixels
COMMAND = [*AUGSELF, "--limit", "deadline_seconds=1800"]


def png(depth: int, color: int, channels: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of one color of which Pillow knows only how to read it."""
    line = b"\0" + bytes([77]) * (SIDE * channels * depth // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join([*(packer.compress(line) for _ in range(SIDE)), packer.flush()])
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def saved(mode: str, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (SIDE, SIDE), 77).save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


KINDS = {
    "PNG, RGBA, 16 bit": lambda: png(16, 6, 4),
    "PNG, RGB, 16 bit, one color hidden": lambda: png(16, 2, 3, (b"tRNS", b"\1\2\3\4\5\6")),
    "PNG, gray, 16 bit": lambda: png(16, 0, 1),
    "JPEG, RGB": lambda: saved("RGB", "JPEG"),
    "JPEG, RGB, turned": lambda: saved("RGB", "JPEG", exif=turned()),
    "JPEG, CMYK, progressive": lambda: saved("CMYK", "JPEG", progressive=True),
    "WebP, lossless": lambda: saved("RGBA", "WEBP", lossless=True, quality=0, method=0),
    "GIF": lambda: saved("P", "GIF"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoders", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--images", type=int, default=16, help="in the request")
    options = parser.parse_args()
    print("| picture | decoders | before | at most | after | seconds |")
    print("|---|---|---|---|---|---|")
    for kind in options.kinds:
        data = KINDS[kind]()
        for decoders in options.decoders:
            found = measured(data, decoders, options.images)
            print(f"| {kind} | {decoders} |", *(f"{value:,.0f} |" for value in found), flush=True)


def measured(data: bytes, decoders: int, images: int) -> list[float]:
    """MB before, at most, after; seconds of the request."""
    with running([*COMMAND, "--decoders", str(decoders)], "/health/ready") as (address, process):
        status = Path(f"/proc/{process.pid}/status")

        def megabytes(what: str) -> float:
            return int(re.findall(rf"{what}:\s+(\d+) kB", status.read_text())[0]) * 1024 / 1e6

        url, files = f"http://{address}/v1/embeddings", [("image", ("a", data))] * images
        before, started = megabytes("VmRSS"), time.monotonic()
        httpx.post(url, files=files, timeout=None).raise_for_status()
        seconds = time.monotonic() - started
        time.sleep(2)
        return [before, megabytes("VmHWM"), megabytes("VmRSS"), seconds]


if __name__ == "__main__":
    main()
