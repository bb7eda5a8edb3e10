"""Two processes are one process: losses, gradients, views, and a run started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from augself_hub import folder
from augself_hub.augmentations.spec import Policy
from training.data.batches import KeyedSampler, ViewsDataset, collate
from training.data.sources import open_images
from training.run.checkpoints import newest_valid

SCRIPT = Path(__file__).with_name("two_processes.py")


def torchrun(*command, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(processes), *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_loss_and_gradients_of_two_processes_equal_one_on_the_whole_batch():
    process = torchrun(SCRIPT, 2)
    assert process.returncode == 0, process.stderr
    checks = ["simclr", "swav", "moco", "augself", "nothing_to_see_anywhere", "joint", "union"]
    assert process.stdout.split() == [word for name in checks for word in ("passed", name)]


@pytest.fixture(scope="module")
def dataset(photo_folder):
    return ViewsDataset(open_images(photo_folder), Policy(size=16), seed=3)


def views(dataset, epoch, workers, processes):
    """(epoch, index) -> everything drawn for it, as the given workers and processes make it."""
    made = {}
    for process in range(processes):
        sampler = KeyedSampler(len(dataset), seed=3)
        sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, batch_size=8 // processes, drop_last=True)
        share = BatchSamplerShard(batches, processes, process)
        loader = DataLoader(
            dataset, batch_sampler=share, num_workers=workers, collate_fn=lambda items: items
        )
        for keys, items in zip(list(share), loader, strict=True):
            made |= dict(zip(keys, items, strict=True))
    return made


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (4, 1), (0, 2), (4, 2)])
def test_views_do_not_depend_on_workers_and_processes(dataset, workers, processes):
    """Nor on how many are asked for at once: each is what it is when it is asked for alone."""
    got = views(dataset, 5, workers, processes)
    assert len(got) == 40
    for key in got:
        item = dataset[key]
        assert (got[key]["crops"] == item["crops"]).all()
        for view in ("w1", "w2"):
            assert all((got[key][view][n] == v).all() for n, v in item[view].items())


def test_two_processes_share_the_batch_of_one(dataset):
    """The images of each step are the same ones."""
    steps = []
    for processes in (1, 2):
        batches = BatchSampler(KeyedSampler(40, seed=3), batch_size=8 // processes, drop_last=True)
        shares = [list(BatchSamplerShard(batches, processes, r)) for r in range(processes)]
        steps.append([sorted(k for share in step for k in share) for step in zip(*shares)])  # noqa: B905
    assert steps[0] == steps[1]


def test_other_epochs_and_seeds_are_other_views(dataset):
    first, later = collate([dataset[0, 7]]), collate([dataset[1, 7]])
    assert not torch.equal(first["w1"]["crop"], later["w1"]["crop"])
    other = ViewsDataset(dataset.images, dataset.policy, seed=4)
    assert not torch.equal(first["w1"]["crop"], collate([other[0, 7]])["w1"]["crop"])


def test_a_run_of_two_processes_writes_one_model(photo_folder, tmp_path):
    """By the command; its graphs, which one process exports as ever, are left out."""
    output, program = tmp_path / "run", tmp_path / "without_graphs.py"
    program.write_text(
        "from augself_hub.cli import main\nfrom training.run import publishing\n"
        "publishing.find_spec = lambda name: None\nmain()\n"
    )
    process = torchrun(
        *(program, "pretrain", "--data", photo_folder, "--output", output),
        *("--method", "swav", "--encoder", "resnet18-w16", "--size", 32, "--batch-size", 8),
        *("--epochs", 2, "--workers", 0, "--base-lr", 0.32, "--set", "logging_steps=1"),
        *("--matcher", "joint"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("wrote") == 1
    model = folder.verify(output / "model")
    assert folder.read_spec(model).matcher is not None
    history = json.loads((model / "training_log.json").read_text())
    rates = [row["learning_rate"] for row in history if "loss" in row]
    assert len(rates) == 8  # 38 images of 40 are trained on, 8 a step, twice
    assert rates[0] == pytest.approx(0.32 * 8 / 256)  # of all processes together
    assert json.loads((output / "settings.json").read_text())["processes"] == 2
    checkpoint = output / "checkpoint-8"
    names = {"rng_state_0.pth", "rng_state_1.pth", "manifest.json", "optimizer.pt"}
    assert names <= {path.name for path in checkpoint.iterdir()}


@pytest.mark.slow
def test_two_processes_stop_together_on_sigterm_and_resume(photo_folder, tmp_path):
    output = tmp_path / "run"
    command = [
        *("-m", "augself_hub.cli", "pretrain", "--data", photo_folder, "--output", output),
        *("--encoder", "resnet18-w16", "--size", "16", "--batch-size", "8", "--epochs", "20"),
        *("--workers", "0", "--set", "save_steps=1000", "--report-to", "none"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    running = subprocess.Popen([*launcher, *map(str, command)])
    while not (output / "settings.json").exists():
        assert running.poll() is None
        time.sleep(0.1)
    time.sleep(4)
    running.terminate()
    running.wait(timeout=60)
    saved = newest_valid(output)
    assert 0 < int(saved.name.split("-")[1]) < 80
    process = torchrun(*command, "--resume")
    assert process.returncode == 0, process.stderr
    assert folder.verify(output / "model")
