"""How far features move because ICC profiles are ignored, on the demo's photographs.

    python benchmarks/color_profiles.py

Each photograph (sRGB) is written again as Display P3 and as Adobe RGB, with its profile. Two
features of that twin are compared by their cosine: of its pixels as they are stored, which is what
this project and the stock image processor do, and of its pixels converted to sRGB, as a viewer
shows them. The profiles are made here from the published primaries, adapted to D50.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from augself_hub.preprocess import decode, preprocess
from serving.inference.engine import load

EXAMPLES = Path(__file__).parents[1] / "serving/demo/examples"
WHITE = (0.9642, 1.0, 0.8249)
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def profile(primaries: tuple[tuple[float, float, float], ...], curve: np.ndarray) -> bytes:
    """An ICC profile, version 2: three primaries in XYZ, one curve of values in [0, 1]."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    tones = np.round(curve * 65535).astype(">u2")
    name = b"made for a measurement\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(WHITE),
        b"rXYZ": xyz(primaries[0]),
        b"gXYZ": xyz(primaries[1]),
        b"bXYZ": xyz(primaries[2]),
    } | dict.fromkeys(
        (b"rTRC", b"gTRC", b"bTRC"),
        b"curv\0\0\0\0" + struct.pack(">I", len(tones)) + tones.tobytes(),
    )
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in WHITE))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def main() -> None:
    steps = np.linspace(0, 1, 1024)
    srgb_curve = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    spaces = {"Display P3": (P3, srgb_curve), "Adobe RGB": (ADOBE, steps**2.19921875)}
    srgb, engine = ImageCms.createProfile("sRGB"), load(device="cpu")
    side, photographs = engine.preprocessing.size, sorted(EXAMPLES.glob("*.jpg"))
    print(f"{len(photographs)} photographs\n\n| twin | median cosine | least | grey levels, mean |")
    print("|---|---|---|---|")
    for name, (primaries, curve) in spaces.items():
        icc = profile(primaries, curve)
        pairs = []
        for path in photographs:
            image, file = decode(path.read_bytes()), io.BytesIO()
            stored = ImageCms.profileToProfile(image, srgb, io.BytesIO(icc))
            stored.save(file, "PNG", icc_profile=icc)
            twin = Image.open(file)
            own = io.BytesIO(twin.info["icc_profile"])
            shown = ImageCms.profileToProfile(twin.convert("RGB"), own, srgb)
            pairs += [preprocess(decode(file.getvalue()), side), preprocess(shown, side)]
        features = engine.features(pairs).reshape(len(photographs), 2, -1)
        norms = np.linalg.norm(features, axis=-1).prod(axis=1)
        cosines = (features[:, 0] * features[:, 1]).sum(axis=-1) / norms
        levels = np.abs(np.asarray(pairs[::2], float) - np.asarray(pairs[1::2], float)).mean()
        print(f"| {name} | {np.median(cosines):.4f} | {cosines.min():.4f} | {levels:.1f} |")


if __name__ == "__main__":
    main()
