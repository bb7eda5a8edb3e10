"""A run of one step or more ends with a model, its curves and its card, wherever it is started."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import threading
import time
from collections import namedtuple

import pytest
import torch

from augself_hub.errors import AugSelfError, Diverged, UsageError
from augself_hub.folder import read_spec, verify
from training.methods.simsiam import SimSiam
from training.run import disk, pretraining
from training.run.arguments import set_intervals, training_arguments
from training.run.checkpoints import newest_valid
from training.run.pretraining import measured_pairs, pretrain

BATCHES = 4  # of 8 in the 38 images that are trained on


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"epochs": 0.01}, 1),
        ({"epochs": 0.5}, 2),
        ({"epochs": 1, "arguments": {"logging_strategy": "no"}}, 4),
        ({"epochs": 9, "arguments": {"max_steps": 2}}, 2),
        ({"epochs": 1, "augself": {}, "arguments": {"max_steps": 1}}, 1),
        ({"epochs": 0.5, "monitor_every": 0, "arguments": {"save_strategy": "no"}}, 2),
        ({"epochs": 0.5, "arguments": {"logging_strategy": "epoch"}}, 2),
    ],
)
def test_a_short_run_ends_with_a_model(small_run, capsys, change, steps):
    folder = verify(pretrain(small_run(**change)))
    assert read_spec(folder).provenance["steps"] == steps
    assert (folder / "curves.png").stat().st_size > 1000
    history = json.loads((folder / "training_log.json").read_text())
    assert [row["step"] for row in history if "loss" in row][-1] == steps
    assert "# " in (folder / "README.md").read_text()
    said = capsys.readouterr().out
    for stage in ("measuring 40 pairs of 2 held-out images", "writing weights, log and curves"):
        assert re.search(rf"{stage} \.\.\.\n{stage}: \d+\.\d s\n", said)


def test_held_out_images_are_told_and_kept_as_the_others_are(
    small_run, photo_folder, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    held = shutil.copytree(photo_folder, tmp_path / "held")
    (held / "notes.txt").write_text("no image")
    caplog.set_level("INFO")
    made = small_run(epochs=0.25, held_out=str(held))
    pretrain(made)
    assert f"{held} (folder): 40 images" in caplog.text
    kept = json.loads((made.output / "settings.json").read_text())
    assert kept["held_out_inventory"]["left_out"] == {".txt files": 1}
    assert kept["held_out_inventory"]["images"] == kept["inventory"]["images"] == 40
    (held / "more.txt").write_text("no image")
    pretrain(made, resume=True)  # which decides nothing


def test_pairs_are_in_proportion_to_the_held_out_images():
    """A pair takes some 15 ms of two cores: 2,000 of two pictures were half a minute."""
    assert [measured_pairs(n) for n in (0, 1, 2, 50, 500)] == [0, 0, 40, 1000, 2000]


def test_a_folder_that_is_too_small_to_hold_out_is_trained_on_without_pairs(
    small_run, photo_folder, tmp_path
):
    data = tmp_path / "few"
    data.mkdir()
    for path in sorted(photo_folder.rglob("*.*"))[:12]:
        shutil.copy(path, data)
    folder = pretrain(small_run(data=str(data), epochs=2))
    assert json.loads((folder / "evaluation.json").read_text())["results"] == []


def test_a_run_goes_on_in_a_thread_and_leaves_signals_alone(small_run, monkeypatch):
    """As in a notebook server, a Ray actor or any service: no signal handler can be set there."""
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    before, ended = signal.getsignal(signal.SIGTERM), []
    made = small_run(epochs=0.5)
    thread = threading.Thread(target=lambda: ended.append(pretrain(made)))
    thread.start()
    thread.join()
    assert ended == [made.output / "model"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda *_: None])
def test_the_handler_of_before_comes_back_however_a_run_ends(small_run, monkeypatch, handler):
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    outside = signal.signal(signal.SIGTERM, handler)
    try:
        pretrain(small_run("whole", epochs=0.25))
        assert signal.getsignal(signal.SIGTERM) is handler
        monkeypatch.setattr(SimSiam, "forward", broken)
        with pytest.raises(ZeroDivisionError):
            pretrain(small_run("broken", epochs=0.25))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, outside)


def broken(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (1, r"from step 1 on \(method first\): no rate is at fault, .* weights of --encoder"),
        (3, r"from step 3 on \(method first\): lower --base-lr or the weights in --augself"),
    ],
)
def test_a_loss_that_is_no_number_is_not_always_the_rate_s_fault(small_run, monkeypatch, bad, said):
    original, calls = SimSiam.forward, []

    def forward(self, x1, x2):
        calls.append(1)
        loss, y1, y2 = original(self, x1, x2)
        return type(original(self, x1, x2))(loss * (torch.nan if len(calls) == bad else 1), y1, y2)

    monkeypatch.setattr(SimSiam, "forward", forward)
    with pytest.raises(Diverged, match=said):
        pretrain(small_run(epochs=1))


def test_the_monitor_s_heads_are_named_before_the_loss(small_run, monkeypatch):
    original = torch.nn.functional.binary_cross_entropy_with_logits

    def broken(*arguments):
        return original(*arguments) * torch.nan

    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", broken)
    with pytest.raises(Diverged, match=r"\(flip first\): no rate is at fault"):
        pretrain(small_run(epochs=1, augself={"crop": 1, "flip": 1}))


@pytest.fixture
def extended(small_run, monkeypatch, caplog):
    """A finished run of one epoch, gone on with to two: what was made, said and its rates."""
    first = small_run(epochs=1, base_lr=0.64, arguments={"logging_steps": 1})
    pretrain(first)
    longer = small_run(
        epochs=2, base_lr=0.64, arguments={"logging_steps": 2, "save_steps": 3}, workers=1
    )
    with caplog.at_level(logging.WARNING, logger="training"):
        folder = pretrain(longer, resume=True)
    return folder, caplog.text, json.loads((folder / "training_log.json").read_text())


def test_a_finished_run_is_extended_on_the_longer_schedule(extended, small_run):
    folder, said, history = extended
    assert "epochs is extended from 1 to 2: from here on the learning rate is that of" in said
    rows = {row["step"]: row["learning_rate"] for row in history if "loss" in row}
    assert list(rows) == [1, 2, 3, 4, 6, 8]  # a log every two steps from the resume on
    lr = 0.64 * 8 / 256
    for step in (1, 2, 3, 4, 6, 8):  # transformers logs the rate of the step that was made
        total = 4 if step <= 4 else 8
        expected = lr * (1 + torch.cos(torch.tensor(torch.pi * (step - 1) / total)).item()) / 2
        assert rows[step] == pytest.approx(expected, rel=1e-5)
    spec = read_spec(verify(folder))
    assert spec.provenance["steps"] == 8
    assert "--epochs 2" in spec.provenance["command"]
    assert read_spec(verify(folder.with_name("model-4"))).provenance["steps"] == 4
    assert newest_valid(folder.parent).name == "checkpoint-8"
    with pytest.raises(AugSelfError, match=r"the run has ended: remove it .* or go on with more"):
        pretrain(small_run(epochs=2, base_lr=0.64, workers=0), resume=True)
    with pytest.raises(AugSelfError, match=r"epochs = 2.0, not 1.0: resume it with that or more"):
        pretrain(small_run(epochs=1, base_lr=0.64), resume=True)


def test_seconds_are_those_of_all_starts(small_run, monkeypatch):
    def slow(self, args, state, control, **_):
        time.sleep(0.25)
        if state.global_step == 2 and not again:
            control.should_save = control.should_training_stop = True
            self.trainer.interrupted = True

    again = False
    monkeypatch.setattr("training.run.trainer._StopOnSigterm.on_step_end", slow)
    made = small_run(epochs=1)
    assert pretrain(made) == made.output
    again = True
    provenance = read_spec(pretrain(made, resume=True)).provenance
    assert provenance["seconds"] >= 1  # of 2 and of 2 steps of a quarter of a second each
    assert provenance["cpu_seconds"] >= 0


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_for_the_run_is_said_before_it_begins(small_run, monkeypatch):
    made = small_run(epochs=1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(0, 0, 1_000_000))
    with pytest.raises(AugSelfError, match=r"take 0\.\d\d GB and .* has 0.00 GB: make room"):
        pretrain(made)
    assert not made.output.exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_room_a_run_needs_is_what_its_checkpoints_take(small_run, monkeypatch, optimizer):
    models = []
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: models.append(t.model))
    made = small_run(epochs=0.5, optimizer=optimizer, arguments={"save_steps": 1})
    pretrain(made)
    arguments = training_arguments(made)
    set_intervals(arguments, made, BATCHES)
    taken = sum(p.stat().st_size for p in made.output.glob("checkpoint-*/*")) / 2  # for one
    arguments.save_strategy = "no"
    model = disk.bytes_of_a_run(made, arguments, models[0])
    arguments.save_strategy = "steps"
    whole = disk.bytes_of_a_run(made, arguments, models[0])
    assert (whole - model) / 3 == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup_epochs": 1, "epochs": 2, "arguments": {"max_steps": 3}}, "--set max_steps=3"),
        ({"warmup_epochs": 0.9, "epochs": 1}, "--epochs 1, which are 4"),  # 3.6 of 4 steps
    ],
)
def test_warm_up_that_is_longer_than_the_run_is_refused(small_run, given, said):
    with pytest.raises(UsageError, match=f"are 4 steps and leave nothing of {said}: give fewer"):
        pretrain(small_run(**given))
