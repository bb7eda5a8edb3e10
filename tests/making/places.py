"""Small places that hold images, the same whenever they are made: folders, lists, tars, tables."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("b/1.png", "a/0.png", "a/deep/2.png", "loose.png", "b/10.PNG", "ä/é.png", "a/2.png")


def png(number: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """A picture of its own for every number."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of regular members, in this order; a list may name one twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def folder(top: Path) -> Path:
    """Seven images, nested, one of no class."""
    for number, name in enumerate(NAMES):
        write(top / name, png(number))
    return top


def split_folder(top: Path) -> Path:
    names = ("train/a/0.png", "train/b/1.png", "test/a/2.png", "val/b/3.png")
    for number, name in enumerate(names):
        write(top / name, png(number))
    return top


def listed(top: Path) -> tuple[Path, Path]:
    """A .txt and a .csv of the images of a folder."""
    folder(top / "images")
    text = write(top / "list.txt", "".join(f"images/{name}\n" for name in NAMES[::-1]))
    rows = [f"images/{name},{['cat', 'dog'][n % 2]},train" for n, name in enumerate(NAMES)]
    return text, write(top / "table.csv", "\n".join(["path,label,split", *rows]))


def tars(top: Path) -> Path:
    """Two tars with numbers as labels."""
    for shard in (0, 1):
        members = {}
        for n in range(4 * shard, 4 * shard + 3):
            members |= {f"x/{n}.png": png(n), f"x/{n}.json": b"{}", f"x/{n}.cls": b"%d" % (n % 3)}
        tar(top / f"a-{shard:03}.tar", members)
    return top


def parquet(top: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    top.mkdir(parents=True, exist_ok=True)
    for part in (0, 1):
        numbers = range(3 * part, 3 * part + 3)
        images = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers]
        labels = [["cat", "dog"][n % 2] for n in numbers]
        table = pa.table({"image": images, "label": labels})
        parquet.write_table(table, top / f"{part}.parquet", row_group_size=2)
    return top


def golden_text(record: object) -> str:
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
