"""--push-to-hub, by the real client against a Hub on this machine, and who gets the log."""

from __future__ import annotations

import json
from functools import partial

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from augself_hub import hub
from augself_hub.errors import AugSelfError, HubError, UsageError
from augself_hub.folder import verify
from training.run import pretraining, trainer
from training.run.pretraining import pretrain

NAME = "somebody/trained"


@pytest.fixture
def made(small_run):
    arguments = {"logging_steps": 1, "save_strategy": "no"}
    return partial(small_run, epochs=1, monitor_every=0.5, arguments=arguments)


def test_a_run_is_published_in_one_commit(made, local_hub):
    folder = pretrain(made(push_to_hub=NAME, private=True))
    repository = local_hub.repositories[NAME]
    assert repository.private
    assert len(local_hub.asked("/commit/")) == 1
    there = set(local_hub.files(NAME)) - {".gitattributes"}
    assert there == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    card = local_hub.files(NAME)["README.md"].decode()
    assert f"--push-to-hub {NAME} --private" in card


def test_who_may_not_write_is_told_before_the_training(made, local_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_may_read")
    monkeypatch.setattr(trainer.AugSelfTrainer, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(HubError, match=f"{NAME}: your token has no right to this"):
        pretrain(made(push_to_hub=NAME))
    assert not (tmp_path / "run").exists()


def test_a_push_that_fails_leaves_the_model_and_says_how_to_try_again(made, local_hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    local_hub.trouble.append(["/commit/", 503, 99])
    settings = made(push_to_hub=NAME)
    folder = settings.output / "model"
    with pytest.raises(AugSelfError) as failed:
        pretrain(settings)
    assert "the Hub is busy (503)" in str(failed.value)
    assert str(failed.value).endswith(f"augself push {folder} {NAME}")
    local_hub.trouble.clear()
    hub.push(verify(folder), NAME)
    assert "model.safetensors" in local_hub.files(NAME)


def test_tensorboard_gets_losses_and_the_monitor_s_figures(made, monkeypatch):
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    settings = made(report_to=("tensorboard",))
    pretrain(settings)
    (events,) = settings.output.glob("runs/*/events.out.tfevents*")
    log = EventAccumulator(str(events))
    log.Reload()
    assert len(log.Scalars("train/crop")) == 4
    assert [point.step for point in log.Scalars("eval/feature_std")] == [2, 4]
    assert {"train/loss", "eval/crop_x", "eval/color_hue", "eval/knn"} <= set(log.Tags()["scalars"])


def test_nobody_gets_the_log_where_none_was_asked(made, monkeypatch):
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    settings = made()
    pretrain(settings)
    assert [p.name for p in settings.output.glob("[!.]*")] == ["settings.json"]
    assert json.loads((settings.output / "settings.json").read_text())["report_to"] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "unknown reporter 'tensorbord': use none, .*tensorboard"),
        ("swanlab", "--report-to swanlab: its package is not installed"),
    ],
)
def test_a_reporter_that_cannot_be_had_is_refused_by_name(made, tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        pretrain(made(report_to=("tensorboard", name)))
    assert not (tmp_path / "run").exists()
