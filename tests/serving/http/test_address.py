"""Where the server listens: sockets of every kind, TLS, a prefix; and what it says of it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

from augself_hub.errors import AugSelfError, UsageError
from serving.http.server import Address
from serving.settings import ServerSettings

has_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


def test_a_unix_socket(start_server, tmp_path, pixels, encoded, vectors, expected):
    path = tmp_path / "socket"
    server = start_server("--uds", str(path), "--access-log", str(tmp_path / "log"))
    assert server.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with server.client(headers={"Host": "any.example"}) as client:  # its proxy says who called
        found = vectors(client.post("/v1/embeddings", content=encoded(pixels(1))))
        np.testing.assert_allclose(found[0], expected(pixels(1)), rtol=1e-4, atol=1e-5)
        client.get("/version", headers={"X-Forwarded-For": "192.0.2.7"})
    refused = subprocess.run(
        [sys.executable, "-m", "augself_hub.cli", "serve", "--lazy", "--uds", str(path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 1 and "another server does" in refused.stderr
    server.process.kill()
    server.process.wait()
    assert path.exists()
    again = start_server("--uds", str(path))  # what a killed one left is in nobody's way
    assert again.stop() == 0 and not path.exists()
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (last["path"], last["client"]) == ("/version", "192.0.2.7")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AugSelfError, match="no socket, remove it"):
        Address(uds=tmp_path / "file").listen()
    assert (tmp_path / "file").read_text() == "mine"
    for path in (tmp_path / "none/s", tmp_path / ("long" * 50)):
        with pytest.raises(AugSelfError, match="cannot listen on"):
            Address(uds=path).listen()


def test_a_socket_and_a_port_exclude_each_other(augself, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGSELF_SERVE_PORT", "1")
    done = augself("serve", "--uds", tmp_path / "s")
    assert done.status == 2 and "leave --host and --port out" in done.err


@has_ipv6
def test_two_colons_are_addresses_of_both_kinds(start_server, tmp_path):
    server = start_server("--host", "::", "--access-log", str(tmp_path / "log"))
    port = server.url.rsplit(":", 1)[1]
    assert server.url == f"http://[::]:{port}"
    for host in ("127.0.0.1", "[::1]"):
        answer = httpx.get(
            f"http://{host}:{port}/version", headers={"X-Forwarded-For": "192.0.2.7"}
        )
        assert answer.status_code == 200
    assert server.stop() == 0
    lines = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert [line["client"] for line in lines if line["path"] == "/version"] == ["192.0.2.7"] * 2


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """A certificate of localhost and 127.0.0.1, its key, and the key with a password."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("pem")
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    locked = "openssl rsa -aes128 -passout pass:word -in key -out locked"
    for command in ([*new.split(), names, "-keyout", "key", "-out", "certificate"], locked.split()):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_tls(start_server, pem, pixels, encoded, vectors, expected):
    files = ("--tls-certificate", str(pem / "certificate"), "--tls-key", str(pem / "key"))
    server = start_server(*files, "--limit", "header_seconds=1", authority=pem / "certificate")
    assert server.url.startswith("https://127.0.0.1:")
    with server.client() as client:
        found = vectors(client.post("/v1/embeddings", content=encoded(pixels(1))))
        np.testing.assert_allclose(found[0], expected(pixels(1)), rtol=1e-4, atol=1e-5)
        home = client.get("/", headers={"Origin": server.url})  # a page of its own
        assert home.status_code == 307
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{server.url}/version")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(server.url.replace("https", "http") + "/version")
    with server.connect() as silent:  # shakes no hands
        begun = time.monotonic()
        assert silent.recv(1) == b"" and time.monotonic() - begun < 10
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


def test_handshakes_that_do_not_end_stop_nobody(start_server, pem):
    """They are connections as others: counted, and the one that waits longest makes room."""
    files = ("--tls-certificate", str(pem / "certificate"), "--tls-key", str(pem / "key"))
    server = start_server(*files, "--limit", "connections=10", authority=pem / "certificate")
    silent = [server.connect() for _ in range(60)]
    silent[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake at all
    for _ in range(3):
        with server.client() as client:
            metrics = client.get("/metrics").text
    assert float(re.findall(r"^augself_connections (\S+)", metrics, re.M)[0]) <= 10
    assert float(re.findall(r"^augself_dropped_connections_total (\S+)", metrics, re.M)[0]) >= 50
    for each in silent:
        each.close()
    time.sleep(0.3)
    with server.client() as client:
        metrics = client.get("/metrics").text
    assert float(re.findall(r"^augself_connections (\S+)", metrics, re.M)[0]) <= 2
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("certificate", None, "go together"),
        (None, "key", "go together"),
        ("certificate", "certificate", "cannot be used"),
        ("key", "key", "cannot be used"),
        ("certificate", "locked", "without a password"),
        ("none", "key", "cannot be used"),
    ],
)
def test_tls_files_that_cannot_be_used(pem, certificate, key, said):
    files = [pem / name if name else None for name in (certificate, key)]
    with pytest.raises(UsageError, match=said):
        Address("127.0.0.1", 0, None, *files)


# -- A prefix --------------------------------------------------------------------------------------


def test_a_prefix_stands_before_every_path(start_server, pixels, encoded, vectors, tmp_path):
    """A proxy may take it off or hand it on: both are the same route."""
    origin = ("--allow-origin", "https://page.example", "--token", "secret")
    server = start_server("--root-path", "/images/v", *origin)
    key = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=server.url, headers=key) as client:
        for root in ("", "/images/v"):
            for path in (
                "/v1/models",
                "/v1/models/tiny",
                "/v2/",
                "/health",
                "/version",
                "/metrics",
            ):
                assert client.get(root + path).status_code == 200, root + path
            data = encoded(pixels(1))
            assert vectors(client.post(f"{root}/v1/embeddings", content=data)).shape[0] == 1
            assert client.get(f"{root}/v1/nothing").json()["error"]["code"] == "not_found"
            assert client.get(f"{root}/v1/models", headers={"Authorization": ""}).status_code == 401
            home = client.get(f"{root}/")
            assert (home.status_code, home.headers["location"]) == (307, "/images/v/docs")
            page = client.get(f"{root}/docs").text
            links = re.findall(r'(?:src|href)="([^"]+)"', page)
            assert len(links) >= 3 and all(link.startswith("/images/v/") for link in links)
            assert all(client.get(link).status_code == 200 for link in links)
            assert "'/images/v/openapi.json'" in page
            document = client.get(f"{root}/openapi.json").json()
            assert document["servers"] == [{"url": "/images/v"}]
            page = client.get(f"{root}/v1/models", headers={"Origin": "https://page.example"})
            assert page.headers["access-control-allow-origin"] == "https://page.example"
        assert client.get("/images/v").headers["location"] == "/images/v/"
        assert client.get("/images/v2/v1/models").status_code == 404
        metrics = client.get("/metrics").text
        assert 'path="/v1/embeddings"' in metrics and "images/v" not in metrics


@pytest.mark.parametrize(
    "root", ["images", "/", "/images/", "//x", "/a b", "/v1", "/docs/x", "/gradio_api", "/é"]
)
def test_what_is_no_prefix_is_refused(root):
    with pytest.raises(UsageError, match="--root-path"):
        ServerSettings(root_path=root)


# -- What it says ----------------------------------------------------------------------------------


def test_one_line_says_what_listens(start_server):
    server = start_server("--threads", "1", "--decoders", "3", "--limit", "items=7")
    (line,) = [line for line in server.log if "listening" in line]
    for told in ("tiny: CPUExecutionProvider, fp32, 1 threads", "3 decoders", "0 keys", "7 images"):
        assert told in line
    assert server.stop() == 0
    server.process.wait()
    time.sleep(0.2)
    assert "shutting down: 0 requests" in "".join(server.log)
    assert "may use this server" not in "".join(server.log)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "0.0.0.0", "--token", "secret"), False),
        pytest.param(("--host", "::"), True, marks=has_ipv6),
    ],
)
def test_a_server_without_keys_for_everybody_is_warned_of(start_server, options, warned):
    server = start_server(*options)
    assert server.stop() == 0
    time.sleep(0.2)
    assert sum("may use this server" in line for line in server.log) == warned


def test_the_log_for_machines(start_server, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "50%s")
    other = ("--model", str(tmp_path / "50%s"))
    server = start_server(*other, "--log-format", "json", "--host", "0.0.0.0", "--limit=items=7")
    assert server.stop() == 0
    time.sleep(0.2)
    lines = [json.loads(line) for line in server.log]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", line["time"]) for line in lines)
    (start,) = [line for line in lines if line["message"].startswith("listening on")]
    assert start["level"] == "info" and start["address"] == server.url
    for model, name in zip(start["models"], ("tiny", "50%s"), strict=True):
        assert (model["id"], model["provider"]) == (name, "CPUExecutionProvider")
        assert f"; {name}: CPUExecutionProvider, fp32" in start["message"]
    assert start["limits"]["items"] == 7 and start["keys"] == 0
    assert [line["level"] for line in lines if "may use" in line["message"]] == ["warning"]


def test_a_traceback_is_in_its_json_line(capsys):
    import logging

    from serving.logs import JsonLines

    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record = logging.LogRecord("a", 40, "", 1, "b %s", ("c",), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["message"]) == ("error", "b c")
    assert "ZeroDivisionError" in line["exception"]


def test_levels(tiny_model):
    """With `error` nothing is said of a start that goes well."""
    command = [sys.executable, "-m", "augself_hub.cli", "serve", "--model", str(tiny_model)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "error"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert _answers(port)
    finally:
        server.terminate()
    assert server.communicate(timeout=20)[1] == "" and server.returncode == 0


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(tiny_model, closed, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log = tmp_path / "log"
    command = (
        f'exec "{sys.executable}" -m augself_hub.cli serve --model "{tiny_model}" --port {port} '
    )
    server = subprocess.Popen(["sh", "-c", f'{command} --access-log "{log}" {closed}'])
    try:
        assert _answers(port)
    finally:
        server.terminate()
    assert server.wait(20) == 0
    assert all(json.loads(line) for line in log.read_text().splitlines())  # and nothing else


def _answers(port: int) -> bool:
    for _ in range(300):
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.TransportError:
            time.sleep(0.1)
    return False
