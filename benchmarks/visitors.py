"""What hostile visitors of the demo cost: memory and disk before, during and after.

    python benchmarks/visitors.py

Starts `augself serve --demo`; 3,000 calls, each of a session of its own, then 300 MB of uploads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

CALLS, UPLOADS, SIZE = 3000, 30, 10 * 10**6
API = "/gradio_api"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GRADIO_TEMP_DIR": folder}
        command = [sys.executable, "-m", "augself_hub.cli", "serve", "--demo", "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            measure(server, Path(folder))
        finally:
            server.terminate()
            server.wait(60)
        print(f"after its end {len(list(Path(folder).iterdir()))} files are left")


def measure(server: subprocess.Popen[str], folder: Path) -> None:
    """Print a line after each act."""
    assert server.stderr is not None
    url = next(m[1] for line in server.stderr if (m := re.search(r"listening on (\S+)", line)))
    with ThreadPoolExecutor(1) as reader, httpx.Client(base_url=url, timeout=60) as client:
        reader.submit(server.stderr.read)
        while client.get("/").status_code != 200:
            time.sleep(0.5)
        say("at rest", server.pid, folder)
        number, data = first_call(client)
        for act in ("a first call", "as many again"):
            count = 1 if act == "a first call" else CALLS
            for call in range(count):
                body = {"data": data, "fn_index": number, "session_hash": f"{act[0]}{call}"}
                while (answer := client.post(f"{API}/queue/join", json=body)).status_code == 503:
                    time.sleep(0.05)
                answer.raise_for_status()
            say(f"after {count:,} calls of fresh sessions", server.pid, folder)
        for _ in range(UPLOADS):
            files = {"files": ("a.jpg", os.urandom(SIZE))}
            client.post(f"{API}/upload", files=files).raise_for_status()
        say(f"after {UPLOADS * SIZE // 10**6} MB of uploads", server.pid, folder)
        time.sleep(30)
        say("half a minute later", server.pid, folder)
        server.terminate()


def first_call(client: httpx.Client) -> tuple[int, list[object]]:
    """Reset, which computes nothing: the function's number and its arguments."""
    config = client.get("/config").json()
    fields = {field["id"]: field for field in config["components"]}
    functions = [f for f in config["dependencies"] if len(f["outputs"]) > 15]
    function = next(f for f in functions if len(f["inputs"]) == 1)
    return function["id"], [fields[number]["props"]["value"] for number in function["inputs"]]


def say(when: str, pid: int, folder: Path) -> None:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    record = {"when": when, "memory_mb": round(resident), "files_mb": round(disk / 10**6, 1)}
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
