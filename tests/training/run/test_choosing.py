"""What is chosen where nothing was given, by hand; that a choice is kept; and the time foretold."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from augself_hub import pretrain
from augself_hub.augmentations.spec import Policy
from augself_hub.errors import AugSelfError
from training.data.batches import ViewsDataset
from training.data.sources import Images, open_images
from training.recipes import recipe
from training.run import choosing, pretraining
from training.run.choosing import Machine, choices, duration
from training.run.images import opened, views_of
from training.run.settings import CHOSEN, Settings, command_line, policy_of

TWO_CORES, GPU = Machine(2, False), Machine(16, True)
PHOTOGRAPHS = [(600, 800)]


@pytest.mark.parametrize(
    ("images", "sizes", "machine", "expected"),
    [
        (91, PHOTOGRAPHS, TWO_CORES, {"batch_size": 16, "epochs": 200, "size": 64, "workers": 1}),
        (285, PHOTOGRAPHS, TWO_CORES, {"batch_size": 64, "epochs": 70, "size": 64, "workers": 1}),
        (9000, PHOTOGRAPHS, TWO_CORES, {"batch_size": 256, "epochs": 10, "size": 64, "workers": 1}),
        (9000, PHOTOGRAPHS, GPU, {"batch_size": 256, "epochs": 200, "size": 96, "workers": 8}),
        (9000, PHOTOGRAPHS, Machine(1, False),
         {"batch_size": 256, "epochs": 10, "size": 64, "workers": 0}),
        (9000, PHOTOGRAPHS, Machine(32, False),
         {"batch_size": 256, "epochs": 36, "size": 96, "workers": 2}),
        (1797, [(32, 32)], TWO_CORES, {"batch_size": 256, "epochs": 11, "size": 32, "workers": 1}),
        (500, [(70, 99), (50, 80), (70, 90)], GPU,
         {"batch_size": 64, "epochs": 200, "size": 64, "workers": 8}),
        (20, [(20, 30)], TWO_CORES, {"batch_size": 16, "epochs": 200, "size": 32, "workers": 1}),
        (5, PHOTOGRAPHS, TWO_CORES, {"batch_size": 4, "epochs": 200, "size": 64, "workers": 1}),
    ],
)  # fmt: skip
def test_choices_by_hand(images, sizes, machine, expected):
    made = choices(CHOSEN, images, sizes, machine)
    assert {choice.name: choice.value for choice in made} == expected
    assert expected["batch_size"] <= images
    assert all(choice.reason for choice in made)


def test_a_batch_can_be_shared_out():
    """Three processes, each of which takes two parts of a batch one after the other."""
    (batch,) = choices(
        ["batch_size"], 9000, PHOTOGRAPHS, Machine(16, True, 3, 3), accumulation_steps=2
    )
    assert batch.value == 252 and batch.value % 6 == 0


def test_what_is_given_is_not_chosen():
    assert [c.name for c in choices({"size", "workers"}, 91, PHOTOGRAPHS, GPU)] == [
        "size", "workers",
    ]  # fmt: skip
    assert choices((), 91, PHOTOGRAPHS, GPU) == []


@pytest.fixture
def asked(monkeypatch):
    """The settings a run ends with, instead of the run."""
    made = []

    def stop(settings, *_):
        made.append(settings)
        raise AugSelfError("far enough")

    monkeypatch.setattr(pretraining, "_build", stop)
    monkeypatch.setattr(choosing, "machine", lambda: TWO_CORES)
    monkeypatch.setattr("training.run.choosing.usable_cores", lambda: 2)
    return made


def test_a_small_folder_is_told_what_was_chosen_and_why(asked, photo_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "training")
    with pytest.raises(AugSelfError, match="far enough"):
        pretrain(photo_folder, tmp_path / "run", epochs=3)
    (made,) = asked
    assert (made.batch_size, made.epochs, made.size, made.workers) == (16, 3, 64, 1)
    said = caplog.text
    assert "chosen for 38 images, each of them an option:" in said
    assert "--batch-size 16: a power of two that leaves 2 steps an epoch of 38 images" in said
    assert "--size 64: pixels, for 2 cores" in said and "--epochs" not in said


def test_a_recipe_s_settings_are_given(asked, photo_folder, tmp_path):
    with pytest.raises(AugSelfError, match="38 images are fewer than one batch of 128"):
        pretrain(photo_folder, tmp_path / "run", recipe="small-moco")
    with pytest.raises(AugSelfError, match="far enough"):
        pretrain(photo_folder, tmp_path / "run", recipe="quick")
    (made,) = asked
    assert (made.method, made.encoder, made.decode) == ("simclr", "resnet18-w24", "fast")
    assert (made.batch_size, made.epochs, made.workers) == (16, 200, 1)


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(20, 200), (96, 200), (500, 40), (5_000, 10), (50_000, 1.2), (500_000, 0.12)],
)
def test_quick_sees_no_more_of_many_images(images, epochs):
    """60,000 on two cores, at 9 ms of CPU each 270 s; without the recipe 10 epochs stay."""
    bounds = recipe("quick").bounds
    batch, quick = choices(["batch_size", "epochs"], images, PHOTOGRAPHS, TWO_CORES, bounds=bounds)
    assert batch.value <= 64  # at 256, a rate of 0.1, the heads diverged within 25 steps
    (usual,) = choices(["epochs"], images, PHOTOGRAPHS, TWO_CORES)
    assert quick.value == epochs and usual.value == max(10, epochs)
    assert quick.value * images <= 60_000


def test_quick_of_many_images_begins_with_a_part_of_an_epoch(
    asked, photo_folder, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "training")
    few = dataclasses.replace(recipe("quick"), bounds={"seen": 7})
    monkeypatch.setattr("training.recipes.recipe", lambda _: few)
    with pytest.raises(AugSelfError, match="far enough"):
        pretrain(photo_folder, tmp_path / "run", recipe="quick")
    assert asked[0].epochs == 0.37 and "at most 14 images seen on 2 cores" in caplog.text
    with pytest.raises(AugSelfError, match="far enough"):
        pretrain(photo_folder, tmp_path / "run", recipe="quick", epochs=7)
    assert asked[1].epochs == 7


def test_none_is_not_given(asked, photo_folder, tmp_path):
    with pytest.raises(AugSelfError, match="far enough"):
        pretrain(photo_folder, tmp_path / "run", epochs=None, batch_size=8, workers=None)
    assert (asked[0].epochs, asked[0].batch_size) == (200, 8)


def test_a_run_is_resumed_as_it_was_begun_on_another_machine(photo_folder, tmp_path, monkeypatch):
    """Begun on two cores, gone on with on sixteen and a GPU: nothing is chosen again."""
    given = {"encoder": "resnet18-w16", "report_to": (), "arguments": {"max_steps": 2}}
    monkeypatch.setattr(choosing, "machine", lambda: Machine(1, False))
    first = pretrain(photo_folder, tmp_path / "run", **given)
    before = json.loads((tmp_path / "run/settings.json").read_text())
    assert (before["batch_size"], before["size"]) == (16, 64)
    monkeypatch.setattr(choosing, "machine", lambda: Machine(16, True))
    more = {**given, "arguments": {"max_steps": 3}}
    assert pretrain(photo_folder, tmp_path / "run", resume=True, **more) == first
    command = (first / "README.md").read_text()
    assert "--batch-size 16" in command and "--size 64" in command


def test_the_command_of_a_run_names_what_may_be_chosen():
    made = Settings(data="photos", output="run")
    assert all(o in command_line(made) for o in ("--batch-size 256", "--epochs 200", "--size 96"))
    assert "--workers" not in command_line(made)


def test_the_estimate_changes_nothing_and_is_of_the_right_size(small_run, caplog):
    """A run with it is, weight by weight, the run without; and it takes about as long."""
    caplog.set_level(logging.INFO, "training")
    run = {"method": "moco", "method_options": {"width": 8, "queue": 24}, "monitor_every": 0,
           "epochs": 2.0}  # fmt: skip
    began = time.monotonic()
    told = pretraining.pretrain(small_run("told", **run), free=())
    taken = time.monotonic() - began
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("about ")]
    assert ": 8 steps of" in line
    foretold = float(line.split("steps of ")[1].split(" s")[0]) * 8
    assert 0 < foretold < 5 * taken
    untold = pretraining.pretrain(small_run("untold", **run))
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model.safetensors") for folder in (told, untold))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("device", "expected"), [("cuda", 24), ("cpu", 16)])
def test_the_estimate_computes_what_the_run_computes_at_a_time(
    small_run, photo_folder, monkeypatch, device, expected
):
    """A quarter of a batch here: the whole would not fit a GPU that accumulation was chosen for."""
    seen = []
    monkeypatch.setattr(choosing, "_compute", lambda _, items: seen.append(len(items)) or 0.5)
    args = SimpleNamespace(
        world_size=1, device=torch.device(device), per_device_train_batch_size=24,
        max_steps=2, num_train_epochs=1,
    )  # fmt: skip
    views = ViewsDataset(open_images(photo_folder), Policy(size=8), 0)
    trainer = SimpleNamespace(train_dataset=views, args=args, epoch_steps=1)
    assert "2 steps of" in choosing.estimate(trainer, small_run(batch_size=96, workers=2))
    assert seen == [expected]


def test_durations():
    assert [duration(s) for s in (0.2, 40, 125, 5400, 12600)] == [
        "1 seconds", "40 seconds", "2 minutes", "1.5 hours", "3.5 hours",
    ]  # fmt: skip


def test_sizes_are_read_off_headers(tmp_path):
    """A photograph that lies on its side has the size it is shown in."""
    image = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    images = open_images(tmp_path)
    assert [images.size(i) for i in (0, 1)] == [(40, 30), (30, 40)]
    for some in (images, images.at([1, 0])):
        for index in (0, 1):
            assert some.size(index) == some.read(index).size[::-1]


def test_large_jpegs_are_decoded_smaller_by_asking(tmp_path):
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "large.jpg")
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "large.png")
    images = open_images(tmp_path)
    smaller = images.decoded_smaller(165)
    assert smaller.read(0).size == (400, 300) and smaller.read(1).size == (1600, 1200)
    assert smaller.at([0]).read(0).size == (400, 300) and images.read(0).size == (1600, 1200)
    assert images.at([0]).decoded_smaller(600).read(0).size == (800, 600)


@pytest.mark.parametrize(
    ("ratio", "narrowest"), [((0.75, 4 / 3), 0.2 * 0.75), ((1, 4), 0.2 / 4), ((0.5, 0.8), 0.2 / 2)]
)
def test_they_are_no_smaller_than_the_narrowest_crop_needs(
    small_run, monkeypatch, ratio, narrowest
):
    """A fifth of a square, four times as wide as high, is 0.22 of its side high."""
    asked = []
    monkeypatch.setattr(Images, "decoded_smaller", lambda self, n: asked.append(n) or self)
    made = small_run(decode="fast", policy={"ratio": ratio}, size=64)
    views_of(made, policy_of(made), *opened(made))
    assert asked == [math.ceil(64 / math.sqrt(narrowest))]
