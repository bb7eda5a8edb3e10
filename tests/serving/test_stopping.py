"""SIGTERM before there is a server that heeds it, also as the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANGS = """
import sys, time
from pathlib import Path
import {module} as module
at_work = Path(sys.argv.pop(1))
def hang(*_, **__):
    at_work.touch()
    time.sleep(60)
module.{name} = hang
from augself_hub.cli import main
main()
"""
FIRST = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.fixture(params=[False, True], ids=["as any process", "as the first"])
def first(request) -> list[str]:
    """What makes a process the first of a space of its own, or nothing."""
    if not request.param:
        return []
    there = shutil.which(FIRST[0]) is not None
    if not there or subprocess.run([*FIRST, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process of a space of its own can be started here")
    return FIRST


def stopped(first: list[str], hanging: str, at_work: Path, *command: object) -> int:
    """The exit status of a command that is stopped while this function of it hangs."""
    module, _, name = hanging.partition(":")
    code = [sys.executable, "-c", HANGS.format(module=module, name=name), at_work, *command]
    process = subprocess.Popen([*first, *map(str, code)])
    try:
        until = time.monotonic() + 120
        while not at_work.exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        told = process.pid
        if first:
            children = Path(f"/proc/{told}/task/{told}/children").read_text()
            (told,) = map(int, children.split())
        os.kill(told, signal.SIGTERM)
        return process.wait(20)
    finally:
        process.kill()


def test_a_server_that_is_loading_ends_at_once_with_0(first, tmp_path):
    hanging = "serving.inference.source:ModelSource.find"
    assert stopped(first, hanging, tmp_path / "at-work", "serve", "--port", 0) == 0


def test_any_other_command_ends_too(first, tmp_path):
    status = stopped(first, "augself_hub.hub:resolve", tmp_path / "at-work", "verify")
    assert status in (143, -signal.SIGTERM)
