"""Streams: what is drawn is decided by names and keys, not by who reads it or when."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import ClassLabel, Dataset, Features, Image, Value
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, DataLoader

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images.source import UNLABELED
from training.data.batches import ViewsDataset
from training.data.sources import key_of, open_images
from training.data.streams import (
    Partition,
    StreamViews,
    held_out_images,
    labelled_images,
    open_stream,
    samples_of,
)
from training.run import checkpoints, pretraining, trainer
from training.run.pretraining import pretrain
from training.run.settings import Settings, command_line

BATCH = 8
SOURCES = ("wds", "stream:wds", "stream:hf")


@pytest.fixture(scope="module")
def tars(photo_folder, tmp_path_factory) -> Path:
    """4 tars of 10 photographs each, the class number beside each."""
    folder = tmp_path_factory.mktemp("tars")
    paths = sorted(photo_folder.rglob("*.*"))
    for number in range(4):
        with tarfile.open(folder / f"b-{number}.tar", "w") as tar:
            for path in paths[number::4]:
                tar.add(path, path.name)
                label = folder / "label"
                label.write_text(str(int(path.parent.name == "odd")))
                tar.add(label, f"{path.stem}.cls")
    label.unlink()
    return folder


@pytest.fixture(scope="module")
def parquet(photo_folder, tmp_path_factory) -> Path:
    """4 parquet files of 10 photographs each."""
    folder = tmp_path_factory.mktemp("parquet")
    paths = sorted(photo_folder.rglob("*.*"))
    features = Features({"image": Image(), "label": Value("int64")})
    for number in range(4):
        some = paths[number::4]
        cells = [{"bytes": path.read_bytes(), "path": None} for path in some]
        rows = {"image": cells, "label": [int(path.parent.name == "odd") for path in some]}
        data = Dataset.from_dict(rows, features)
        data = data.class_encode_column("label")
        data.to_parquet(folder / f"train-{number}.parquet")
    return folder


@pytest.fixture
def place(tars, parquet) -> Callable[[str], str]:
    places = {"wds": f"{tars}/b-{{0..3}}.tar", "hf": str(parquet)}
    return lambda source: f"{source}:{places[source.rpartition(':')[2]]}"


@pytest.fixture
def opened(place) -> Callable[..., ViewsDataset | StreamViews]:
    def dataset(source: str, images: int = 32) -> ViewsDataset | StreamViews:
        if not source.startswith("stream"):
            return ViewsDataset(open_images(place(source)), Policy(size=16), seed=3)
        stream = open_stream(place(source), images, held_out=False)
        return StreamViews(stream, Policy(size=16), seed=3)

    return dataset


def item(drawn: dict) -> bytes:
    """Everything that was drawn for an image, to compare."""
    rows = [drawn[view][name].tobytes() for view in ("w1", "w2") for name in sorted(drawn["w1"])]
    return b"".join([drawn["crops"].tobytes(), *rows, bytes([drawn["label"]])])


def epoch_of(dataset, epoch: int, workers: int, processes: int, skip: int = 0) -> list[list[bytes]]:
    """What each process sees in an epoch, in its order, from its batch `skip` on."""
    seen = []
    for process in range(processes):
        share = BATCH // processes
        sampler = dataset.sampler(3, BATCH, share)
        sampler.set_epoch(epoch)
        batches = BatchSamplerShard(BatchSampler(sampler, share, True), processes, process)
        rest = list(batches)[skip:]
        loader = DataLoader(
            dataset, batch_sampler=rest, num_workers=workers, collate_fn=lambda items: items
        )
        seen.append([item(drawn) for batch in loader for drawn in batch])
    return seen


@pytest.mark.parametrize("source", SOURCES)
def test_views_and_order_do_not_depend_on_workers(opened, source):
    (expected,) = epoch_of(opened(source), 5, 0, 1)
    assert len(expected) == len(set(expected)) >= 32
    for workers in (1, 4):
        assert epoch_of(opened(source), 5, workers, 1) == [expected]


@pytest.mark.parametrize("source", SOURCES)
def test_two_processes_share_out_the_views_of_one(opened, source):
    (expected,) = epoch_of(opened(source), 5, 0, 1)
    for workers in (0, 2):
        first, second = epoch_of(opened(source), 5, workers, 2)
        assert not set(first) & set(second)
        assert {*first, *second} == set(expected)


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_can_be_entered_anywhere(opened, source):
    """What a resume does: a new process asks for the middle of an epoch at once."""
    (whole,) = epoch_of(opened(source), 2, 0, 1)
    for workers in (0, 2):
        assert epoch_of(opened(source), 2, workers, 1, skip=2) == [whole[2 * BATCH :]]


@pytest.mark.parametrize("source", SOURCES)
def test_epochs_differ_in_order_and_views(opened, source):
    (first,), (later,) = (epoch_of(opened(source), epoch, 0, 1) for epoch in (0, 1))
    assert not set(first) & set(later)
    labels = [[drawn[-1] for drawn in epoch] for epoch in (first, later)]
    assert labels[0] != labels[1]


def test_a_sample_has_the_same_views_in_a_list_and_in_a_stream(opened):
    (listed,), (streamed,) = (epoch_of(opened(s), 0, 0, 1) for s in ("wds", "stream:wds"))
    assert set(streamed) <= set(listed) | set(epoch_of_all(opened("wds")))


def epoch_of_all(dataset) -> list[bytes]:
    return [item(dataset[0, index]) for index in range(len(dataset))]


def names(stream, epoch: int = 0, seed: int = 3) -> list[list[tuple[int, str]]]:
    """(repeat, name) of the images each partition gives in an epoch."""
    share = len(stream) // stream.partitions
    partitions = [
        Partition(stream, seed, epoch, number).since(0) for number in range(stream.partitions)
    ]
    return [[(t, s.name) for t, s in (next(part) for _ in range(share))] for part in partitions]


def test_partitions_share_the_shards_and_no_image_comes_twice(place):
    stream = open_stream(place("stream:wds"), 40, held_out=False)
    assert stream.partitions == 4
    seen = [name for part in names(stream) for _, name in part]
    assert len(seen) == len(set(seen)) == 40
    assert names(stream) == names(stream)
    assert names(stream, seed=4) != names(stream)
    dealt = [{name.partition("/")[0] for _, name in part} for part in names(stream)]
    assert dealt != [{name.partition("/")[0] for _, name in part} for part in names(stream, 1)]


def test_a_partition_that_runs_out_begins_again_with_other_views(opened, place):
    stream = open_stream(place("stream:wds"), 80, held_out=False)
    for part in names(stream):
        assert [repeat for repeat, _ in part] == [0] * 10 + [1] * 10
    (views,) = epoch_of(opened("stream:wds", 80), 0, 0, 1)
    assert len(set(views)) == 80


def test_images_are_mixed_across_a_buffer(place):
    """Not as they lie in the shard."""
    stream = open_stream(place("stream:wds"), 40, held_out=False)
    first = [name for _, name in names(stream)[0]]
    assert first != sorted(first)


def test_one_in_twenty_is_held_out_by_name(place):
    whole = {
        name for part in names(open_stream(place("stream:wds"), 40, False)) for _, name in part
    }
    held_out = {name for name in whole if key_of(name) % 20 == 0}
    assert 0 < len(held_out) < 8
    stream = open_stream(place("stream:wds"), 40, held_out=True)
    trained = {name for epoch in range(3) for part in names(stream, epoch) for _, name in part}
    assert trained == whole - held_out
    images = held_out_images(stream, 500)
    assert set(images.names) == held_out
    assert images.read(0).mode == "RGB"
    assert len(held_out_images(stream, 1)) == 1


def test_labelled_images_of_a_stream(place):
    """The nearest neighbours know none of those they are asked about."""
    stream = open_stream(place("stream:hf"), 40, held_out=True)
    known, asked = labelled_images(stream, 1000), held_out_images(stream, 500)
    assert set(known.labels) == {0, 1}
    assert not set(known.names) & set(asked.names)
    assert len(known) + len(asked) == 40
    assert len(labelled_images(stream, 3)) == 3


def test_labels_of_streams(place):
    tars = open_stream(place("stream:wds"), 40, held_out=False)
    assert {sample.label for sample in samples_of(tars.shards[0])} <= {0, 1}
    rows = open_stream(place("stream:hf"), 40, held_out=False)
    assert list(rows.classes) == ["0", "1"]
    assert {sample.label for shard in rows.shards for sample in samples_of(shard)} == {0, 1}


def test_a_folder_of_images_through_hugging_face(photo_folder):
    stream = open_stream(f"stream:hf:{photo_folder}", 40, held_out=False)
    assert list(stream.classes) == ["even", "odd"]
    assert len({s.name for shard in stream.shards for s in samples_of(shard)}) == 40


def test_compressed_tars_at_a_url(tars):
    import gzip

    files = fsspec.filesystem("memory")
    for number in range(4):
        packed = gzip.compress((tars / f"b-{number}.tar").read_bytes())
        files.pipe(f"/packed/b-{number}.tar.gz", packed)
    stream = open_stream("stream:wds:memory://packed/b-{0..3}.tar.gz", 40, held_out=False)
    assert len({s.name for shard in stream.shards for s in samples_of(shard)}) == 40
    assert {s.label for shard in stream.shards for s in samples_of(shard)} == {0, 1}


# -- Damage ----------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tars, tmp_path) -> str:
    """One tar of four is cut, another has an image that is none."""
    folder = shutil.copytree(tars, tmp_path / "tars")
    cut = folder / "b-0.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with tarfile.open(folder / "b-1.tar", "a") as tar:
        (folder / "no").write_text("no image")
        tar.add(folder / "no", "no.jpg")
    return f"{folder}/b-{{0..3}}.tar"


def test_what_is_damaged_is_skipped_and_named(damaged):
    stream = open_stream(f"stream:wds:{damaged}", 40, held_out=False)
    dataset = StreamViews(stream, Policy(size=16), seed=3)
    places = [dataset[key] for key in dataset.sampler(3, BATCH, BATCH)]
    assert {name for drawn in places for name in drawn["skipped"]} == {"b-0.tar", "b-1.tar/no"}


@pytest.mark.parametrize("why", ["damaged", "unlabelled", "held out"])
def test_a_partition_whose_shards_have_nothing_is_dealt_others(tars, photographs, tmp_path, why):
    """Four shards are four partitions. No view comes twice, and a resume sees what was seen."""
    folder = shutil.copytree(tars, tmp_path / "tars")
    if why == "damaged":
        (folder / "b-0.tar").write_bytes(b"x" * 5000)
    else:
        with tarfile.open(folder / "b-0.tar", "w") as tar:
            held_out = [n for n in range(60) if key_of(f"b-0.tar/{n}") % 20 == 0]
            for number in held_out if why == "held out" else [1]:
                tar.add(photographs[0], f"{number}.jpg")
    stream = open_stream(
        f"stream:wds:{folder}/b-{{0..3}}.tar", 40, why == "held out", labelled=why == "unlabelled"
    )
    assert stream.partitions == 4
    for epoch in (0, 1):
        dataset = StreamViews(stream, Policy(size=16), seed=3)
        sampler = dataset.sampler(3, 4, 4)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        places = [dataset[key] for key in keys]
        assert len({item(drawn) for drawn in places}) == 40
        skipped = {name for drawn in places for name in drawn["skipped"]}
        assert skipped == ({"b-0.tar"} if why == "damaged" else set())
        again = StreamViews(stream, Policy(size=16), seed=3)
        assert [item(again[key]) for key in keys[30:]] == [item(drawn) for drawn in places[30:]]


def test_the_image_after_a_damaged_one_takes_its_place(damaged):
    """And comes again in its own: which it is does not depend on where reading began."""
    stream = open_stream(f"stream:wds:{damaged}", 44, held_out=False)
    whole = [list(map(item, epoch_from(stream, start))) for start in (0, 3, 11)]
    assert whole[1] == whole[0][3:]
    assert whole[2] == whole[0][11:]


def epoch_from(stream, start: int) -> list[dict]:
    dataset = StreamViews(stream, Policy(size=16), seed=3)
    return [dataset[key] for key in list(dataset.sampler(3, 4, 4))[start:]]


def test_a_stream_without_a_single_image_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not a tar" * 500)
    stream = open_stream(f"stream:wds:{tmp_path}/a.tar", 40, held_out=False)
    with pytest.raises(AugSelfError, match=r"no images in a\.tar"):
        StreamViews(stream, Policy(size=16), seed=3).check_readable()


# -- Runs ------------------------------------------------------------------------------------------


@pytest.fixture
def settings(place, small_run, monkeypatch) -> Callable[..., Settings]:
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)

    def make(source: str, name: str = "run", **others) -> Settings:
        given = {
            "data": place(source) if source in SOURCES else source,
            "epochs": 2,
            "epoch_images": 32 if source.startswith("stream") else None,
            "arguments": {"save_steps": 100},
        }
        return small_run(name, **given | others)

    return make


@pytest.mark.forks
@pytest.mark.parametrize(("source", "workers"), [("wds", 0), ("stream:wds", 2), ("stream:hf", 0)])
def test_an_interrupted_run_sees_what_it_would_have_seen(settings, monkeypatch, source, workers):
    """SIGTERM in the middle of the second epoch; afterwards every weight is the same."""
    whole = settings(source, "whole", workers=workers)
    pretrain(whole)
    original = trainer._MethodSteps.on_pre_optimizer_step

    def interrupt(self, args, state, control, **others):
        original(self, args, state, control, **others)
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._MethodSteps, "on_pre_optimizer_step", interrupt)
        pretrain(settings(source, workers=workers))
    broken = settings(source, workers=workers)
    assert checkpoints.newest_valid(broken.output).name == "checkpoint-6"
    pretrain(broken, resume=True)
    weights = [load_file(s.output / "checkpoint-8/model.safetensors") for s in (whole, broken)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_stream_leaves_out_is_told_and_kept(settings, tars, tmp_path, caplog, workers):
    """Of each shard once, however often and by however many workers it is read."""
    folder = shutil.copytree(tars, tmp_path / "tars")
    with tarfile.open(folder / "b-1.tar", "a") as tar:
        for name in (".hidden.png", "c.nef", "d.tif", "d.png"):
            (tmp_path / "part").write_bytes(b"x")
            tar.add(tmp_path / "part", name)
    made = settings(f"stream:wds:{folder}/b-{{0..3}}.tar", workers=workers, epochs=3)
    with caplog.at_level(logging.INFO):
        pretrain(made)
    read = json.loads((made.output / "settings.json").read_text())["read"]
    assert read["found"] == read["images"] + sum(read["left_out"].values())
    assert read["left_out"] == {
        "hidden": 1,
        "no image: .nef": 1,
        ".tif files beside the image of a sample": 1,
    }
    assert (read["shards"], read["images"]) == (4, 41)
    assert "4 shards are read: 41 images; left out: hidden 1" in caplog.text
    pretrain(dataclasses.replace(made, epochs=4), resume=True)


def test_too_many_damaged_shards_stop_a_run(settings, damaged, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(AugSelfError, match=r"25\.0% of the data"):
        pretrain(settings(f"stream:wds:{damaged}"))
    assert "skipped b-0.tar" in caplog.text
    with pytest.raises(AugSelfError, match=r"25\.0% of the data"):
        pretrain(settings(f"wds:{damaged}", "listed"))


@pytest.mark.parametrize(
    ("source", "others", "message"),
    [
        ("stream:wds", {"epoch_images": None}, "how long an epoch is: give --epoch-images"),
        ("stream:wds", {"epoch_images": 4}, "--epoch-images 4 is less than one batch of 8"),
        ("stream:wds", {"classes": Path(__file__)}, "--classes cannot choose from stream:wds"),
        ("wds", {"epoch_images": 8}, "--epoch-images would have no effect"),
        ("wds", {"held_out": "stream:wds:x.tar"}, "can only be read in order"),
        ("stream:zip:x", {}, "unknown source zip:x"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(settings, source, others, message):
    with pytest.raises(UsageError, match=message):
        pretrain(settings(source, **others))


def test_the_card_names_no_folder(settings):
    assert "--data stream:wds:b-{0..3}.tar --" in command_line(settings("stream:wds"))


def test_unlabelled_rows_have_no_label(tmp_path, photographs):
    data = Dataset.from_dict({"image": [str(photographs[0])]}).cast_column("image", Image())
    data.to_parquet(tmp_path / "train.parquet")
    stream = open_stream(f"stream:hf:{tmp_path}", 1, held_out=False)
    assert [s.label for s in samples_of(stream.shards[0])] == [UNLABELED]
    assert not labelled_images(stream, 10)


@pytest.mark.forks
def test_supervised_learning_leaves_out_the_rows_without_a_label(settings, tmp_path, photographs):
    some = [photographs[n % len(photographs)].read_bytes() for n in range(30)]
    images = [{"bytes": data, "path": None} for data in some]
    data = Dataset.from_dict({"image": images, "label": [0, 1, None] * 10})
    data = data.cast_column("image", Image())
    data.cast_column("label", ClassLabel(names=["a", "b"])).to_parquet(tmp_path / "train.parquet")
    stream = open_stream(f"stream:hf:{tmp_path}", 16, held_out=False, labelled=True)
    views = StreamViews(stream, Policy(size=16), seed=3)
    assert {views[key]["label"] for key in views.sampler(3, 8, 8)} == {0, 1}
    run = settings(f"stream:hf:{tmp_path}", method="supervised", epochs=1, epoch_images=16)
    assert pretrain(run) == run.output / "model"
