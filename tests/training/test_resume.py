"""Nothing is lost: a run that was killed and resumed is, bit for bit, the run that was not.

A killed run is a forked child, so it costs no import; it dies by a real SIGKILL.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import resource
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
from training import checkpoints, pretraining, trainer
from training.methods import METHODS
from training.methods.byol import BYOL
from training.methods.moco import MoCo
from training.methods.simsiam import SimSiam
from training.methods.swav import SwAV
from training.pretraining import pretrain
from training.settings import Settings

pytestmark = pytest.mark.forks
STEPS, EVERY = 12, 2  # 19 of 20 images, batches of 4, 3 epochs; a checkpoint every 2 steps


class SmallSimSiam(SimSiam):
    def __init__(self, encoder):
        super().__init__(encoder, width=16, bottleneck=8)


class SmallMoCo(MoCo):
    """Its queue wraps in the middle of a batch."""

    def __init__(self, encoder):
        super().__init__(encoder, width=8, queue=18)


class SmallBYOL(BYOL):
    def __init__(self, encoder):
        super().__init__(encoder, hidden=16, width=8)


class SmallSwAV(SwAV):
    def __init__(self, encoder):
        super().__init__(encoder, hidden=16, width=8, prototypes=6)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small methods on one thread; the model folder is not what is tested here."""
    for small in (SmallSimSiam, SmallMoCo, SmallBYOL, SmallSwAV):
        monkeypatch.setitem(METHODS, small.__base__.__name__.lower(), small)
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(photo_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photo_folder.rglob("*.*"))[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def settings(photos, tmp_path) -> Callable[..., Settings]:
    def make(name: str, method: str = "simsiam", accumulation: int = 1, **others) -> Settings:
        arguments = {
            "save_steps": EVERY,
            "logging_steps": 5,
            "gradient_accumulation_steps": accumulation,
        }
        return Settings(
            **{
                "data": str(photos),
                "output": tmp_path / name,
                "method": method,
                "encoder": "resnet18-w16",
                "size": 16,
                "epochs": 3,
                "batch_size": 4,
                "workers": 0,
                "monitor_every": 1,
                "report_to": (),
                "arguments": arguments,
            }
            | others
        )

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Callable[[Settings], Path]:
    """The same run, uninterrupted; made once for all tests that compare with it."""
    done: dict[tuple, Path] = {}

    def run(made: Settings) -> Path:
        accumulation = made.arguments.get("gradient_accumulation_steps", 1)
        key = (made.method, made.epochs, accumulation)
        if key not in done:
            output = tmp_path_factory.mktemp("whole") / "run"
            pretrain(dataclasses.replace(made, output=output))
            done[key] = output
        return done[key]

    return run


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


def state(output: Path, step: int = STEPS) -> dict[str, object]:
    """Everything a run consists of after its last step."""
    folder = output / f"checkpoint-{step}"
    found = {name: torch.load(folder / name) for name in ("optimizer.pt", "scheduler.pt")}
    found["rng"] = torch.load(folder / "rng_state.pth", weights_only=False)
    found["weights"] = load_file(folder / "model.safetensors")
    trained = json.loads((folder / "trainer_state.json").read_text())
    found["monitor"] = [row for row in trained["log_history"] if "eval_crop_x" in row]
    assert len(found["monitor"]) == step // 4  # once an epoch
    found["progress"] = {name: trained[name] for name in ("global_step", "epoch", "max_steps")}
    return found


def assert_equal(a: object, b: object, at: str = "") -> None:
    """Bit for bit, whatever is nested in what."""
    assert type(a) is type(b), at
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_equal(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_equal(left, right, f"{at}/{index}")
    else:
        assert (a == b) if not hasattr(a, "all") else (a == b).all(), at


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
    settings, finished, monkeypatch, method, accumulation, workers, step
):
    """In the middle of an epoch, between two saves, with accumulation and with workers."""
    broken = settings("broken", method, accumulation, workers=workers)
    killed_at_step(monkeypatch, step, lambda: pretrain(broken))
    left = checkpoints.newest_valid(broken.output)
    assert left.name == f"checkpoint-{step - step % EVERY}"
    pretrain(broken, resume=True)
    assert_equal(state(broken.output), state(finished(broken)))


def test_a_broken_number_of_epochs_resumes_in_the_right_one(settings, finished, monkeypatch):
    """2.25 epochs of 4 steps: a rounded count of steps per epoch would be 3."""
    broken = settings("broken", epochs=2.25)
    killed_at_step(monkeypatch, 7, lambda: pretrain(broken))
    pretrain(broken, resume=True)
    assert_equal(state(broken.output, 9), state(finished(broken), 9))


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
    assert sorted(p.name for p in broken.output.iterdir()) == [
        "checkpoint-10", "checkpoint-12", "settings.json",
    ]  # fmt: skip


@pytest.fixture
def run(settings):
    """A run that was stopped at step 6, with checkpoints at 4 and 6; and how to go on."""
    made = settings("run")

    def stop(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._StopOnSigterm, "on_step_end", stop)
        pretrain(made)
    return made


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


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_replaced_and_never_outlives_a_good_one(run, finished):
    """Left in place it would count as the newest, and the good ones would be rotated away."""
    shutil.copytree(run.output / "checkpoint-6", run.output / "checkpoint-11")
    for name in ("checkpoint-6", "checkpoint-11"):
        flip(run.output / name / "model.safetensors")
    pretrain(run, resume=True)
    left = sorted(p.name for p in run.output.glob("checkpoint-*"))
    assert left == ["checkpoint-10", "checkpoint-12"]
    assert_equal(state(run.output), state(finished(run)))


def test_without_a_valid_checkpoint_a_resume_says_what_to_do(run):
    for folder in run.output.glob("checkpoint-*"):
        flip(folder / "scheduler.pt")
    with pytest.raises(AugSelfError, match=r"no valid checkpoint in .*: remove it and start"):
        pretrain(run, resume=True)


def test_a_finished_run_resumes_to_its_end(settings):
    made = settings("run")
    pretrain(made)
    before = state(made.output)
    assert pretrain(made, resume=True) == made.output / "model"
    assert_equal(state(made.output), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_lr": 0.05}, "base_lr = 0.03, not 0.05"),
        ({"augself": {"crop": 1.0}}, "augself = {'crop': 1.0, 'color': 1.0}, not {'crop': 1.0}"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"method": "byol"}, "method = simsiam, not byol"),
    ],
)
def test_other_settings_are_refused_by_name(run, change, said):
    with pytest.raises(AugSelfError, match=said.replace("{", r"\{").replace("}", r"\}")):
        pretrain(dataclasses.replace(run, **change), resume=True)


def test_other_images_are_refused(run, photos, tmp_path):
    data = tmp_path / "moved"
    shutil.copytree(photos, data)
    moved = dataclasses.replace(run, data=str(data), workers=1)
    pretraining._check_settings(moved, pretraining._datasets(moved, pretraining.Policy(16))[0])
    (data / "00.png").rename(data / "renamed.png")
    with pytest.raises(AugSelfError, match="was started with images_sha256 ="):
        pretrain(moved, resume=True)


@pytest.mark.parametrize("megabytes", [1, pytest.param(4.5, marks=pytest.mark.slow)])
def test_a_full_disk_keeps_the_last_good_checkpoint(run, megabytes, finished):
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
    assert sorted(p.name for p in run.output.iterdir()) == [
        "checkpoint-4", "checkpoint-6", "settings.json",
    ]  # fmt: skip
    pretrain(run, resume=True)
    assert_equal(state(run.output), state(finished(run)))


def arguments(made: Settings, *more: str) -> list[str]:
    pairs = [f"--set={name}={value}" for name, value in made.arguments.items()]
    named = ("data", "output", "encoder", "size", "epochs", "batch_size", "workers")
    options = [f"--{n.replace('_', '-')}={getattr(made, n)}" for n in named]
    return ["pretrain", *options, *pairs, *more]


def wait_for(found: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not found():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_sigterm_saves_at_the_next_step_exits_with_0_and_resumes(settings, finished):
    stopped = settings("stopped", arguments={"save_steps": 500})
    begun = stopped.output.parent / "begun"

    def slow(*_, **__):  # so that the signal finds it at work
        begun.touch()
        time.sleep(0.2)

    def command():
        trainer._MethodSteps.on_step_begin = slow
        cli.main(arguments(stopped))

    child = forked(command)
    wait_for(begun.exists)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 0
    saved = checkpoints.newest_valid(stopped.output)
    assert 0 < int(saved.name.split("-")[1]) < STEPS
    pretrain(stopped, resume=True)
    assert_equal(state(stopped.output), state(finished(stopped)))


def campaign(settings, method: str, kills: int, seed: int) -> None:
    """Kill at random moments until `kills` have hit; then let it end and compare."""
    whole, broken = settings("whole", method), settings("broken", method)
    started = time.monotonic()
    assert ended(forked(lambda: pretrain(whole))) == 0
    duration = time.monotonic() - started
    moments, hits = random.Random(seed), 0
    while hits < kills:
        resume = checkpoints.newest_valid(broken.output) is not None
        if not resume:
            shutil.rmtree(broken.output, ignore_errors=True)
        before = newest_step(broken.output)
        child = forked(lambda again=resume: pretrain(broken, resume=again))
        time.sleep(moments.uniform(0.1, 0.8) * duration)
        os.kill(child, signal.SIGKILL)
        hits += ended(child) == -signal.SIGKILL
        assert newest_step(broken.output) >= before
        if newest_step(broken.output) == STEPS:
            assert_equal(state(broken.output), state(whole.output))
            shutil.rmtree(broken.output)
    resume = checkpoints.newest_valid(broken.output) is not None
    if not resume:
        shutil.rmtree(broken.output, ignore_errors=True)
    pretrain(broken, resume=resume)
    assert_equal(state(broken.output), state(whole.output))


def newest_step(output: Path) -> int:
    newest = checkpoints.newest_valid(output)
    return int(newest.name.split("-")[1]) if newest else 0


def test_random_kills(settings):
    campaign(settings, "simsiam", kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["simsiam", "moco"])
def test_thirty_random_kills(settings, method):
    campaign(settings, method, kills=30, seed=1)
