"""What is no plain checkpoint is refused, and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile

import pytest
import torch
from checkpoints import official_heads, torchvision_resnet

from augself_hub.errors import CheckpointError
from augself_hub.modeling.checkpoint import read_checkpoint
from augself_hub.modeling.convert import convert


class Bomb:
    """Runs a command where it is unpickled without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def bomb(path):
    torch.save({"backbone": Bomb(f"touch {path.parent / 'ran'}")}, path)


def pickle_bomb(path):
    content = {"conv1.weight": Bomb(f"touch {path.parent / 'ran'}")}
    path.write_bytes(pickle.dumps(content, protocol=2))


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)


def zip_with_a_member_outside(path):
    buffer = io.BytesIO()
    torch.save({}, buffer)
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../outside", b"x")


def stride_bomb(path):
    state = torchvision_resnet().state_dict()
    state["conv1.weight"] = torch.zeros(1).expand(10**9, 3, 7, 7)
    torch.save(state, path)


def wide_bomb(path):
    """Small tensors whose shapes describe a network of terabytes."""
    state = torchvision_resnet().state_dict()
    for layer in (3, 4):
        state[f"layer{layer}.0.conv2.weight"] = torch.zeros(10**6, 1, 1, 1)
    torch.save(state, path)


def a_folder(path):
    path.mkdir()


def truncated(path):
    torch.save(torchvision_resnet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path):
    """One bit of one weight."""
    state = torchvision_resnet().state_dict()
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[data.index(state["layer2.0.conv1.weight"].numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(data)


def changed_state(**changes):
    def save(path):
        state = torchvision_resnet().state_dict()
        for name, value in changes.items():
            state.pop(name, None)
            if value is not None:
                state[name] = value
        torch.save(state, path)

    return save


def official(**changes):
    def save(path):
        torch.save({"backbone": torchvision_resnet().state_dict(), **changes}, path)

    return save


def head_state(kind, **changes):
    return official_heads(512, kind)[kind].state_dict() | changes


REFUSED = {
    "no file": (lambda path: None, "is not a file"),
    "a folder": (a_folder, "is not a file"),
    "a named pipe": (os.mkfifo, "is not a file"),
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read"),
    "no checkpoint": (lambda path: path.write_text("weights"), "cannot be read"),
    "a bomb": (bomb, "more than tensors"),
    "an old bomb": (pickle_bomb, "more than tensors"),
    "a whole network": (lambda path: torch.save(torchvision_resnet(), path), "more than tensors"),
    "a zip bomb": (zip_bomb, "unpacks to 5"),
    "a member outside": (zip_with_a_member_outside, "a member outside itself"),
    "a stride of 0": (stride_bomb, "more than it has"),
    "shapes of terabytes": (wide_bomb, r"expected \(1000000, 128, 1, 1\)"),
    "truncated": (truncated, "cannot be read"),
    "flipped": (flipped, "is damaged in 'checkpoint/data/"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor"),
    "a list": (lambda path: torch.save({"backbone": [1]}, path), "a list where a state dict"),
    "a number": (changed_state(**{"conv1.weight": 3}), "a int at 'conv1.weight'"),
    "sparse": (changed_state(**{"bn1.bias": torch.zeros(64).to_sparse()}), "no plain dense"),
    "another architecture": (
        lambda path: torch.save({"cls_token": torch.zeros(1)}, path), r"only cls_token .* \(a ViT\)"
    ),
    "a 3x3 stem": (
        changed_state(**{"conv1.weight": torch.zeros(64, 3, 3, 3)}), "conv1 is 3 x 3 .*3 x 3 stem"
    ),
    "gray images": (changed_state(**{"conv1.weight": torch.zeros(64, 1, 7, 7)}), "on 1 channels"),
    "a missing weight": (changed_state(**{"bn1.bias": None}), r"weight bn1\.bias is missing"),
    "a foreign weight": (
        changed_state(**{"layer1.0.se.weight": torch.zeros(3)}), r"layer1\.0\.se\.weight. has no"
    ),
    "a wide block": (
        changed_state(**{"layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}),
        r"layer1\.0\.conv1\.weight is \(128, 64, 3, 3\), expected \(64, 64, 3, 3\)",
    ),
    "an unknown head": (official(ss_predictor={"cutout": {}}), "unknown kind 'cutout'"),
    "heads in a list": (official(ss_predictor=[]), "no dictionary of heads"),
    "an empty head": (official(ss_predictor={"crop": {}}), "'crop' does not begin with"),
    "a head of another encoder": (
        official(ss_predictor={"crop": head_state("crop", **{"0.weight": torch.zeros(24, 64)})}),
        r"crop\.0\.weight is \(24, 64\), expected \(24, 1024\)",
    ),
    "a longer head": (
        official(ss_predictor={"blur": head_state("blur", **{"8.weight": torch.zeros(3)})}),
        r"'blur\.8\.weight' has no place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_checkpoint_is_refused_and_nothing_written(case, tmp_path):
    write, reason = REFUSED[case]
    path = tmp_path / "checkpoint.pth"
    write(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=reason) as caught:
        convert(path, "stl10", tmp_path / "model")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_safetensors_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(tmp_path / "a.safetensors", "stl10", tmp_path / "model")


def test_a_refusal_is_one_line_that_names_the_file(tmp_path, augself):
    bomb(tmp_path / "a.pth")
    run = augself("convert", tmp_path / "a.pth", "--pretrain-data", "stl10", "--output", "model")
    assert run.status == 1 and run.err.count("\n") == 1 and "a.pth" in run.err
    assert not (tmp_path / "ran").exists()


def bytearray_of(count: int) -> bytes:
    return b"\x80\x02cbuiltins\nbytearray\n" + pickle.dumps(count, 2)[2:-1] + b"\x85R."


@pytest.mark.parametrize("archive", [False, True])
def test_a_number_of_a_file_is_no_memory(tmp_path, archive):
    """torch's unpickler knows bytearray, which takes a number: 200 bytes took any memory."""
    path, pickled = tmp_path / "x.pth", bytearray_of(3 * 10**8)
    if archive:
        torch.save({"a": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as whole:
            members = {m.filename: whole.read(m) for m in whole.infolist()}
        with zipfile.ZipFile(path, "w") as changed:
            for name, data in members.items():
                changed.writestr(name, pickled if name.endswith("data.pkl") else data)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + pickled)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="makes a bytearray"):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
