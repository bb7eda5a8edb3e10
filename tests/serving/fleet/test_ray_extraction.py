"""Extraction on a local Ray of two CPUs writes what this process alone writes, whatever dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from augself_hub.cli import main
from augself_hub.errors import AugSelfError
from augself_hub.images import Inventory, Item
from serving.extraction.destination import Destination
from serving.extraction.pipeline import extract
from serving.inference.engine import Engine, load

ray = pytest.importorskip("ray", reason="pip install 'augself-hub[fleet]'")

from serving.fleet import ray_extraction as ray_engine  # noqa: E402
from serving.fleet.ray_extraction import Model, fill, room  # noqa: E402

IMAGES, SHARD = 120, 4
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(None, "cpu", 1)


@pytest.fixture(scope="module")
def source(noisy_pictures) -> Path:
    return noisy_pictures(IMAGES)


@pytest.fixture(scope="module")
def whole(source, engine, tmp_path_factory) -> dict[str, bytes]:
    """What the local engine writes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    extract(source, output, engine, shard_rows=SHARD)
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock: what is left of a run, hidden files too."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
        yield
        ray.shutdown()


@pytest.mark.slow
def test_two_workers_write_the_same_table(cluster, source, engine, tmp_path, whole):
    """Byte for byte, errors and manifest too; and a finished table is left alone."""
    summary = extract(source, tmp_path / "out", engine, shard_rows=SHARD, fill=fill)
    assert contents(tmp_path / "out") == whole
    assert (summary.computed, summary.counts.errors) == (IMAGES, 12)
    again = extract(source, tmp_path / "out", engine, shard_rows=SHARD, fill=fill)
    assert (again.computed, again.counts) == (0, summary.counts)


@pytest.mark.slow
def test_what_one_engine_began_the_other_finishes(cluster, source, engine, tmp_path, whole):
    """What is whole is kept; a part that is damaged or missing is made again."""

    class Stop(Exception):
        pass

    class Unfinished(Destination):
        def finish(self, *_, **__):
            raise Stop

    for first, second in ((fill, None), (None, fill)):
        output = tmp_path / f"out-{first is None}"
        options = {"fill": first} if first else {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serving.extraction.pipeline.Destination", Unfinished)
            with pytest.raises(Stop):
                extract(source, output, engine, shard_rows=SHARD, **options)
        (output / "data/part-00003.parquet").unlink()
        hurt = output / "data/part-00008.parquet"
        hurt.write_bytes(hurt.read_bytes()[:-5])
        more = {"fill": second} if second else {}
        summary = extract(source, output, engine, shard_rows=SHARD, **more)
        assert summary.computed == 2 * SHARD
        assert contents(output) == whole


@pytest.mark.slow
def test_more_workers_than_room_and_than_shards(cluster, source, engine, tmp_path):
    """Those there is no room for are not waited for."""
    extract(source, tmp_path / "out", engine, shard_rows=40, workers=16, fill=fill)
    assert len(list((tmp_path / "out/data").iterdir())) == 3


def source_of(shard) -> object:
    """A source of one shard."""

    class One:
        location, classes, inventory = "one", (), Inventory("one", "list")

        def shards(self, rows):
            return [shard]

    return One()


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named(cluster, engine, tmp_path):
    class Deadly:
        name, digest, images = "the deadly shard", "d", 1

        def items(self, left_out=None):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AugSelfError, match=r"its 3 successors died: the deadly shard; .*are kept"):
        extract(source_of(Deadly()), tmp_path / "out", engine, fill=fill)


@pytest.mark.slow
def test_a_node_that_sees_another_source_is_refused(cluster, engine, tmp_path):
    class Elsewhere:
        name, images = "the shard", 1

        @property
        def digest(self):
            return str(os.getpid())

        def items(self, left_out=None):
            return iter([Item(("x",), (b"",))])

    driver = os.getpid()
    shard = Elsewhere()
    assert shard.digest == str(driver)
    with pytest.raises(AugSelfError, match=r"the shard on .* is not what the driver sees: put SOU"):
        extract(source_of(shard), tmp_path / "out", engine, fill=fill)


@pytest.mark.slow
def test_an_error_of_a_worker_is_the_command_s_error(cluster, source, engine, tmp_path):
    """One line, as if it had happened here."""
    told = Model.of(engine)
    wrong = dataclasses.replace(told, digests=told.digests | {"sha256": "f" * 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine.Model, "of", lambda engine: wrong)
        with pytest.raises(AugSelfError) as refusal:
            extract(source, tmp_path / "out", engine, shard_rows=SHARD, fill=fill)
    assert type(refusal.value) is AugSelfError and "give every node the same" in str(refusal.value)


def test_a_node_loads_the_driver_s_model_or_refuses(engine, tiny_model):
    """By its folder; where that is not there by its name; never another one."""
    told = Model.of(engine)
    assert told.load().sha256 == engine.sha256
    gone = dataclasses.replace(told, folder=Path("/nowhere"))
    assert gone.load().sha256 == engine.sha256
    with pytest.raises(
        AugSelfError, match=r"the model is \w{12}, on the driver \w{12}: give every"
    ):
        dataclasses.replace(told, folder=tiny_model).load()
    for name, word in (("heads_sha256", "heads"), ("spec_sha256", r"augself/config\.json says")):
        other = dataclasses.replace(told, digests=told.digests | {name: "f" * 64})
        with pytest.raises(AugSelfError, match=rf"{word} is \w{{12}}, on the driver ffffffffffff"):
            other.load()


def test_workers_fill_the_cluster():
    """A core each on CPUs; on GPUs a GPU and its share of the cores, which every node has."""
    whole = [{"CPU": 16.0, "GPU": 2.0}]
    assert room(CPU, whole, None) == (16, {"num_cpus": 1}, 1)
    assert room(CPU, [{"CPU": 16.0}], 3) == (3, {"num_cpus": 1}, 1)
    assert room(OPENVINO, [{"CPU": 12.0}, {"CPU": 4.0}], None) == (16, {"num_cpus": 1}, 1)
    assert room(CUDA, whole, None) == (2, {"num_cpus": 8, "num_gpus": 1}, 8)
    few = [{"CPU": 2.0, "GPU": 4.0}]
    assert room(CUDA, few, None) == (4, {"num_cpus": 1, "num_gpus": 1}, 1)
    head, nodes = {"CPU": 16.0}, [{"CPU": 8.0, "GPU": 1.0}] * 4
    assert room(CUDA, [head, *nodes], None) == (4, {"num_cpus": 8, "num_gpus": 1}, 8)
    unlike = [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert room(CUDA, unlike, None) == (5, {"num_cpus": 4, "num_gpus": 1}, 4)
    with pytest.raises(AugSelfError, match="has no GPU"):
        room(CUDA, [{"CPU": 16.0}], None)


def test_without_ray_the_extra_is_named(monkeypatch, capsys, tmp_path):
    """One line, before a model is loaded or an output begun."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "serving.fleet.ray_extraction")
    with pytest.raises(SystemExit) as stop:
        main(["extract", str(tmp_path), "--output", str(tmp_path / "out"), "--engine", "ray"])
    assert stop.value.code == 1 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err == (
        "error: ray is not installed: pip install 'augself-hub[fleet]'\n"
    )


# -- The command, killed ---------------------------------------------------------------------------


def start(source: Path, output: Path) -> subprocess.Popen[str]:
    """The command on a Ray of its own."""
    command = [sys.executable, "-m", "augself_hub.cli", "extract", str(source), "--engine", "ray"]
    command += ["--output", str(output), "--shard-rows", str(SHARD), "--threads", "2"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_part(process: subprocess.Popen[str], output: Path, number: int) -> None:
    while not (output / f"data/part-{number:05}.parquet").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The ids of the actors that this command's own Ray has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended since
            continue
    return [p for p in parents if title(p).startswith("ray::Worker") and below(p, process, parents)]


def title(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def below(number: int, process: subprocess.Popen[str], parents: dict[int, int]) -> bool:
    while number in parents and number != process.pid:
        number = parents[number]
    return number == process.pid


@pytest.mark.slow
def test_kill_9_of_a_worker_changes_nothing(source, tmp_path, whole):
    """Three times, in one run that ends by itself; nothing half-written is left."""
    process = start(source, tmp_path / "out")
    for number in (2, 9, 16):
        wait_for_part(process, tmp_path / "out", number)
        os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(120) == 0, process.stderr.read()
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_kill_9_of_the_driver_changes_nothing(source, tmp_path, whole):
    """The workers die with it, or finish a part that the next run finds; the lock dies too."""
    output = tmp_path / "out"
    for number in (2, 12):
        process = start(source, output)
        wait_for_part(process, output, number)
        process.kill()
        process.wait()
        assert not (output / "manifest.json").exists()
    process = start(source, output)
    assert process.wait(120) == 0, process.stderr.read()
    assert contents(output) == whole
