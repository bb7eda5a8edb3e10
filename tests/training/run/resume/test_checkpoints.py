"""A damaged checkpoint, other settings or a full disk never cost more than they must."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import resource
import shutil

import pytest

from augself_hub.errors import AugSelfError
from training.run import checkpoints, resuming
from training.run.images import opened
from training.run.pretraining import pretrain

pytestmark = pytest.mark.forks


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: flip(folder / "optimizer.pt"), "optimizer.pt is damaged"),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "it was not finished"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(run, caplog, damage, said):
    damage(run.output / "checkpoint-6")
    with caplog.at_level(logging.WARNING, logger="training"):
        chosen = checkpoints.newest_valid(run.output)
    assert chosen == run.output / "checkpoint-4"
    assert f"ignored {run.output / 'checkpoint-6'}: {said}" in caplog.text


def test_the_log_of_a_run_of_0_1_goes_on_under_the_names_of_today(run):
    folder = run.output / "checkpoint-6"
    text = (folder / "trainer_state.json").read_text()
    assert '"feature_std"' in text
    (folder / "trainer_state.json").write_text(text.replace("feature_std", "spread"))
    checkpoints.write_manifest(folder)
    pretrain(run, resume=True)
    after = (run.output / "checkpoint-12/trainer_state.json").read_text()
    assert "spread" not in after
    assert after.count('"feature_std"') > text.count('"feature_std"')


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_replaced_and_never_outlives_a_good_one(
    run, finished, assert_same_end
):
    """Left in place it would count as the newest, and the good ones would be rotated away."""
    shutil.copytree(run.output / "checkpoint-6", run.output / "checkpoint-11")
    for name in ("checkpoint-6", "checkpoint-11"):
        flip(run.output / name / "model.safetensors")
    pretrain(run, resume=True)
    left = sorted(p.name for p in run.output.glob("checkpoint-*"))
    assert left == ["checkpoint-10", "checkpoint-12"]
    assert_same_end(run.output, finished(run))


def test_without_a_valid_checkpoint_a_resume_says_what_to_do(run):
    for folder in run.output.glob("checkpoint-*"):
        flip(folder / "scheduler.pt")
    with pytest.raises(AugSelfError, match=r"no valid checkpoint in .*: remove it and start"):
        pretrain(run, resume=True)


def test_a_finished_run_resumes_to_its_end(settings, assert_same_end, tmp_path):
    made = settings("run")
    pretrain(made)
    before = shutil.copytree(made.output, tmp_path / "before")
    assert pretrain(made, resume=True) == made.output / "model"
    assert_same_end(made.output, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_lr": 0.05}, "base_lr = 0.03, not 0.05"),
        ({"augself": {"crop": 1.0}}, "augself = {'crop': 1.0, 'color': 1.0}, not {'crop': 1.0}"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"method": "byol", "method_options": {}}, "method = simsiam, not byol"),
    ],
)
def test_other_settings_are_refused_by_name(run, change, said):
    with pytest.raises(AugSelfError, match=said.replace("{", r"\{").replace("}", r"\}")):
        pretrain(dataclasses.replace(run, **change), resume=True)


def compared(settings):
    """Whether a run would be extended; raises where it cannot be resumed like this."""
    images = opened(settings)[0]
    before = resuming.read_settings(settings.output)
    now = resuming.decisive_settings(settings, len(images), images.names, images.inventory, before)
    return resuming.check_resumed(settings.output, before, now)


def test_other_images_are_refused(run, photos, tmp_path):
    data = tmp_path / "moved"
    shutil.copytree(photos, data)
    moved = dataclasses.replace(run, data=str(data), workers=1)
    assert not compared(moved)
    (data / "00.png").rename(data / "renamed.png")
    with pytest.raises(AugSelfError, match="was started with images_sha256 ="):
        pretrain(moved, resume=True)


@pytest.mark.parametrize("begun_by", ["this version", "0.1.0"])
def test_the_images_of_a_glob_are_named_below_the_folder_they_share(
    settings, photos, tmp_path, begun_by
):
    """So they may move. 0.1 noted their whole paths: such a run goes on where they were."""
    here, there = (tmp_path / name / "photos" for name in ("here", "elsewhere/deeper"))
    shutil.copytree(photos, here)
    made = settings("run", data=f"{here}/*.*")
    images = opened(made)[0]
    record = resuming.decisive_settings(made, len(images), images.names, images.inventory)
    assert images.names[0].startswith(str(here))
    if begun_by == "0.1.0":
        whole = "\n".join(images.names).encode()
        record["images_sha256"] = hashlib.sha256(whole).hexdigest()
    made.output.mkdir()
    (made.output / resuming.SETTINGS).write_text(json.dumps(record))
    assert not compared(made)
    if begun_by != "0.1.0":
        there.parent.mkdir(parents=True)
        here.rename(there)
        here, made = there, dataclasses.replace(made, data=f"{there}/*.*")
        assert not compared(made)
    (here / "00.png").rename(here / "renamed.png")
    with pytest.raises(AugSelfError, match="was started with images_sha256 ="):
        compared(made)


@pytest.mark.parametrize("begun_by", ["this version", "0.1.0"])
def test_a_class_list_is_what_it_says_and_held_out_images_may_move(
    settings, photo_folder, tmp_path, begun_by
):
    first, moved, turned = (tmp_path / f"{name}.txt" for name in ("first", "moved", "turned"))
    for path, text in ((first, "odd\neven\n"), (moved, "odd\n\n even"), (turned, "even\nodd\n")):
        path.write_text(text)
    made = settings(
        "run", data=str(photo_folder), classes=first, held_out=str(photo_folder), epochs=2
    )
    images = opened(made)[0]
    record = resuming.decisive_settings(made, len(images), images.names, images.inventory)
    if begun_by == "0.1.0":
        del record["classes_sha256"], record["holds_out"]
    made.output.mkdir()
    (made.output / resuming.SETTINGS).write_text(json.dumps(record))
    again = str(photo_folder / "even" / "..")
    assert not compared(dataclasses.replace(made, classes=moved, held_out=again))
    with pytest.raises(AugSelfError, match="was started with classes_sha256 = "):
        compared(dataclasses.replace(made, classes=turned))
    with pytest.raises(AugSelfError, match="was started with holds_out = False, not True"):
        compared(dataclasses.replace(made, held_out=None))
    first.unlink()
    if begun_by == "0.1.0":  # nobody knows what it said
        with pytest.raises(AugSelfError, match=r"classes_sha256 = .*first\.txt, not"):
            compared(dataclasses.replace(made, classes=moved))
    else:
        assert not compared(dataclasses.replace(made, classes=moved))


@pytest.mark.parametrize("megabytes", [1, pytest.param(4.5, marks=pytest.mark.slow)])
def test_a_full_disk_keeps_the_last_good_checkpoint(run, megabytes, finished, assert_same_end):
    """A limit on the size of files makes every write beyond it fail, in a real file system."""
    names = {p: p.stat().st_size for p in (run.output / "checkpoint-6").iterdir()}
    assert max(names.values()) > megabytes * 1e6
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), hard))
    try:
        with pytest.raises(AugSelfError, match=r"checkpoint-8 cannot be saved .*: make room"):
            pretrain(run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in run.output.glob("[!.]*")) == [
        "checkpoint-4", "checkpoint-6", "settings.json",
    ]  # fmt: skip
    pretrain(run, resume=True)
    assert_same_end(run.output, finished(run))
