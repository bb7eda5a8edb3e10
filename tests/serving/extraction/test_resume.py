"""An extraction that was stopped, however, goes on to what an uninterrupted one writes."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from augself_hub.errors import AugSelfError
from augself_hub.features import FeatureTable
from augself_hub.images import Columns, Options
from serving.extraction.destination import Destination
from serving.extraction.parts import Parts
from serving.extraction.pipeline import TableSettings, extract
from serving.inference.engine import Engine, load

IMAGES, SHARD = 120, 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The embedded model, which the command line takes too."""
    return load(None, "cpu", 1)


@pytest.fixture(scope="module")
def source(noisy_pictures) -> Path:
    return noisy_pictures(IMAGES)


def command(source: Path, output: Path, *options: object) -> list[str]:
    base = [sys.executable, "-m", "augself_hub.cli", "extract", str(source), "--output"]
    return [*base, str(output), "--shard-rows", str(SHARD), *map(str, options)]


def run(*arguments: object, **limits) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, **limits
    )


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock: what is left of a run, hidden files too."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(source, output).returncode == 0
    return contents(output)


def kill_at_part(process: subprocess.Popen[bytes], output: Path, number: int) -> None:
    while not (output / f"data/part-{number:05}.parquet").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()


def test_kill_9_changes_nothing(source, tmp_path, whole):
    """Killed three times, in the middle of the parts, then finished; the lock dies too."""
    output = tmp_path / "out"
    for number in (0, 8, 20):
        kill_at_part(start(source, output), output, number)
        with pytest.raises(AugSelfError, match="not a finished extraction"):
            FeatureTable.read(output)
    assert run(source, output).returncode == 0
    assert contents(output) == whole
    table = FeatureTable.read(output)
    assert len(table.ids) == len(set(table.ids)) == IMAGES - 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_fifty_random_moments(source, tmp_path, whole):
    """Also while the destination is made and while the last files are written; and as .npy."""
    chance = random.Random(0)
    began = time.monotonic()
    assert run(source, tmp_path / "npy", "--format", "npy").returncode == 0
    duration = time.monotonic() - began
    as_npy = contents(tmp_path / "npy")
    for trial in range(50):
        output = tmp_path / f"out{trial}"
        options = ("--format", "npy") if trial % 2 else ()
        process = start(source, output, *options)
        time.sleep(chance.uniform(0.3, 1) * duration)
        process.kill()
        process.wait()
        assert run(source, output, *options).returncode == 0
        assert contents(output) == (as_npy if trial % 2 else whole), trial


def test_sigterm_is_no_different(source, tmp_path, whole):
    output = tmp_path / "out"
    process = start(source, output)
    while not (output / "data/part-00005.parquet").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert run(source, output).returncode == 0 and contents(output) == whole


class Stop(Exception):
    pass


def stopped(source, output, engine, parts: int, **options) -> None:
    """An extraction that ends after so many parts."""
    written = []

    class Stopping(Parts):
        def write(self, *arguments):
            if len(written) == parts:
                raise Stop
            written.append(super().write(*arguments))
            return written[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.extraction.destination.Parts", Stopping)
        with pytest.raises(Stop):
            extract(source, output, engine, shard_rows=SHARD, **options)


def test_what_is_there_is_not_computed_again(source, tmp_path, engine, whole):
    stopped(source, tmp_path / "out", engine, 10)
    summary = extract(source, tmp_path / "out", engine, shard_rows=SHARD)
    assert summary.computed == IMAGES - 10 * SHARD and summary.counts.errors == 12
    assert set(contents(tmp_path / "out")) == set(whole)
    again = extract(source, tmp_path / "out", engine, shard_rows=SHARD)
    assert again.computed == 0 and again.counts == summary.counts


def test_a_damaged_part_is_made_again(source, tmp_path, engine, caplog):
    for name in ("clean", "hurt"):
        stopped(source, tmp_path / name, engine, 10)
    parts = [tmp_path / f"hurt/data/part-0000{number}.parquet" for number in range(4)]
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 3] ^= 1  # in the middle of the numbers
    parts[1].write_bytes(content)
    parts[2].write_bytes(parts[2].read_bytes()[:-5])
    shutil.copy(parts[0], parts[3])
    summaries = [
        extract(source, tmp_path / name, engine, shard_rows=SHARD) for name in ("clean", "hurt")
    ]
    assert summaries[1].computed - summaries[0].computed == 3 * SHARD
    assert "part-00001.parquet is damaged and is made again" in caplog.text
    assert contents(tmp_path / "clean") == contents(tmp_path / "hurt")


def test_a_file_of_somebody_else_s_is_no_part(source, tmp_path, engine):
    """One without any metadata, in the place of a part."""
    stopped(source, tmp_path / "out", engine, 2)
    parquet.write_table(pa.table({"id": ["x"]}), tmp_path / "out/data/part-00001.parquet")
    summary = extract(source, tmp_path / "out", engine, shard_rows=SHARD)
    assert summary.computed == IMAGES - SHARD


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("image", r"the input, first in a/000.png \.\.\. a/006.png"),
        ("new image", r"the input, first in a/000.png .* \(30 shards then, 31 now\)"),
        ("model", r"the model \(\w{12} then, ffffffffffff now\)"),
        ("preprocessing", "the preprocessing"),
        ("provider", "the provider"),
        ("dtype", r"--dtype \(float32 then, float16 now\)"),
        ("normalize", "--normalize"),
        ("format", r"--format \(parquet then, npy now\)"),
        ("rows", r"--shard-rows \(4 then, 5 now\)"),
    ],
)
def test_a_changed_run_is_refused(change, told, finished, source, tmp_path, engine, monkeypatch):
    """Saying what changed; and the table is left as it was."""
    source = shutil.copytree(source, tmp_path / "source")
    output, options, settings = tmp_path / "out", {"shard_rows": SHARD}, TableSettings()
    if finished:
        extract(source, output, engine, settings, **options)
    else:
        stopped(source, output, engine, 3)
    before = contents(output)
    if change == "image":
        shutil.copy(source / "a/010.png", source / "a/006.png")
    elif change == "new image":
        shutil.copy(source / "a/010.png", source / "a/0000.png")
    elif change == "model":
        monkeypatch.setattr(engine, "sha256", "f" * 64)
    elif change == "preprocessing":
        monkeypatch.setattr(engine, "preprocessing", engine.preprocessing.__class__(64, (0,) * 3, (1,) * 3))  # fmt: skip # noqa: E501
    elif change == "provider":
        monkeypatch.setattr(engine, "provider", "CUDAExecutionProvider")
    elif change == "format":
        options["layout"] = "npy"
    elif change == "rows":
        options["shard_rows"] = 5
    else:
        settings = TableSettings(
            **({"dtype": "float16"} if change == "dtype" else {"normalize": True})
        )
    with pytest.raises(AugSelfError, match=f"was begun with something else: {told}"):
        extract(source, output, engine, settings, **options)
    assert contents(output) == before


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("digest", "told"),
    [
        ("heads_sha256", r"the model's heads \(\w{12} then, ffffffffffff now\)"),
        ("matcher_sha256", r"the model's matcher \(\w{12} then, ffffffffffff now\)"),
        ("spec_sha256", r"what the model's augself/config.json says \(\w{12} then, ffff"),
    ],
)
def test_differences_by_another_head_are_refused(
    digest, told, finished, source, tmp_path, engine, monkeypatch
):
    """And features, in which heads have no part, are left as they are."""
    names = [f"{source}/a/{number:03}.png" for number in range(0, 20, 2)]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["a,b", *map(",".join, itertools.pairwise(names))]))
    settings = TableSettings(pairs=True)
    if finished:
        extract(pairs, tmp_path / "out", engine, settings, shard_rows=SHARD)
    else:
        stopped(pairs, tmp_path / "out", engine, 1, settings=settings)
    extract(source, tmp_path / "features", engine, shard_rows=40)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(engine, digest, "f" * 64)
    with pytest.raises(AugSelfError, match=f"was begun with something else: {told}"):
        extract(pairs, tmp_path / "out", engine, settings, shard_rows=SHARD)
    assert contents(tmp_path / "out") == before
    assert extract(source, tmp_path / "features", engine, shard_rows=40).computed == 0


def test_another_column_or_folder_of_a_data_set_is_refused(tmp_path, engine, source):
    """They change no digest of a data set, which is of all its columns."""
    files = sorted((source / "a").iterdir())[:8:2]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(files if folder == "one" else files[::-1]):
            shutil.copy(path, tmp_path / folder / f"{number}.png")
    features = datasets.Features(
        {"left": datasets.Image(), "right": datasets.Image(), "path": datasets.Value("string")}
    )
    rows = [{"bytes": path.read_bytes(), "path": None} for path in files]
    columns = {"left": rows, "right": rows[::-1], "path": [f"{n}.png" for n in range(4)]}
    data = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "data"))

    def again(output: str, column: str, root: str | None = None) -> FeatureTable:
        below = None if root is None else tmp_path / root
        options = Options(Columns(image=column), image_root=below)
        extract(tmp_path / "data", tmp_path / output, engine, options=options)
        return FeatureTable.read(tmp_path / output)

    left = again("out", "left")
    with pytest.raises(AugSelfError, match=r"--column \(image=left then, image=right now\)"):
        again("out", "right")
    assert (left.features == again("out", "left").features).all()
    first = again("paths", "path", "one")
    np.testing.assert_allclose(first.features, left.features, rtol=1e-3, atol=1e-5)
    with pytest.raises(AugSelfError, match=r"--image-root \(.*one then, .*two now\)"):
        again("paths", "path", "two")


def test_another_stream_is_another_input(tmp_path, engine, source):
    """Of as many shards and the same columns."""
    files = sorted((source / "a").iterdir())[:8:2]
    rows = [{"bytes": path.read_bytes(), "path": None} for path in files]
    features = datasets.Features({"image": datasets.Image()})
    for name, images in (("one", rows), ("two", rows[::-1])):
        data = datasets.Dataset.from_dict({"image": images}, features=features)
        datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / name))
    extract(f"stream:{tmp_path / 'one'}", tmp_path / "out", engine)
    with pytest.raises(AugSelfError, match="the input, first in shard 0"):
        extract(f"stream:{tmp_path / 'two'}", tmp_path / "out", engine)


def test_changed_labels_are_changed_input(source, tmp_path, engine):
    table = tmp_path / "t.csv"
    lines = [f"{source}/a/{n:03}.png,{n % 3}" for n in range(0, 20, 2)]
    table.write_text("\n".join(["path,label", *lines]))
    stopped(table, tmp_path / "out", engine, 1)
    table.write_text("\n".join(["path,label", *lines[:-1], f"{source}/a/018.png,1"]))
    with pytest.raises(AugSelfError, match="the input"):
        extract(table, tmp_path / "out", engine, shard_rows=SHARD)
    with pytest.raises(AugSelfError, match="the input"):
        extract(
            table,
            tmp_path / "out",
            engine,
            shard_rows=SHARD,
            options=Options(Columns(label="path")),
        )


def test_a_moved_table_goes_on(source, tmp_path, engine):
    """Only what is in a source counts, not how it was named; and the destination may move."""
    stopped(source, tmp_path / "out", engine, 3)
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(source)
    summary = extract(tmp_path / "link", tmp_path / "moved", engine, shard_rows=SHARD)
    assert summary.computed == IMAGES - 3 * SHARD


def test_a_second_writer_is_refused(source, tmp_path, engine, whole):
    output = tmp_path / "out"
    with Destination(output):
        second = run(source, output)
    assert second.returncode == 1 and "is being written by another process" in second.stderr
    assert contents(output) == {}
    assert run(source, output).returncode == 0 and contents(output) == whole


@pytest.mark.parametrize(
    ("layout", "readable", "size", "parts"), [("parquet", 2, 10_000, 1), ("npy", 20, 24_000, 2)]
)
def test_a_full_disk_keeps_the_whole_parts(layout, readable, size, parts, source, tmp_path):
    """Two shards of 20 images. The limit lies between the first part's size and the second's;
    then between the parts' and the .npy's."""
    few, output = tmp_path / "few", tmp_path / "out"
    shutil.copytree(source, few, ignore=lambda *_: [f"{n:03}.png" for n in range(40, IMAGES)])
    for path in sorted((few / "a").iterdir())[readable:]:
        path.write_bytes(b"")
    options = ("--shard-rows", 20, "--format", layout)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    done = run(few, output, *options, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"the disk of {output} is full" in done.stderr.splitlines()[-1]
    kept = {name for name in contents(output) if name.startswith("data/")}
    assert kept == {f"data/part-{number:05}.parquet" for number in range(parts)}
    others = {name for name in contents(output) if not name.startswith(".errors/")} - kept
    assert others <= {".plan.json", "errors.jsonl"}
    assert run(few, output, *options).returncode == 0
    assert run(few, tmp_path / "whole", *options).returncode == 0
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_without_space_is_told(tmp_path, monkeypatch):
    """The same for ENOSPC, the error of a disk that is really full."""
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: opened(Path("/dev/full"), mode))
    full = pytest.raises(AugSelfError, match=r"is full \(No space left on device\)")
    with Destination(tmp_path / "out") as there, full:
        there.write("manifest.json", "{}")
    assert contents(tmp_path / "out") == {}


def test_a_run_that_could_read_nothing_blocks_nobody(tmp_path, engine, source):
    images = tmp_path / "images"
    images.mkdir()
    (images / "x.png").write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(AugSelfError, match=r"none of the 1 images .*errors.jsonl says why"):
            extract(images, tmp_path / "out", engine)
        assert set(contents(tmp_path / "out")) == {"errors.jsonl"}
    shutil.copy(source / "a/000.png", images / "x.png")
    assert extract(images, tmp_path / "out", engine).counts.rows == 1
    assert (tmp_path / "out/errors.jsonl").read_text() == ""


@pytest.mark.parametrize("left", [".lock", "..plan.json.new", ".errors.jsonl.new"])
def test_what_a_kill_in_the_first_moment_leaves_blocks_nobody(left, source, tmp_path, engine):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_text("{")
    assert extract(source, tmp_path / "out", engine, shard_rows=40).counts.images == IMAGES
    assert set(contents(tmp_path / "out")) == {
        "errors.jsonl",
        "manifest.json",
        *(f"data/part-{number:05}.parquet" for number in range(3)),
    }


def test_no_image_leaves_nothing(tmp_path, engine):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AugSelfError, match="holds no image"):
        extract(tmp_path / "empty", tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "note",
    [b"[]", b"null", b"{}", b'{"errors": [1], "left_out": {}}', b'{"errors": [], "left_out": []}'],
)
def test_a_part_whose_note_is_damaged_is_made_again(source, tmp_path, engine, caplog, note):
    whole = tmp_path / "whole"
    extract(source, whole, engine, shard_rows=SHARD)
    output = tmp_path / "out"
    stopped(source, output, engine, 3)
    (output / ".errors/00001.json").write_bytes(note)
    extract(source, output, engine, shard_rows=SHARD)
    assert "part-00001.parquet is damaged and is made again" in caplog.text
    assert contents(output) == contents(whole)


@pytest.mark.parametrize("plan", ["[1]", "null", '{"format": %s}', "[" * 100_000])
def test_a_plan_of_another_shape_is_named(source, tmp_path, engine, plan):
    output = tmp_path / "out"
    stopped(source, output, engine, 3)
    known = json.dumps(json.loads((output / ".plan.json").read_text())["format"])
    (output / ".plan.json").write_text(plan.replace("%s", known))
    with pytest.raises(AugSelfError, match=r"\.plan\.json is damaged: remove"):
        extract(source, output, engine, shard_rows=SHARD)


def test_a_damaged_plan_is_named(source, tmp_path, engine):
    stopped(source, tmp_path / "out", engine, 1)
    (tmp_path / "out/.plan.json").write_text("{")
    with pytest.raises(AugSelfError, match=r"\.plan\.json is damaged: remove"):
        extract(source, tmp_path / "out", engine, shard_rows=SHARD)


def test_a_crash_while_finishing_an_npy_is_tidied(source, tmp_path, engine):
    """Killed between the manifest and the removal of the parts: the next run removes them."""
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "clean", lambda *_: os.kill(0, 0))
        extract(source, output, engine, layout="npy", shard_rows=SHARD)
    assert (output / "data").is_dir() and json.loads((output / "manifest.json").read_text())
    assert extract(source, output, engine, layout="npy", shard_rows=SHARD).computed == 0
    assert not (output / "data").exists() and not (output / ".plan.json").exists()
