"""What reading images costs: extraction from a folder, a tar and parquet files, the first step of a
pretraining on a large folder, the memory of a long list.

    python benchmarks/sources.py [--before CHECKOUT] [--images N] [--names N] [--listed N]

--before names a checkout of another version: each measurement is made with both in turn, in
processes of their own, on the same files. The model is a tiny untrained one: what is measured is
reading, not the encoder.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--listed", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", help="for its own processes")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "augself-sources"
    )
    options = parser.parse_args()
    if options.row:
        kind, place = options.row.split("=", 1)
        print(ROWS[kind](place))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    places = made(options.work, options.images, options.names, options.listed)
    versions = {"now": ROOT, **({"before": options.before.resolve()} if options.before else {})}
    print(f"| | {' | '.join(versions)} |\n|---|{'---:|' * len(versions)}")
    for title, row in places.items():
        found: dict[str, list[float]] = {name: [] for name in versions}
        for _ in range(options.rounds):
            for name, root in versions.items():
                done = subprocess.run(
                    [sys.executable, __file__, "--row", row, "--work", options.work],
                    env=os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
                    capture_output=True, text=True, check=True, cwd=options.work,
                )  # fmt: skip
                found[name].append(float(done.stdout.split()[-1]))
        medians = (sorted(values)[len(values) // 2] for values in found.values())
        print(f"| {title} | {' | '.join(f'{value:.2f}' for value in medians)} |", flush=True)


def made(work: Path, images: int, names: int, listed: int) -> dict[str, str]:
    """The files, once, and what is measured on them: title -> kind=place."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    folder = work / f"folder-{images}"
    if not folder.exists():
        random = np.random.default_rng(0)
        files = {}
        for number in range(images):
            small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((64, 48)).save(file, "JPEG")
            files[f"{'ab'[number % 2]}/{number:06}.jpg"] = file.getvalue()
        (work / "tars").mkdir(exist_ok=True)
        with tarfile.open(work / f"tars/{images}.tar", "w") as tar:
            for name, data in files.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        cells = [{"bytes": data, "path": Path(name).name} for name, data in files.items()]
        parquet.write_table(pa.table({"image": cells}), work / f"{images}.parquet",
                            row_group_size=1000)  # fmt: skip
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    large = work / f"names-{names}"
    if not large.exists():
        data = next((folder / "a").iterdir()).read_bytes()
        for number in range(names):
            path = large / f"class{number % 100:03}" / f"{number:07}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    text = work / f"list-{listed}.txt"
    if not text.exists():
        text.write_text("".join(f"images/class{n % 1000:04}/{n:08}.jpg\n" for n in range(listed)))
    return {
        f"extraction of {images} JPEGs of a folder, CPU s": f"extract={folder}",
        "... of a tar, CPU s": f"extract={work / 'tars' / f'{images}.tar'}",
        "... of a parquet file, CPU s": f"extract={work / f'{images}.parquet'}",
        f"first batch of a folder of {names} names, CPU s": f"first={large}",
        f"memory of a list of {listed} names, MB": f"memory={text}",
    }


def extraction(place: str) -> float:
    """CPU seconds of all threads, of everything after the imports: other load hits both alike."""
    import numpy as np

    from serving.extraction.pipeline import extract

    class Nothing:
        """An engine whose model costs nothing: reading, decoding and writing are what is left."""

        name, sha256, heads_sha256, provider, precision = "none", "0" * 64, None, "none", "fp32"

        class spec:
            features, heads = 8, {}

        def __init__(self) -> None:
            from augself_hub.preprocess import Preprocessing

            self.preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)

        def features(self, images: list) -> np.ndarray:
            return np.zeros((len(images), 8), np.float32)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as output:
        began = time.process_time()
        extract(place, Path(output) / "out", Nothing(), workers=2)  # type: ignore[arg-type]
        return time.process_time() - began


def first_batch(place: str) -> float:
    """CPU seconds from the name of the folder to the first batch of 256 pairs of views."""
    from augself_hub.augmentations.spec import Policy
    from training.data import sources
    from training.data.batches import ViewsDataset, collate

    began = time.process_time()
    dataset = ViewsDataset(sources.open_images(place), Policy(size=32), 0)
    keys = iter(dataset.sampler(0, 256, 256))
    collate(dataset.__getitems__([next(keys) for _ in range(256)]))
    return time.process_time() - began


def memory(place: str) -> float:
    """Megabytes that the opened list and its shards add at their largest."""
    try:
        from augself_hub.images import open_source
    except ImportError:  # 0.1
        from serving.extraction.opening import open_source

    before = _peak()
    source = open_source(place)
    shards = source.shards(2048)
    assert len(shards)
    return (_peak() - before) / 1024


def _peak() -> int:
    """KB; ru_maxrss would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


ROWS = {"extract": extraction, "first": first_batch, "memory": memory}

if __name__ == "__main__":
    main()
