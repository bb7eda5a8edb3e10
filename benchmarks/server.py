"""The server side by side with LitServe and with batch extraction; load, start-up, memory.

    taskset -c 0,1 python benchmarks/server.py [--work DIR] [--openvino PYTHON] [--quick]

Images and models are those of benchmarks/extraction.py: 500 x 375 JPEGs, an untrained ResNet-18 at
224 px and its int8 graph, made in DIR once. Every request brings one image in a form, the same
bytes to every server. Servers are started, warmed up, measured with 8 clients and with 1, and
stopped, in turn; a figure is the median of the rounds.

    ours               `augself serve` as it comes
    ours, OpenVINO     the same on OpenVINO, in bf16 beside the fp32 of others; --openvino is the
                       python of an environment with it (`pip install -e '.[serve,openvino]'`)
    litserve           LitServe as it comes: one worker, an image at a time, all cores
    litserve batched   one worker, 8 images at a time, at most 5 ms of waiting
    litserve 2 workers an image at a time, one core each

LitServe gets the same graph in ONNX Runtime and decodes with Pillow as we do. The clients are
threads of one process on the same cores as the server; the share of a core they take is shown.

Not called serving.py: the scripts beside it would import that instead of the package.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extraction import WORK, child, make_graph, make_images, make_model, megabytes
from findings import Findings, machine, spread

from augself_hub.precision import graph_of

LITSERVE = Path(__file__).with_name("litserve_server.py")
BOUNDARY = "a-boundary-of-the-benchmark"
UNIT = "images a second, 8 clients"
OPENVINO = "ours, OpenVINO"
SERVERS: dict[str, list[str]] = {
    "ours": [],
    "litserve": [],
    "litserve batched": ["--batch", "8"],
    "litserve 2 workers": ["--workers", "2"],
}
SERVE = ["-m", "augself_hub.cli", "serve"]
AUGSELF = [sys.executable, *SERVE]


def main() -> None:
    options = parsed()
    if options.load:
        print(json.dumps(load(options)))
        return
    images, found = make_images(options.work / "images", options.images), Findings(UNIT)
    folder = make_model(options.work, "resnet18")
    found.say(f"{machine()}; ResNet-18, {options.rounds} rounds")
    for precision in options.precisions:
        make_graph(folder, precision, images)
        show_speed(found, options, folder, precision)
    show_overload(found, options, folder)
    show_start(found, options)
    found.write(options.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="kept: images and models")
    parser.add_argument("--json", type=Path, help="keep what was found for bench.py")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--requests", type=int, default=600, help="of 8 clients together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--quick", action="store_true", help="one small round at fp32")
    parser.add_argument("--servers", nargs="*", help="only these, and ours; the default is all")
    parser.add_argument("--openvino", help="python of an environment with OpenVINO")
    parser.add_argument("--load", help=argparse.SUPPRESS)  # an address: be the clients
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.requests, options.rounds = 64, 80, 1
        options.precisions = ["fp32"]
    return options


# -- Servers ---------------------------------------------------------------------------------------


@contextmanager
def running(command: list[str], ready: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server on a free port, once `ready` answers 200; (host:port, its process)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(process, port, ready)
        yield f"127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):  # LitServe leaves workers that poll
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen, port: int, path: str) -> None:
    while process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.01)
    raise RuntimeError(f"{process.args} ended with {process.returncode}")


@contextmanager
def started(
    server: str, folder: Path, precision: str, openvino: str | None
) -> Iterator[tuple[str, subprocess.Popen]]:
    ready = "/health/ready"
    if server == "ours":
        command = [*AUGSELF, "--model", str(folder), "--precision", precision]
    elif server == OPENVINO:
        command = [str(openvino), *SERVE, "--model", str(folder), "--device", "openvino"]
        command += ["--precision", "bf16" if precision == "fp32" else precision]
    else:
        graph = folder / graph_of(folder, precision)
        command = [sys.executable, str(LITSERVE), "--graph", str(graph), *SERVERS[server]]
        ready = "/health"
    with running(command, ready) as found:
        yield found


def core_seconds(server: subprocess.Popen) -> float:
    """What a server and its workers, which are of one session, have used of the cores so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += (int(fields[11]) + int(fields[12])) * (int(fields[3]) == server.pid)
    return ticks / os.sysconf("SC_CLK_TCK")


# -- Clients ---------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What clients saw: seconds of those that were 200, how many of each status."""

    seconds: list[float]
    codes: dict[str, int]
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def asked(options: argparse.Namespace, address: str, clients: int, requests: int) -> Answers:
    """So many requests by so many clients in a process of their own."""
    command = [sys.executable, __file__, "--load", address, "--clients", str(clients)]
    command += ["--requests", str(requests), "--work", str(options.work)]
    command += ["--images", str(options.images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Answers(**json.loads(done.stdout))


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Be the clients: each sends its next image when it has the answer to the one before."""
    paths = sorted((options.work / "images").glob("*.jpg"))[: options.images]
    forms = [form(path.read_bytes()) for path in paths]
    numbers, lock = itertools.count(), threading.Lock()
    seconds: list[float] = []
    codes: dict[str, int] = {}

    def client() -> None:
        connection = http.client.HTTPConnection(options.load, timeout=120)
        while (number := next(numbers)) < options.requests:
            began = time.perf_counter()
            status = post(connection, forms[number % len(forms)])
            took = time.perf_counter() - began
            with lock:
                codes[str(status)] = codes.get(str(status), 0) + 1
                if status == 200:
                    seconds.append(took)
            if status == 429:
                time.sleep(0.05)

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return vars(Answers(seconds, codes, wall, usage.ru_utime + usage.ru_stime))


def form(image: bytes) -> bytes:
    part = 'Content-Disposition: form-data; name="image"; filename="a.jpg"'
    head = f"--{BOUNDARY}\r\n{part}\r\nContent-Type: image/jpeg\r\n\r\n"
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(connection: http.client.HTTPConnection, body: bytes) -> int:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/v1/embeddings", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


# -- What is shown ---------------------------------------------------------------------------------


def show_speed(found: Findings, options: argparse.Namespace, folder: Path, precision: str) -> None:
    servers = options.servers or [*SERVERS, *([OPENVINO] if options.openvino else [])]
    eight: dict[str, list[Answers]] = {server: [] for server in servers}
    one: dict[str, list[Answers]] = {server: [] for server in servers}
    extraction = []
    cores: dict[str, list[float]] = {server: [] for server in servers}
    for _ in range(options.rounds):
        for server in servers:
            with started(server, folder, precision, options.openvino) as (address, process):
                asked(options, address, 8, 32)
                before = core_seconds(process)
                eight[server].append(asked(options, address, 8, options.requests))
                cores[server].append(options.requests / (core_seconds(process) - before))
                one[server].append(asked(options, address, 1, options.requests // 6))
        arguments = ["--model", str(folder), "--work", str(options.work)]
        arguments += ["--images", str(options.images), "--precision", precision]
        extraction.append(child("ours", arguments))
    show_eight(found, precision, eight, cores, extraction)
    mine = middle(answers.quantile(0.5) for answers in one["ours"])
    cells = []
    for server, rounds in one.items():
        median = middle(answers.quantile(0.5) for answers in rounds)
        p99 = middle(answers.quantile(0.99) for answers in rounds)
        cells.append((server, f"{median:.1f} ms", f"{mine / median:.2f}", f"{p99:.1f} ms"))
    found.table([f"{precision}, 1 client", "median", "ours to it", "p99"], cells)


def show_eight(
    found: Findings,
    precision: str,
    eight: dict[str, list[Answers]],
    cores: dict[str, list[float]],
    extraction: list[dict[str, float]],
) -> None:
    """Also of a core's second that the server used, which other load changes less."""
    rates = {server: [answers.rate for answers in rounds] for server, rounds in eight.items()}
    rates["batch extraction"] = [each["speed"] for each in extraction]
    cores = {**cores, "batch extraction": [each["core"] for each in extraction]}
    cells = []
    for server, rate in rates.items():
        ratio, of_core = (f"{middle(x['ours']) / middle(x[server]):.2f}" for x in (rates, cores))
        used = (spread(cores[server])[0], of_core)
        cells.append(
            (server, *spread(rate), ratio, *latencies(server, eight.get(server, [])), *used)
        )
    heads = [f"{precision}, 8 clients", "images/s", "quartiles", "ours to it", "median", "p99"]
    heads += ["clients' share of a core", "a second of a core", "ours to it"]
    found.table(heads, cells)
    found.chart({f"{precision}, {server}": rate for server, rate in rates.items()})


def latencies(server: str, rounds: list[Answers]) -> list[str]:
    """Three cells: median and p99 of an answer, and the clients' share; empty without rounds."""
    if bad := [answers.codes for answers in rounds if set(answers.codes) != {"200"}]:
        raise RuntimeError(f"{server} answered {bad}")
    if not rounds:
        return [""] * 3
    times = [middle(answers.quantile(share) for answers in rounds) for share in (0.5, 0.99)]
    share = middle(answers.cpu / answers.wall for answers in rounds)
    return [*(f"{time:.0f} ms" for time in times), f"{share:.0%}"]


def middle(values: Any) -> float:
    return statistics.median(list(values))


def show_overload(found: Findings, options: argparse.Namespace, folder: Path) -> None:
    limits = ["--limit", "max_queue_size=32", "--limit", "items=16"]
    with running([*AUGSELF, "--model", str(folder), *limits], "/health/ready") as (address, _):
        answers = asked(options, address, 64, 2 * options.requests)
    codes = ", ".join(f"{count} answers {code}" for code, count in sorted(answers.codes.items()))
    found.say(
        f"64 clients, a queue for 32 images, a deadline of 30 s: {codes}; p99 of the 200s "
        f"{answers.quantile(0.99):.0f} ms, {answers.rate:.1f} images/s"
    )


def show_start(found: Findings, options: argparse.Namespace) -> None:
    """The embedded model: from the start of the process; memory after a batch of 32 was run."""
    cells = []
    for extra in ([], ["--demo"]):
        rounds = [one_start(extra) for _ in range(options.rounds)]
        ready, page, memory = (middle(values) for values in zip(*rounds, strict=True))
        shown = f"{page:.1f} s" if extra else ""
        command = " ".join(["augself serve", *extra])
        cells.append((f"`{command}`", f"{ready:.1f} s", shown, f"{memory:.0f} MB"))
    found.table(["start, embedded model", "/v1 ready", "page", "resident"], cells)


def one_start(extra: list[str]) -> tuple[float, float, float]:
    """(seconds until ready, until the page or ready, resident megabytes)."""
    began = time.perf_counter()
    with running([*AUGSELF, *extra], "/health/ready") as (address, process):
        ready = time.perf_counter() - began
        wait_for(process, int(address.rsplit(":")[-1]), "/" if extra else "/health/ready")
        page = time.perf_counter() - began
        return ready, page, megabytes(process.pid, "VmRSS")


if __name__ == "__main__":
    main()
