"""Training over nodes: two torchruns on one machine are two nodes that share a folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from augself_hub import folder
from augself_hub.errors import AugSelfError
from training.run import checkpoints
from training.run.resuming import checkpoint_of
from training.run.settings import Settings

FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/pretraining.md says why
STEPS, EVERY = 40, 4  # 38 images, 8 a step, 10 epochs; a checkpoint every 4 steps


def pretrain(photos: Path, output: Path) -> list[str]:
    """The command that every node gets, the first time and after every restart."""
    options = {
        "data": photos,
        "output": output,
        "encoder": "resnet18-w16",
        "size": 16,
        "epochs": 10,
        "batch-size": 8,
        "workers": 0,
        "monitor-every": 0,
        "report-to": "none",
        "set": f"save_steps={EVERY}",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return ["-m", "augself_hub.cli", "pretrain", "--resume", *words]


def node(port: int, command: list[str], restarts: int = 0) -> subprocess.Popen[str]:
    """One of two nodes; whoever comes first keeps the rendezvous."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=run"]
    launcher += [f"--max-restarts={restarts}", "--local-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **FRESH_STORE}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*launcher, *command], env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def ended(nodes: list[subprocess.Popen[str]], status: int) -> str:
    """What they printed, all of them, once each has ended with this status."""
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [status, status], "\n".join(printed)
    return "\n".join(printed)


def state(output: Path) -> dict[str, torch.Tensor]:
    """Weights and momentum after the last step."""
    saved = output / f"checkpoint-{STEPS}"
    momentum = torch.load(saved / "optimizer.pt")["state"]
    named = {f"momentum {n}": kept["momentum_buffer"] for n, kept in momentum.items()}
    return named | load_file(saved / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_costs_one_interval_and_changes_nothing(photo_folder, tmp_path):
    """Both nodes go on from the newest valid checkpoint, by themselves, to the same weights."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    port = free_port()
    printed = ended([node(port, pretrain(photo_folder, whole)) for _ in range(2)], 0)
    assert printed.count("wrote") == 1 and folder.verify(whole / "model")
    port = free_port()
    nodes = [node(port, pretrain(photo_folder, broken), restarts=2) for _ in range(2)]
    wait_for(nodes, broken / f"checkpoint-{2 * EVERY}")
    [worker] = children(nodes[1])
    os.kill(worker, signal.SIGKILL)
    assert int(checkpoints.newest_valid(broken).name.split("-")[1]) < STEPS
    ended(nodes, 0)
    assert folder.verify(broken / "model")
    before, after = state(whole), state(broken)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def wait_for(nodes: list[subprocess.Popen[str]], path: Path) -> None:
    while not path.exists():
        assert [node.poll() for node in nodes] == [None, None]
        time.sleep(0.005)


def children(process: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(number) for path in found for number in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_that_do_not_share_the_output_are_refused(photo_folder, tmp_path):
    """Else the checkpoints would lack what the second node has to say, found out at a resume."""
    port = free_port()
    outputs = (tmp_path / "here", tmp_path / "there")
    nodes = [node(port, pretrain(photo_folder, output)) for output in outputs]
    printed = ended(nodes, 1)
    assert "is not the folder that the first process writes: put --output on a file" in printed


@pytest.fixture
def run(tmp_path):
    return Settings(data="photos", output=tmp_path / "run")


def test_a_resume_begins_what_has_not_begun(run, caplog):
    """Before the folder, before the settings and before the first checkpoint."""
    with caplog.at_level("INFO", "training"):
        assert checkpoint_of(run, resume=True) is None
    assert f"nothing to continue in {run.output}: the run begins" in caplog.text
    run.output.mkdir()
    (run.output / ".settings.json.new").write_text("{")
    assert checkpoint_of(run, resume=True) is None
    (run.output / "settings.json").write_text("{}")
    assert checkpoint_of(run, resume=True) is None
    with pytest.raises(AugSelfError, match="exists: choose another --output, or continue with"):
        checkpoint_of(run, resume=False)


def test_a_resume_leaves_a_folder_of_something_else_alone(run):
    run.output.mkdir()
    (run.output / "photograph.jpg").write_text("x")
    with pytest.raises(AugSelfError, match="exists and is no run: choose another --output"):
        checkpoint_of(run, resume=True)
