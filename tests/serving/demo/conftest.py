"""One server with the demo, started as a visitor's host starts it: `python app.py`."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from handmade import chunk, png, saved
from PIL import Image

if TYPE_CHECKING:
    from gradio_client import Client

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "augself_hub/pretrained"
EXAMPLE = ROOT / "serving/demo/examples/fig.jpg"
SECONDS = 120  # to start in, on a busy machine


@dataclass
class App:
    """A running app.py.

    Attributes:
        url: where it listens. log: what it has said so far.
    """

    process: subprocess.Popen
    url: str = ""
    log: list[str] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        *options: str,
        python: str = sys.executable,
        folder: Path = ROOT,
        auth: tuple[str, str] | None = None,
    ) -> App:
        command = [python, "app.py", "--port", "0", *options]
        app = cls(subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True))
        threading.Thread(target=app._read_log, daemon=True).start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and app.process.poll() is None:
            app.url = next(iter(re.findall(r"listening on (http://\S+)", "".join(app.log))), "")
            if app.url and httpx.get(app.url, auth=auth).status_code == 200:
                return app
            time.sleep(0.1)
        app.process.kill()
        raise AssertionError("".join(app.log))

    def _read_log(self) -> None:
        self.log.extend(iter(self.process.stderr.readline, ""))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


@pytest.fixture
def launch() -> Callable[..., App]:
    """Starts one of its own; the test stops it."""
    return App.start


@pytest.fixture(scope="session")
def app(tiny_model: Path) -> Iterator[App]:
    """Two models: the embedded one, called pretrained, and an untrained one, called tiny."""
    app = App.start("--model", str(EMBEDDED), "--model", str(tiny_model))
    yield app
    assert app.stop() == 0


@pytest.fixture(scope="module")
def page(app: App) -> Client:
    """A client of the page, as app.py serves it."""
    from gradio_client import Client

    return Client(app.url, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="session")
def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name of a file -> its bytes, and what a visitor is told of it."""
    image = Image.open(EXAMPLE).resize((96, 64))
    jpeg, whole = saved(image, "JPEG"), saved(image, "PNG")
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 9] ^= 1
    head, *scans = saved(image, "JPEG", progressive=True)[:-2].split(b"\xff\xda")
    bomb = zlib.compress(bytes(100_000_000))
    xmp, exif = b"XML:com.adobe.xmp\0\1\0\0\0", b"Raw profile type exif\0\0"
    cannot, no_image, other = "cannot be decoded", "the data is not an image", "is not read: send"
    return {
        "cut.jpg": (jpeg[: len(jpeg) // 2], cannot),
        **{f"cut-{n}.png": (whole[: len(whole) * n // 100], cannot) for n in (50, 99)},
        "cut-10.png": (whole[: len(whole) // 10], cannot),
        "empty.png": (b"", "the image is empty"),
        "noise.jpg": (bytes(range(1, 200)) * 9, no_image),
        "text.jpg": (b"this is no picture", no_image),
        "page.jpg": (b"<html><body>no</body></html>", no_image),
        "tiff.jpg": (saved(image, "TIFF"), other),
        "svg.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', other),
        "pdf.jpg": (saved(image, "PDF"), other),
        "psd.jpg": (b"8BPS\0\1" + bytes(20), other),
        "eps.jpg": (saved(image, "EPS"), other),
        "ico.jpg": (saved(image, "ICO"), other),
        "j2k.jpg": (b"\xff\x4f\xff\x51\0\x2f", other),
        "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", other),
        "huge.png": (png((30_000, 30_000), [bytes(3)]), "more than the"),
        "large.png": (png((10_000, 10_000), [bytes(3)]), "more than the"),
        "no-width.png": (png((0, 8), [bytes(3)]), f"{cannot}|{no_image}"),
        "xmp-bomb.png": (png((1, 1), [bytes(3)], chunk(b"iTXt", xmp + bomb)), cannot),
        "exif-bomb.png": (png((1, 1), [bytes(3)], chunk(b"zTXt", exif + bomb)), cannot),
        "checksum.png": (bytes(damaged), cannot),
        "no-end.png": (whole[:-12], cannot),
        "scans.jpg": (b"\xff\xda".join([head, *scans, *[scans[-1]] * 3000]) + b"\xff\xd9", cannot),
    }


@pytest.fixture(scope="session")
def odd_images() -> dict[str, bytes]:
    """Unusual files that are answered all the same."""
    image = Image.open(EXAMPLE).resize((96, 64))
    jpeg, exif = saved(image, "JPEG"), Image.Exif()
    exif[0x0112] = 6
    frame = saved(Image.new("L", (4, 4), 255), "GIF")
    at = frame.index(b",")
    deep = Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    animated = {"save_all": True, "append_images": [image.rotate(90)]}
    modes = {mode: saved(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")}
    return {
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "deep.png": saved(deep, "PNG"),
        **{f"mode-{mode}.png": data for mode, data in modes.items()},
        "clear.png": saved(image.convert("P"), "PNG", transparency=3),
        **{f"moving.{form.lower()}": saved(image, form, **animated) for form in ("GIF", "WEBP")},
        "moving.png": saved(image, "PNG", **animated),
        "frames.gif": frame[:at] + frame[at:-1] * 100_000 + b";",
        **{f"{w}x{h}.png": saved(Image.new("RGB", (w, h)), "PNG")
           for w, h in ((1, 1), (1, 4000), (4000, 1))},
        "zip.jpg": jpeg + b"PK\3\4" + bytes(1000),
        "turned.jpg": saved(image, "JPEG", exif=exif),
        "damaged-exif.jpg": saved(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "damaged-profile.jpg": saved(image, "JPEG", icc_profile=b"no profile"),
    }  # fmt: skip
