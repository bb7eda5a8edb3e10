"""docs/deploy's nginx.conf and Caddyfile in the real nginx and Caddy, before a real server.

Only addresses and folders are others. With a prefix, and of several servers, they are changed as
docs/deploy/README.md says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.limits import Limits

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "docs/deploy"
PREFIX = "/images"
WAYS = ("root", "handed on", "taken off")  # no prefix, or what the proxy does with it
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, servers: list[int], way: str) -> tuple[list[str], str]:
    """The command, and the configuration it reads."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = changed(
        (DEPLOY / "nginx.conf").read_text(),
        ("http {\n", f"http {{\n{temporary}    access_log off;\n"),
        (
            "server augself:7860 max_fails=0;",
            "".join(f"server 127.0.0.1:{server} max_fails=0;" for server in servers),
        ),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("location / {", "location / {" if way == "root" else f"location {PREFIX}/ {{"),
        ("proxy_pass http://augself;", f"proxy_pass http://augself{'/' * (way == 'taken off')};"),
    )
    alone = f"daemon off; pid {folder}/pid; error_log {folder}/errors;"
    if os.getuid() == 0:  # its workers would be another user, who may not read here
        alone += " user root;"
    return ["nginx", "-p", str(folder), "-c", str(folder / "configuration"), "-g", alone], text


def caddy(folder: Path, port: int, servers: list[int], way: str) -> tuple[list[str], str]:
    there = f"{' '.join(f'127.0.0.1:{server}' for server in servers)} {{"
    if len(servers) > 1:
        there += "\n\t\thealth_uri /health/ready\n\t\thealth_interval 2s"
    forms = {
        "root": f"reverse_proxy {there}",
        "handed on": f"reverse_proxy {PREFIX}/* {there}",
        "taken off": f"uri strip_prefix {PREFIX}\n\treverse_proxy {there}",
    }
    text = changed(
        (DEPLOY / "Caddyfile").read_text(),
        ("{\n\tservers {", "{\n\tadmin off\n\tservers {"),
        ("images.example.org {", f"http://127.0.0.1:{port} {{"),
        ("\treverse_proxy 127.0.0.1:7860 {", f"\t{forms[way]}"),
    )
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "configuration")]
    return command, text


@pytest.fixture(scope="module")
def behind(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """A proxy in front of the servers on these ports -> its address."""
    running: list[subprocess.Popen] = []

    def start(name: str, way: str, *servers: int) -> str:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {name}")
        folder, port = tmp_path_factory.mktemp(name), free_port()
        command, text = {"nginx": nginx, "caddy": caddy}[name](folder, port, [*servers], way)
        (folder / "configuration").write_text(text)
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        with (folder / "log").open("w") as log:
            running.append(subprocess.Popen(command, env=os.environ | home, stdout=log, stderr=log))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}{'' if way == 'root' else PREFIX}"
            assert running[-1].poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def servers(tiny_model, server_process) -> Iterator[dict[str, int]]:
    """The port of one at the root, and of one below the prefix, with the demo."""
    model = ("--model", str(tiny_model))
    started = [server_process(*model), server_process(*model, "--demo", "--root-path", PREFIX)]
    yield {prefix: each.port for prefix, each in zip(("", PREFIX), started, strict=True)}
    for server in started:
        server.process.kill()
        server.process.wait(20)


@pytest.fixture(scope="module", params=[(p, w) for p in ("nginx", "caddy") for w in WAYS], ids=str)
def site(request, behind, servers) -> Iterator[httpx.Client]:
    """Clients of a proxy, relative to where the server is on it."""
    name, way = request.param
    server = servers["" if way == "root" else PREFIX]
    with httpx.Client(base_url=behind(name, way, server), timeout=60) as client:
        yield client


def test_an_image_is_answered(site, pixels, encoded, expected):
    answer = site.post("/v1/embeddings", files={"image": encoded(pixels(1))})
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json()["data"][0]["embedding"], np.float32)
    np.testing.assert_allclose(found, expected(pixels(1)), rtol=1e-4, atol=1e-5)
    assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(("more", "whose"), [(-2000, "server"), (1000, "server"), (2 * 2**20, "")])
def test_a_body_is_bounded_by_the_server_in_json_and_far_beyond_by_the_proxy(site, more, whose):
    """At the limit it is read (and is no image); beyond it the answer is still the server's."""
    body = bytes(Limits().body_bytes + more)
    try:
        answer = site.post("/v1/embeddings", content=body, headers={"Content-Type": "image/png"})
    except httpx.WriteError:  # the proxy closed while we sent what it had refused
        assert whose == ""
        return
    if whose:
        assert answer.json()["error"]["code"] == (
            "body_too_large" if more > 0 else "undecodable_image"
        )
    assert answer.status_code == (413 if more > 0 else 400)


def test_a_body_of_no_stated_length_is_bounded_too(site):
    parts = (bytes(2**20) for _ in range(36))
    try:
        answer = site.post("/v1/embeddings", content=parts, headers={"Content-Type": "image/png"})
    except (httpx.WriteError, httpx.RemoteProtocolError):
        return
    assert answer.status_code == 413


def test_pages_and_what_they_load_are_below_the_prefix(site):
    """/docs and the demo, followed as a browser would."""
    prefix = site.base_url.path.rstrip("/")
    for page in ("/docs", *["/"] * bool(prefix)):
        answer = site.get(page, follow_redirects=True)
        while answer.status_code == 503:  # the demo is built after the start
            time.sleep(0.2)
            answer = site.get(page, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        found = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", answer.text)
        links = [link for pair in found for link in pair if link and not link.startswith("data:")]
        # Gradio's pages name a manifest that it only has as an app of the desktop.
        links = [link for link in links if "fonts." not in link and link != "/manifest.json"]
        assert links
        for link in links:
            url = answer.url.join(link)
            assert url.path.startswith(f"{prefix}/"), link
            if url.host == site.base_url.host:
                assert site.get(url).status_code == 200, link
    assert site.get("/openapi.json").status_code == 200


def test_metrics_are_closed_and_health_is_open(site):
    assert site.get("/metrics").status_code == site.get("/metrics/").status_code == 403
    assert site.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics/", "/metrics//", "//metrics", "//metrics/", "/./metrics/", "/v1/../metrics/"),
        *(
            "/%6Detrics",
            "/%6Detrics/",
            "/metrics%2F",
            "/metrics%2f%2F",
            "/%2Fmetrics/",
            "/metrics/.",
        ),
        *("/metrics?a=b", "/metrics/?a=b", "/metrics%3F", "/metrics#", "/metrics/#a", "/METRICS/"),
        *(
            "/metrics%00",
            "/metrics/%0A",
            "/metrics%20",
            "/metrics;a",
            "/metrics/;a",
            "/v1/%2E%2E/metrics/",
        ),
    ],
)
def test_no_way_of_writing_it_leads_to_the_metrics(site, path):
    """As it is: httpx would write it anew."""
    head = f"GET {site.base_url.path.rstrip('/')}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with socket.create_connection(("127.0.0.1", site.base_url.port), 20) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 ") and b"augself_requests" not in answer
    assert int(answer.split()[1]) in (400, 403, 404, 503)  # 503: the demo is not built yet


@pytest.fixture(scope="module")
def busy() -> Iterator[int]:
    """The port of a server that reads every request and answers 503, as one does while it loads."""

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def statuses(address: str, image: bytes) -> set[int]:
    with httpx.Client(base_url=address, timeout=60) as client:
        sent = [client.post("/v1/embeddings", files={"image": image}) for _ in range(8)]
    return {answer.status_code for answer in sent}


def test_nginx_asks_the_other_where_one_has_ended(behind, servers, pixels, encoded):
    address = behind("nginx", "root", free_port(), servers[""])
    assert statuses(address, encoded(pixels(1))) == {200}


def test_nginx_asks_the_other_where_one_is_not_ready_and_passes_it_on_where_none_is(
    behind, servers, busy, pixels, encoded
):
    """Its own 502 would be no reason for a client to ask again."""
    image = encoded(pixels(1))
    assert statuses(behind("nginx", "root", busy, servers[""]), image) == {200}
    assert statuses(behind("nginx", "root", busy, busy), image) == {503}


def test_caddy_leaves_out_those_that_have_ended_or_are_not_ready(
    behind, servers, busy, pixels, encoded
):
    """Only it makes the checks: until the first of them its clients get 502."""
    address = behind("caddy", "root", free_port(), busy, servers[""])
    until = time.monotonic() + 30
    while (found := statuses(address, encoded(pixels(1)))) != {200}:
        assert time.monotonic() < until, found
    assert statuses(address, encoded(pixels(1))) == {200}


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_whose_a_request_is_the_proxy_says_and_not_the_client(
    name, behind, tiny_model, server_process, tmp_path, pixels, encoded
):
    """As in compose.yaml, where the server believes whatever reaches it."""
    log = tmp_path / "log"
    server = server_process(
        "--model", str(tiny_model), "--access-log", str(log), FORWARDED_ALLOW_IPS="*"
    )
    address = behind(name, "root", server.port)
    files, forged = {"image": encoded(pixels(1))}, {"X-Forwarded-For": "192.0.2.7"}
    answer = httpx.post(f"{address}/v1/embeddings", files=files, headers=forged, timeout=60)
    assert answer.status_code == 200 and server.stop() == 0
    (line,) = [json.loads(line) for line in log.read_text().splitlines() if "embeddings" in line]
    assert line["client"] == "127.0.0.1"
