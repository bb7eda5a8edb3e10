"""Which checkpoint a resume takes, of folders as a crash or a foreign hand may leave them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from augself_hub.errors import AugSelfError
from training.run.checkpoints import NEEDED, Spent, newest_valid, spent_until, write_manifest
from training.run.resuming import read_settings


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A run with two whole checkpoints."""
    for step in (4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in (*NEEDED, "rng_state.pth"):
            (folder / name).write_text(f"{name} of step {step}")
        write_manifest(folder)
    return tmp_path


def test_the_newest_whole_one_is_taken(output):
    assert newest_valid(output) == output / "checkpoint-6"


def rewritten(change):
    """A damage that changes what the manifest says."""

    def damage(folder: Path) -> None:
        files = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(change(files)))

    return damage


def without(name):
    """The file is gone and the manifest does not know of it."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        write_manifest(folder)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (rewritten(lambda files: []), "manifest.json is damaged"),
        (rewritten(lambda files: None), "manifest.json is damaged"),
        (rewritten(lambda files: 3), "manifest.json is damaged"),
        (rewritten(lambda files: list(files)), "manifest.json is damaged"),
        (rewritten(lambda files: dict.fromkeys(files, 1)), "manifest.json is damaged"),
        (rewritten(lambda files: {"files": files}), "manifest.json is damaged"),
        (rewritten(lambda files: {}), "model.safetensors is not in its manifest.json"),
        (rewritten(lambda files: files | {"../settings.json": ""}), "../settings.json is missing"),
        (rewritten(lambda files: files | {".": ""}), ". is missing"),
        *((without(name), f"{name} is not in its manifest.json") for name in NEEDED),
        (without("rng_state.pth"), "rng_state.pth is not in its manifest.json"),
        (lambda f: (f / "manifest.json").write_bytes(b'{"a": "\xff"}'), "was not finished"),
        (lambda f: (f / "manifest.json").write_text("[" * 200_000), "was not finished"),
        (lambda f: (f / "manifest.json").write_text('{"model.sa'), "was not finished"),
        (lambda f: (f / "trainer_state.json").write_text("{"), "trainer_state.json is damaged"),
        (lambda f: (f / "rng_state.pth").write_text(""), "rng_state.pth is damaged"),
    ],
)
def test_a_damaged_one_is_said_and_the_one_before_is_taken(output, caplog, damage, said):
    damage(output / "checkpoint-6")
    with caplog.at_level(logging.WARNING, logger="training"):
        assert newest_valid(output) == output / "checkpoint-4"
    assert f"ignored {output / 'checkpoint-6'}: " in caplog.text
    assert said in caplog.text


def test_a_file_in_a_checkpoint_s_place_is_ignored(output):
    (output / "checkpoint-9").write_text("")
    assert newest_valid(output) == output / "checkpoint-6"


def test_processes_have_states_of_their_own(output):
    folder = output / "checkpoint-6"
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    write_manifest(folder)
    assert newest_valid(output) == folder


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", '{"arguments": []}'])
def test_a_run_whose_settings_are_damaged_is_refused_by_name(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(AugSelfError, match=r"settings.json is damaged: copy it"):
        read_settings(tmp_path)


def test_what_a_run_took_is_kept_with_its_checkpoints(output):
    assert spent_until(None) == spent_until(output / "checkpoint-6") == Spent(0.0, 0.0)
    (Spent(3.0, 2.0) + (Spent(9.0, 8.0) - Spent(4.0, 4.0))).write(output / "checkpoint-6")
    assert spent_until(output / "checkpoint-6") == Spent(8.0, 6.0)
