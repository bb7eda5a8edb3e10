"""Parquet files of strangers: a kilobyte may stand for gigabytes, in bytes, in rows, in repeats."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from handmade import saved
from PIL import Image
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.images import open_source
from augself_hub.images.tables import _decoded

MB = 2**20
GIF = saved(Image.new("L", (4, 4), 255), "GIF")


def repeated(value: Any, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(times, np.int32), pa.array([value]))


def written(path: Path, repeats: bool = True, **columns: Any) -> str:
    """As a stranger writes it: repeats as numbers, without Arrow's word for it."""
    parquet.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        use_dictionary=repeats,
        write_statistics=False,
        dictionary_pagesize_limit=2**30,
        store_schema=False,
    )
    assert path.stat().st_size < MB // 4
    return str(path)


@pytest.mark.parametrize("struct", [False, True])
def test_an_image_that_is_repeated_is_there_once(tmp_path, struct):
    """200 rows of 8 MB, a file of 2 KB: 16 copies at once were 256 MB."""
    value = GIF + bytes(8 * MB)
    column: Any = repeated(value, 200)
    if struct:
        column = pa.array([{"bytes": value, "path": f"{n}.gif"} for n in range(20)])
    source = open_source(written(tmp_path / "a.parquet", image=column))
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for shard in source.shards(1000):
        for item in shard.items():
            most, count = max(most, pa.total_allocated_bytes()), count + 1
            assert item.read()[0][:100] == value[:100]
    assert count == (20 if struct else 200) and most - before < 5 * len(value)


@pytest.mark.parametrize("column", ["label", "split", "path"])
def test_a_text_that_is_repeated_is_there_once(tmp_path, column):
    """2,000 rows of 1 MB: labels, splits and names of files were copied for each."""
    images, texts = [GIF] * 2000, repeated("x" * MB, 2000)
    if column == "path":
        struct = pa.array([{"bytes": GIF, "path": "x" * MB} for _ in range(100)])
        file = written(tmp_path / "a.parquet", image=struct)
    else:
        file = written(tmp_path / "a.parquet", image=images, **{column: texts})
    tracemalloc.start()
    source = open_source(file)
    assert source.inventory.images == (100 if column == "path" else 2000)
    items = [item for shard in source.shards(1000) for item in shard.items()]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30 * MB
    if column == "label":
        assert "its label has 2000 letters" in str(items[-1].problem)
    if column == "split":
        assert items[-1].split == "x" * 1000 + "..."
    if column == "path":
        assert "its name has" in str(items[-1].problem)


BOMBS = {  # made where they are used: they are a gigabyte
    "rows": (lambda: pa.nulls(100_000_000, pa.binary()), r"100000000 rows in \d+ bytes"),
    "bytes": (lambda: pa.array([bytes(300 * MB)]), r"\d+ bytes that unpack to 3145\d+"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_no_file_of_its_size_holds_is_refused(tmp_path, kind):
    make, message = BOMBS[kind]
    file = written(tmp_path / "a.parquet", repeats=False, image=make())
    with pytest.raises(AugSelfError, match=f"not one parquet file can be read: {message}"):
        open_source(file)
    written(tmp_path / "b.parquet", image=[GIF])
    source = open_source(str(tmp_path))
    assert source.inventory.images == 1 and any("a.parquet" in n for n in source.inventory.notes)


@pytest.mark.parametrize("text", ["A" * 16 + " " * 10**6 + "!", "A" * 10**6 + "=!", " " * 10**6])
def test_a_text_is_looked_through_once(text):
    """Blanks that could be matched in two ways took hours."""
    started = time.process_time()
    assert _decoded(text) is None
    assert time.process_time() - started < 1
