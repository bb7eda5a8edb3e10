"""What a training process frees stays its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from training.run.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(2**24)  # 128 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_freed_memory_is_used_again():
    """The kernel maps it once and not for every array anew."""
    faults = {}
    for way in ("kept", "given back"):
        command = [sys.executable, "-c", SCRIPT, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] < 100 < faults["given back"]
