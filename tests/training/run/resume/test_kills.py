"""Nothing is lost: a run that was killed and resumed is, bit for bit, the run that was not.

A killed run is a forked child, so it costs no import; it dies by a real SIGKILL.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from augself_hub import cli
from augself_hub.errors import AugSelfError
from training.run import checkpoints, pretraining, trainer
from training.run.pretraining import pretrain
from training.run.settings import Settings

pytestmark = pytest.mark.forks
STEPS, EVERY = 12, 2  # those of `settings`
PUBLISH = pretraining._publish  # which `on_one_thread` leaves out


def forked(function: Callable[[], object]) -> int:
    """Start it in a child process; returns its id. An exception is exit status 1."""
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    except SystemExit as stopped:
        os._exit(stopped.code)
    except AugSelfError:
        os._exit(1)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(3)


def ended(child: int) -> int:
    """Its exit status; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_step(monkeypatch, step: int, run: Callable[[], object]) -> None:
    """Run it in a child that dies between the backward pass and the optimizer's step."""

    original = trainer._MethodSteps.on_pre_optimizer_step

    def before(self, args, state, control, **others):
        if state.global_step == step:
            die()
        original(self, args, state, control, **others)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._MethodSteps, "on_pre_optimizer_step", before)
        assert ended(forked(run)) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("method", "accumulation", "workers", "step"),
    [
        ("simsiam", 1, 0, 3),
        ("moco", 2, 2, 7),
        pytest.param("byol", 1, 0, 10, marks=pytest.mark.slow),
        pytest.param("swav", 1, 0, 5, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    settings, finished, assert_same_end, monkeypatch, method, accumulation, workers, step
):
    """In the middle of an epoch, between two saves, with accumulation and with workers."""
    broken = settings("broken", method, accumulation, workers=workers)
    killed_at_step(monkeypatch, step, lambda: pretrain(broken))
    left = checkpoints.newest_valid(broken.output)
    assert left.name == f"checkpoint-{step - step % EVERY}"
    pretrain(broken, resume=True)
    assert_same_end(broken.output, finished(broken))


@pytest.mark.parametrize(
    ("method", "step"), [("simclr", 7), pytest.param("moco", 3, marks=pytest.mark.slow)]
)
def test_so_does_one_with_a_joint_matcher(
    settings, finished, assert_same_end, monkeypatch, method, step
):
    """Its weights, its own optimizer's state and its statistics are in the checkpoint."""
    broken = settings("broken", method, matcher="joint", size=32, workers=1)
    killed_at_step(monkeypatch, step, lambda: pretrain(broken))
    pretrain(broken, resume=True)
    assert_same_end(broken.output, finished(broken))
    folder = broken.output / f"checkpoint-{STEPS}"
    state = torch.load(folder / "optimizer.pt")["matcher"]["state"]
    weights = load_file(folder / "model.safetensors")
    assert len(state) == len([n for n in weights if n.startswith("joint.matcher.")]) - 11  # buffers
    assert all(entry["step"] == STEPS for entry in state.values())
    assert weights["joint.steps"] == STEPS


def test_a_broken_number_of_epochs_resumes_in_the_right_one(
    settings, finished, assert_same_end, monkeypatch
):
    """2.25 epochs of 4 steps: a rounded count of steps per epoch would be 3."""
    broken = settings("broken", epochs=2.25)
    killed_at_step(monkeypatch, 7, lambda: pretrain(broken))
    pretrain(broken, resume=True)
    assert_same_end(broken.output, finished(broken), 9)


def half_of(save):
    def half(tensors, path, **kwargs):
        save(tensors, path, **kwargs)
        os.truncate(path, path.stat().st_size // 2)
        die()

    return half


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ((trainer, "save_file"), half_of),
        ((checkpoints, "_newest_first"), lambda _: die),
        pytest.param((checkpoints, "write_manifest"), lambda _: die, marks=pytest.mark.slow),
        pytest.param((checkpoints, "publish"), lambda _: die, marks=pytest.mark.slow),
    ],
)
def test_a_kill_inside_a_save_costs_one_interval(settings, monkeypatch, where, fault):
    """While the weights are written, after the rename; before the manifest, before the rename."""
    broken = settings("broken")
    original = getattr(*where)

    def at_the_third(*args, **kwargs):
        if len(list(broken.output.glob("checkpoint-*"))) == 2:
            return fault(original)(*args, **kwargs)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*where, at_the_third)
        assert ended(forked(lambda: pretrain(broken))) == -signal.SIGKILL
    newest = checkpoints.newest_valid(broken.output)
    # _newest_first lists them after the second one has its place
    assert newest.name == "checkpoint-4"
    pretrain(broken, resume=True)
    assert sorted(p.name for p in broken.output.glob("[!.]*")) == [
        "checkpoint-10", "checkpoint-12", "settings.json",
    ]  # fmt: skip


def arguments(made: Settings) -> list[str]:
    pairs = [f"--set={name}={value}" for name, value in made.arguments.items()]
    pairs += [f"--method-option={name}={value}" for name, value in made.method_options.items()]
    named = ("data", "output", "encoder", "size", "epochs", "batch_size", "workers")
    named += ("monitor_every",)
    options = [f"--{n.replace('_', '-')}={getattr(made, n)}" for n in named]
    return ["pretrain", "--report-to=none", *options, *pairs]


def wait_for(found: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not found():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_sigterm_saves_at_the_next_step_exits_with_0_and_resumes(
    settings, finished, assert_same_end
):
    stopped = settings("stopped", arguments={"save_steps": 500})
    at_work = stopped.output.parent / "at-work"

    def slow(*_, **__):  # so that the signal finds it at work
        at_work.touch()
        time.sleep(0.2)

    def command():
        trainer._MethodSteps.on_step_begin = slow
        cli.main(arguments(stopped))

    child = forked(command)
    wait_for(at_work.exists)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 0
    saved = checkpoints.newest_valid(stopped.output)
    assert 0 < int(saved.name.split("-")[1]) < STEPS
    pretrain(stopped, resume=True)
    assert_same_end(stopped.output, finished(stopped))


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ((pretraining, "opened"), None),
        ((trainer._MethodSteps, "on_optimizer_step"), STEPS),
        ((checkpoints, "publish"), STEPS),
        ((pretraining, "with_uncertainty"), STEPS),
        ((pretraining, "write_folder"), STEPS),
    ],
    ids=["images", "the last step", "the last save", "uncertainty", "the model folder"],
)
def test_sigterm_elsewhere_ends_a_run_that_can_be_resumed(
    settings, finished, assert_same_end, monkeypatch, where, left
):
    """Before the first step, in the last one, while it is saved, in what comes after it."""
    monkeypatch.setattr(pretraining, "_publish", PUBLISH)
    stopped = settings("stopped")
    original = getattr(*where)

    def meanwhile(*given, **options):
        state = given[2] if where[1] == "on_optimizer_step" else None
        saved = where[1] != "publish" or given[0].name == f"checkpoint-{STEPS}"
        if saved and (state is None or state.global_step == STEPS - 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*where, meanwhile)
        assert ended(forked(lambda: cli.main(arguments(stopped)))) == 0
    assert not (stopped.output / "model").exists()
    found = checkpoints.newest_valid(stopped.output)
    assert (found and found.name) == (left and f"checkpoint-{left}")
    pretrain(stopped, resume=True)
    assert (stopped.output / "model").is_dir()
    assert_same_end(stopped.output, finished(stopped))


@pytest.fixture
def campaign(settings, assert_same_end) -> Callable[[str, int, int], None]:
    """Kill at random moments until so many kills have hit; then let it end and compare."""
    return functools.partial(kill_at_random, settings, assert_same_end)


def kill_at_random(settings, assert_same_end, method: str, kills: int, seed: int) -> None:
    whole, broken = settings("whole", method), settings("broken", method)
    started = time.monotonic()
    assert ended(forked(lambda: pretrain(whole))) == 0
    duration = time.monotonic() - started
    moments, hits = random.Random(seed), 0
    while hits < kills:
        resume = begun(broken.output)
        before = newest_step(broken.output)
        child = forked(lambda again=resume: pretrain(broken, resume=again))
        time.sleep(moments.uniform(0.1, 0.8) * duration)
        os.kill(child, signal.SIGKILL)
        hits += ended(child) == -signal.SIGKILL
        assert newest_step(broken.output) >= before
        if newest_step(broken.output) == STEPS:
            assert_same_end(broken.output, whole.output)
            shutil.rmtree(broken.output)
    pretrain(broken, resume=begun(broken.output))
    assert_same_end(broken.output, whole.output)


def begun(output: Path) -> bool:
    """Whether there is a checkpoint to go on from; what has none is removed."""
    found = checkpoints.newest_valid(output) is not None
    if not found:
        shutil.rmtree(output, ignore_errors=True)
    return found


def newest_step(output: Path) -> int:
    newest = checkpoints.newest_valid(output)
    return int(newest.name.split("-")[1]) if newest else 0


def test_random_kills(campaign):
    campaign("simsiam", kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["simsiam", "moco"])
def test_thirty_random_kills(campaign, method):
    campaign(method, kills=30, seed=1)


def test_two_processes_do_not_train_in_one_folder(settings):
    """As when a cluster starts a run again before the first one is dead. Then it may."""
    run = settings("broken")
    run.output.mkdir(parents=True)
    here, there = os.pipe()

    def holds() -> None:
        held = checkpoints.hold(run.output)
        os.write(there, b"x")
        time.sleep(600)
        held.close()

    child = forked(holds)
    assert os.read(here, 1) == b"x"
    with pytest.raises(AugSelfError, match=r"another process trains in .*broken: wait for it"):
        pretrain(run, resume=True)
    assert [path.name for path in run.output.iterdir()] == [checkpoints.LOCK]
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    pretrain(run, resume=True)
    assert checkpoints.newest_valid(run.output).name == f"checkpoint-{STEPS}"
