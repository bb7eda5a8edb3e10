"""No command sends anything anywhere, and none writes into HOME what nobody asked for.

Each runs in a network of its own that has nothing but a loopback, so that nothing can get out, and
under strace, so that whatever tries is seen: in Python and in native libraries alike. Its HOME is
empty before and must be empty afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    *("--method=simsiam", "--encoder=resnet18-w16", "--size=32", "--batch-size=8", "--workers=0"),
    *(
        "--epochs=1",
        "--set=max_steps=2",
        "--set=logging_steps=1",
        "--method-option=width=32",
        "--report-to=none",
    ),
)
TRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none")
CALLS = "trace=connect,sendto,sendmsg,sendmmsg"
ALONE = ("unshare", "--map-root-user", "--net")
ADDRESS = re.compile(
    r"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\""
)
# What runs inside: the loopback is switched on, then a script with `sys.argv` of its own.
LOOPBACK = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""
COMMAND = "from augself_hub.cli import main; main()"
SERVER = """
import re, subprocess, sys, threading, time, httpx
image, *words = sys.argv[1:]
words = [sys.executable, "-m", "augself_hub.cli", "serve", "--port", "0", *words]
server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
try:
    url = next(f[0] for f in (re.search(r"http://[\\d.:]+", line) for line in server.stderr) if f)
    threading.Thread(target=server.stderr.read, daemon=True).start()
    with httpx.Client(base_url=url, timeout=60, follow_redirects=True) as client:
        assert client.get("/health/ready").status_code == 200
        with open(image, "rb") as file:
            answer = client.post("/v1/embeddings", files={"image": file})
        assert answer.status_code == 200, answer.text
        while (page := client.get("/")).status_code == 503:  # the demo is built after the start
            time.sleep(0.2)
        assert ("gradio" in page.text) == ("--demo" in words), page
finally:
    server.terminate()
    status = server.wait(60)
sys.exit(status)
"""


def run_alone(folder: Path, script: str, *words: object, **changes: str) -> SimpleNamespace:
    """A script without a network -> what it printed, what it tried to reach, what is in HOME."""
    home, calls = folder / "home", folder / "calls.txt"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "ORT_"))}
    for name in ("CI", "GITHUB_ACTIONS", "DO_NOT_TRACK"):  # ONNX Runtime is silent where CI is set
        kept.pop(name, None)
    done = subprocess.run(
        [*TRACE, "-e", CALLS, "-o", calls, *ALONE, sys.executable, "-c", LOOPBACK + script]
        + [str(word) for word in words],
        env=kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), **changes},
        cwd=folder, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return SimpleNamespace(
        status=done.returncode,
        printed=done.stdout + done.stderr,
        reached=sorted(outside(calls.read_text())),
        kept=sorted(str(p.relative_to(home)) for p in home.rglob("*") if not p.is_dir()),
    )


def outside(calls: str) -> set[str]:
    """Addresses that are not this machine's, and its name server's."""
    found = {(address, port) for port, address in ADDRESS.findall(calls)}
    ours = ("127.", "::1", "::ffff:127.", "0.0.0.0")
    return {f"{a}:{p}" for a, p in found if p == "53" or not (a.startswith(ours) or a == "::")}


@pytest.fixture(scope="module", autouse=True)
def sandbox(tmp_path_factory):
    """Skips where the system lets nobody have a network of their own, or watch a process."""
    if not all(map(shutil.which, ("strace", "unshare"))):
        pytest.skip("needs strace and unshare (util-linux)")
    probe = run_alone(tmp_path_factory.mktemp("probe"), "print('alone')")
    if probe.status != 0:
        pytest.skip(f"no network namespaces or no tracing here: {probe.printed}")


def test_the_watch_sees_addresses_names_and_files(tmp_path):
    script = """
import contextlib, pathlib, socket
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 443), 1)
with contextlib.suppress(OSError):
    socket.getaddrinfo("augself.invalid", 443)
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s, contextlib.suppress(OSError):
    s.sendto(b"x", ("2001:db8::1", 9))
pathlib.Path.home().joinpath("id").touch()
"""
    seen = run_alone(tmp_path, script)
    assert {"192.0.2.1:443", "2001:db8::1:9"} < set(seen.reached)
    assert any(address.endswith(":53") for address in seen.reached)
    assert seen.kept == ["id"]


def test_the_watch_sees_what_onnx_runtime_keeps_by_itself(tmp_path):
    """If this fails, its telemetry is gone or has moved: look again what must be switched off."""
    assert run_alone(tmp_path, "import onnxruntime").kept != []


def assert_silent(seen: SimpleNamespace) -> None:
    assert seen.status == 0, seen.printed
    assert (seen.reached, seen.kept) == ([], [])


@pytest.mark.parametrize("demo", [(), ("--demo",)], ids=["alone", "demo"])
def test_serving(demo, tmp_path, tiny_model, photographs):
    assert_silent(run_alone(tmp_path, SERVER, photographs[0], "--model", tiny_model, *demo))


def test_the_embedded_model_predicts(tmp_path, photographs):
    assert_silent(run_alone(tmp_path, COMMAND, "predict", *photographs[:2]))


def test_extracting(tmp_path, tiny_model, photo_folder):
    words = ("extract", photo_folder, "--model", tiny_model, "--output", tmp_path / "out")
    assert_silent(run_alone(tmp_path, COMMAND, *words))


@pytest.mark.slow
def test_pretraining(tmp_path, photo_folder):
    words = ("pretrain", "--data", photo_folder, "--output", tmp_path / "run", *SMALL)
    assert_silent(run_alone(tmp_path, COMMAND, *words))


@pytest.mark.slow
def test_fitting_heads(tmp_path, tiny_model, photo_folder):
    words = ("fit-heads", tiny_model, f"--data={photo_folder}", f"--output={tmp_path / 'run'}")
    options = ("--size=32", "--batch-size=8", "--workers=0", "--epochs=1")
    assert_silent(run_alone(tmp_path, COMMAND, *words, *options))


def test_evaluating(tmp_path, tiny_model, photo_folder):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    words = ("evaluate", "--model", model, "--tasks=knn", f"--datasets=folder:{photo_folder}")
    assert_silent(run_alone(tmp_path, COMMAND, *words, "--cache", tmp_path / "features"))
