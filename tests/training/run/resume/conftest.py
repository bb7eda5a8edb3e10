"""Runs to stop and resume: a checkpoint every two of their twelve steps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.run import pretraining, trainer
from training.run.pretraining import pretrain
from training.run.settings import Settings

STEPS, EVERY = 12, 2  # 19 of 20 images, batches of 4, 3 epochs


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model folder is not what is tested here."""
    monkeypatch.setattr(pretraining, "_publish", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photo_folder.rglob("*.*"))[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def settings(
    photos: Path, small_run: Callable[..., Settings], small_options: dict[str, dict[str, int]]
) -> Callable[..., Settings]:
    """Of a small run of a method; MoCo's queue wraps in the middle of a batch."""
    options = {**small_options, "moco": {**small_options["moco"], "queue": 18}}

    def make(name: str, method: str = "simsiam", accumulation: int = 1, **others: Any) -> Settings:
        given = {
            "data": str(photos),
            "method": method,
            "method_options": options[method],
            "epochs": 3,
            "batch_size": 4,
            "monitor_every": 1,
            "arguments": {
                "save_steps": EVERY,
                "logging_steps": 5,
                "gradient_accumulation_steps": accumulation,
            },
        }
        return small_run(name, **given | others)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Settings], Path]:
    """The same run, uninterrupted; made once for all tests that compare with it."""
    done: dict[tuple, Path] = {}

    def run(made: Settings) -> Path:
        accumulation = made.arguments.get("gradient_accumulation_steps", 1)
        key = (made.method, made.epochs, accumulation, made.matcher)
        if key not in done:
            output = tmp_path_factory.mktemp("whole") / "run"
            pretrain(dataclasses.replace(made, output=output))
            done[key] = output
        return done[key]

    return run


@pytest.fixture
def run(settings: Callable[..., Settings]) -> Settings:
    """A run that was stopped at step 6, with checkpoints at 4 and 6; and how to go on."""
    made = settings("run")

    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._StopOnSigterm, "on_step_end", stop)
        pretrain(made)
    return made


@pytest.fixture
def assert_same_end() -> Callable[..., None]:
    """Asserts that two runs are the same after their last step, bit for bit."""

    def check(output: Path, other: Path, step: int = STEPS) -> None:
        assert_equal(state(output, step), state(other, step))

    return check


def state(output: Path, step: int) -> dict[str, object]:
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
