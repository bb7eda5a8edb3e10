"""Makes serving/demo/pictures: the gallery of the demo, and its features under two models.

    apt-get download lomiri-wallpapers-16.04 openclipart-png
    for f in *.deb; do dpkg -x $f packages; done
    python docs/making/gallery.py pictures packages
    python docs/making/gallery.py features AUGSELF_MODEL PLAIN_MODEL

The first writes the pictures, each whole on a square of 160 pixels, and LICENSES.md. What is taken
is a rule: of every folder of drawings as many as the table says, each the one whose colours and
layout are farthest from those taken already. The second writes features.npz: the features of both
models, sha256 of their graphs and of the pictures, and the command. No model ships with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors import safe_open

from augself_hub.preprocess import decode, preprocess
from serving.demo.gallery import FEATURES, PICTURES, digest, palette, shared
from serving.inference.engine import Engine

SIDE, QUALITY = 160, 85
ALIKE = ("method", "encoder", "data", "images", "steps")  # of both models' training
CC_BY = "[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)"
CC_BY_2 = "[CC-BY-2.0](https://creativecommons.org/licenses/by/2.0/)"
CC0 = "[CC0-1.0](https://creativecommons.org/publicdomain/zero/1.0/)"
# Photographs: name -> file, author, licence. The first ten are lomiri-wallpapers-16.04's.
PHOTOGRAPHS = {
    "ridge": ("aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", CC_BY),
    "dogs": ("friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", CC_BY),
    "life": ("life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", CC_BY),
    "peaks": ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", CC_BY),
    "sunset": ("sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", CC_BY),
    "fig": ("Picture_0B_by_freespace.jpg", 'Trevor "Freespace", 2018', CC_BY),
    "brushes": ("Picture_1A_by_freespace.jpg", 'Trevor "Freespace", 2018', CC_BY),
    "seeds": ("seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt, 2018", CC0),
    "colours": ("umang_by_Abhishek_Mudgal.jpg", "Abhishek Mudgal, 2018", CC_BY),
    "drum": ("Wine_by_Jakkub_Mede.jpg", "Jakub Mede, 2018", CC_BY),
    "temple": ("china.jpg", "danielbuechele", CC_BY_2),
    "flower": ("flower.jpg", "vultilion", CC_BY_2),
}
PARTS = 3  # of a photograph's height, and as many squares of that side as its width holds
WALLPAPERS, DRAWINGS = "usr/share/backgrounds", "usr/share/openclipart/png"
# Folder of openclipart-png -> drawings taken from it.
FOLDERS = {
    "food/fruit": 18, "food/vegetables": 9, "food/desserts": 6, "food/beverages": 6,
    "plants/flowers": 14, "plants/trees": 8, "animals/birds": 14, "animals/bugs": 10,
    "animals/fish": 9, "animals/mammals": 14, "transportation/vehicles": 24,
    "transportation/boating": 6, "transportation/roadsigns": 8, "buildings/homes": 8,
    "recreation/music": 10, "recreation/sports": 10, "recreation/toys": 6, "shapes/arrows": 10,
    "signs_and_symbols/weather": 6, "signs_and_symbols/flags/africa": 26,
    "signs_and_symbols/flags/america": 14, "signs_and_symbols/flags/asia": 12,
    "signs_and_symbols/flags/europe": 30, "signs_and_symbols/flags/oceania": 4,
}  # fmt: skip
# Parts of names: signs with words, brands, people, what is there twice, symbols that are no flags.
LEFT_OUT = (
    *(
        "rules",
        "tack",
        "tote",
        "slate",
        "tile",
        "interstate",
        "stop-sign",
        "tux",
        "gameboy",
        "ganson",
    ),
    *("singing", "jazz", "boy_", "golf", "hummer", "military", "symbol", "cycle_lane", "parking"),
    *(
        "dolphin_01",
        "bluewhale",
        "crazy",
        "sleeping",
        "amibe",
        "bypass",
        "caterpillar",
        "mad_little",
    ),
    *("tibet", "regions", "region_", "ile_de", "citt", "milk_carton", "cactus", "sketch", "_bw"),
    *("taiwan", "israel", "iraq", "kosovo", "christmas", "beer", "wine", "skull", "map", "domo"),
)


def square(image: Image.Image) -> Image.Image:
    """Whole, in the middle of a white square; alpha over white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    return ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.LANCZOS, color="white")


def layout(image: Image.Image) -> np.ndarray:
    """(147,) what it looks like from afar: 7 x 7 pixels in Lab."""
    return np.asarray(image.resize((7, 7), Image.Resampling.BOX).convert("LAB"), float).ravel()


def various(folder: Path, count: int) -> Iterator[tuple[Path, Image.Image]]:
    """The drawings of a folder, farthest first, beginning with the most colourful one."""
    paths = [
        path
        for path in sorted(folder.rglob("*.png"))
        if not any(part in path.name.lower() for part in LEFT_OUT)
        and 60 <= min(sides := struct.unpack(">II", path.read_bytes()[16:24])) <= max(sides) <= 1500
    ]
    images = [square(Image.open(path)) for path in paths]
    seen = np.stack([layout(image) for image in images])
    colorful = [np.ptp(np.asarray(i, np.int16), axis=-1).mean() for i in images]
    taken = [int(np.argmax(colorful))]
    away = np.linalg.norm(seen - seen[taken[0]], axis=1)
    while len(taken) < min(count, len(paths)) and away.max() > 40:
        taken.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(seen - seen[taken[-1]], axis=1))
    yield from ((paths[n], images[n]) for n in sorted(taken))


def parts(name: str, photograph: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """The middle square of a photograph, and squares of a third of its height, evenly spaced."""
    yield name, ImageOps.fit(photograph, (SIDE, SIDE), Image.Resampling.LANCZOS)
    side = photograph.height // PARTS
    across = photograph.width // side
    for row in range(PARTS):
        for column in range(row % 2, across, 2):  # as on a chessboard
            x = column * (photograph.width - side) // max(1, across - 1)
            box = (x, row * side, x + side, (row + 1) * side)
            tile = photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
            yield f"{name}-{row + 1}-{column + 1}", tile


def pictures(packages: Path) -> None:
    """Write all pictures and LICENSES.md."""
    from sklearn.datasets import load_sample_image

    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.jpg"):
        old.unlink()
    photographs, drawings = [], []
    for name, (file, author, licence) in PHOTOGRAPHS.items():
        path = packages / WALLPAPERS / file
        loaded = Image.open(path) if path.is_file() else Image.fromarray(load_sample_image(file))
        count = 0
        for part, image in parts(name, loaded.convert("RGB")):
            image.save(PICTURES / f"{part}.jpg", quality=QUALITY)
            count += 1
        photographs.append(f"| {name}\\*.jpg | {count} | `{file}` | {author} | {licence} |")
    for folder, quota in FOLDERS.items():
        for number, (path, image) in enumerate(various(packages / DRAWINGS / folder, quota), 1):
            name = f"{folder.removeprefix('signs_and_symbols/').replace('/', '-')}-{number:02d}.jpg"
            image.save(PICTURES / name, quality=QUALITY)
            drawings.append(f"| {name} | `{path.relative_to(packages / DRAWINGS)}` |")
    total = len(list(PICTURES.glob("*.jpg")))
    (PICTURES / "LICENSES.md").write_text(
        LICENSES.format(
            side=SIDE,
            total=total,
            drawn=len(drawings),
            count=len(photographs),
            cut=total - len(drawings),
            photographs="\n".join(photographs),
            drawings="\n".join(drawings),
        )
    )
    print(f"{total} pictures, {len(drawings)} of them drawings")


LICENSES = """\
# The pictures of the gallery

{total} pictures: {cut} cut from {count} photographs, and {drawn} drawings.
`docs/making/gallery.py` made them and this page. Each was made {side} x {side} pixels (drawings
whole, on white) and saved as JPEG without metadata; photographs were cut into squares; nothing was
recoloured.

## Photographs

Those named `by_` are of Debian's package `lomiri-wallpapers-16.04`, whose copyright file names
authors and licences; `china.jpg` and `flower.jpg` are scikit-learn's, from Flickr.

| here | pictures | file | author | licence |
|---|---|---|---|---|
{photographs}

## Drawings

Debian's package `openclipart-png`, from openclipart.org: dedicated to the public domain
([the dedication](https://creativecommons.org/licenses/publicdomain/), in the package's copyright
file).

| here | file in the package |
|---|---|
{drawings}
"""


def features(augself: Path, plain: Path) -> None:
    """Write features.npz. Refuses two models that were not trained alike but for AugSelf."""
    names = sorted(path.name for path in PICTURES.glob("*.jpg"))
    images = [decode((PICTURES / name).read_bytes()) for name in names]
    stored: dict[str, np.ndarray] = {"names": np.array(names)}
    about: dict[str, Any] = {
        "command": "python docs/making/gallery.py features AUGSELF_MODEL PLAIN_MODEL",
        "pictures": digest(names),
    }
    colors = np.stack([palette(image) for image in images])
    for side, folder in (("augself", augself), ("plain", plain)):
        engine = Engine(folder, "cpu", threads=1)
        size = engine.preprocessing.size
        batches = [images[start : start + 32] for start in range(0, len(images), 32)]
        found = [engine.features([preprocess(i, size) for i in batch]) for batch in batches]
        stored[side] = np.concatenate(found).astype(np.float16)
        weights = folder / "model.safetensors"
        with safe_open(weights, "numpy") as tensors:
            count = sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118
        about[side] = {
            "model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "graph": engine.sha256,
            "parameters": count,
            "shared": float(shared(colors, stored[side]).mean()),
            "trained": engine.spec.provenance,
        }
    kept = (about[side]["trained"] for side in ("augself", "plain"))
    one, other = ({k: v for k, v in of.items() if k in ALIKE} for of in kept)
    alike = re.compile(r"--seed \d+|--size \d+|--epochs \d+|lr[\d.]+")
    seeds = [alike.findall(about[s]["trained"]["command"]) for s in ("augself", "plain")]
    if one != other or seeds[0] != seeds[1]:
        raise SystemExit(f"the two were not trained alike: {one}, {seeds[0]}; {other}, {seeds[1]}")
    np.savez_compressed(FEATURES, about=np.array(json.dumps(about)), **stored)
    print(f"{FEATURES.name}: {len(names)} pictures, {FEATURES.stat().st_size} bytes")
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    make = what.add_parser("pictures")
    make.add_argument("packages", type=Path)
    compute = what.add_parser("features")
    compute.add_argument("augself", type=Path)
    compute.add_argument("plain", type=Path)
    given = parser.parse_args()
    if given.what == "pictures":
        pictures(given.packages)
    else:
        features(given.augself, given.plain)
