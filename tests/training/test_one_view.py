"""pretrain, extract and evaluate see one text alike, image by image, on any tree."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import places
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from augself_hub.errors import AugSelfError
from augself_hub.features import FeatureTable
from augself_hub.images import open_source, split_of
from serving.extraction.pipeline import extract
from serving.inference.engine import load
from training.data.sources import open_images
from training.evaluation.layouts import of_source

TOPS = ["cat", "dog", "日本", "10", "9", "train", "Train", "val", "test", "eval"]
NAMES = ["0.png", "1.JPG", "ü.jpeg", "notes.txt", "c.tif", ".hidden.png", "a.b.png"]
WORDS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(scope="module")
def engine(tiny_model):
    return load(str(tiny_model), "cpu", 1)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    paths=st.sets(
        st.tuples(st.sampled_from(TOPS), st.sampled_from(["", "x/", "y/"]), st.sampled_from(NAMES)),
        min_size=2, max_size=9,
    ),
    kind=st.sampled_from(["folder", "tars", "csv"]),
)  # fmt: skip
def test_every_command_sees_the_same(paths, kind, engine):
    top = Path(tempfile.mkdtemp())
    files = ["/".join((a, b + c)) for a, b, c in sorted(paths)]
    text = made(top, kind, files)
    refused = refusal(open_source, text)
    if refused is not None:
        assert refusal(open_images, text) == refusal(of_source, text) == refused
        assert refusal(lambda t: extract(t, top / "out", engine), text) == refused
        return
    source = open_source(text)
    items = [item for shard in source.shards(3) for item in shard.items()]
    wanted = {
        item.id: (None if item.label is None else (source.classes or range(99))[item.label],
                  item.split)
        for item in items
    }  # fmt: skip
    wanted = {name: (None if c is None else str(c), split) for name, (c, split) in wanted.items()}
    read = [item.id for item in items if item.problem is None]
    if not read:
        with pytest.raises(AugSelfError, match="can be read"):
            extract(text, top / "out", engine)
        return
    extract(text, top / "out", engine)
    errors = (top / "out/errors.jsonl").read_text().splitlines()
    assert [json.loads(e)["id"] for e in errors] == [i.id for i in items if i.problem is not None]
    table = FeatureTable.read(top / "out")
    names = [None if n < 0 else table.label_names[n] for n in table.labels]
    assert dict(zip(table.ids, zip(names, table.splits, strict=True), strict=True)) == {
        name: wanted[name] for name in read
    }
    assert table.ids == read

    images = open_images(text)
    there = {split for _, split in wanted.values()}
    train = len(there - {None}) > 1 and any(split_of(s or "") == "train" for s in there)
    seen = {
        name: images.classes[label] if label >= 0 else None
        for name, label in zip(images.names, images.labels, strict=True)
    }
    assert seen == {
        name: label for name, (label, split) in wanted.items()
        if not train or split_of(split or "") == "train"
    }  # fmt: skip

    if all(label is not None for label, _ in wanted.values()):
        data = of_source(text)
        assert dict(zip(data.ids, data.classes, strict=True)) == {
            name: label for name, (label, _) in wanted.items()
        }
        if any(split_of(s or "") == "test" for s in there):
            for name, split in zip(data.ids, data.splits, strict=True):
                # validation images may be taken from the training images
                assert WORDS[split] == split_of(wanted[name][1] or "train") or split == "val"
    shutil.rmtree(top)


def refusal(command, text: str) -> str | None:
    try:
        command(text)
    except AugSelfError as error:
        return str(error)
    return None


def made(top: Path, kind: str, files: list[str]) -> str:
    for number, file in enumerate(files):
        places.write(top / "images" / file, places.png(number, (8, 8)))
    if kind == "folder":
        return str(top / "images")
    pictures = [file for file in files if file.casefold().endswith((".png", ".jpg", ".jpeg"))]
    pictures = [file for file in pictures if ".hidden" not in file]
    if kind == "csv":
        rows = [f"images/{f};{f.split('/')[0]};{('train', 'test')[n % 2]}"
                for n, f in enumerate(pictures)]  # fmt: skip
        return str(places.write(top / "t.csv", "\n".join(["path;label;split", *rows])))
    members = []
    for number, file in enumerate(files):
        members += [(file, places.png(number, (8, 8)))]
        members += [(file.partition(".")[0] + ".cls", file.split("/")[0].encode())]
    return str(places.tar(top / "t.tar", members))
