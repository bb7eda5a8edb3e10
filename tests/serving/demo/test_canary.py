"""The canary: a file and a server that are nobody's business, asked for in every way there is.

Routes and functions are enumerated from the page as it runs: a route that a later Gradio adds fails
here until it is decided, and is not there until then.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

pytest.importorskip("gradio")

from pydantic import ValidationError

from serving.demo import mounted
from serving.demo.routes import _Call
from serving.demo.visitors import EXAMPLES
from serving.inference.client import ModelClient
from serving.inference.engine import Engine
from serving.limits import Limits

MARK = "the canary sings: 5f1d9a2e"
META = {"meta": {"_type": "gradio.FileData"}}
API = "/gradio_api"
OURS = {"/file={path_or_url:path}", "/upload", "/upload_progress", "/queue/join", "/queue/data"}
# Every route of Gradio's, and whether it is there. Those of the API are below API.
THERE = {f"{API}{path}" for path in OURS | {"/heartbeat/{session_hash}", "/info"}} | {
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *("/static/{path:path}", "/assets/{path:path}"),
}
SHADOWED = {"/openapi.json"}  # the server's own is there
NOT_THERE = {
    *("/login", "/login/", "/logout", "/config/", "/svelte/{path:path}", f"{API}/deep_link"),
    *("/pwa_icon", "/pwa_icon/{size}", "/monitoring", "/monitoring/summary", "/monitoring/{key}"),
    *(
        API + path
        for path in (
            *("/user", "/user/", "/login_check", "/login_check/", "/token", "/token/"),
            *("/app_id", "/app_id/", "/dev/reload", "/runs", "/runs/", "/info/", "/openapi.json"),
            "/custom_component/{id}/{environment}/{type}/{file_name}",
            *("/proxy={url_path:path}", "/file/{path:path}", "/reset", "/reset/", "/cancel"),
            *("/stream/{event_id}", "/stream/{event_id}/close"),
            "/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
            "/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
            "/stream/{session_hash}/{run}/{component_id}/playlist-file",
            *("/run/{api_name}", "/run/{api_name}/", "/api/{api_name}", "/api/{api_name}/"),
            *("/call/{api_name}", "/call/{api_name}/", "/call/{api_name}/{event_id}"),
            *("/call/v2/{api_name}", "/call/v2/{api_name}/", "/call/v2/{api_name}/{event_id}"),
            *("/queue/status", "/component_server", "/component_server/", "/startup-events"),
            *("/theme.css", "/process_recording", "/vibe-edit", "/vibe-edit/"),
            *("/undo-vibe-edit", "/undo-vibe-edit/", "/vibe-code", "/vibe-code/"),
            *("/vibe-starter-queries", "/vibe-starter-queries/"),
        )
    ),
}


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "canary.png"
    path.write_text(MARK)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """A server's URL, and what was asked of it: nothing must be."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MARK.encode())

        do_HEAD = do_POST = do_GET

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


class Visitor:
    """Asks as a script would: paths go out as they are."""

    def __init__(self, url: str, session: str = "visitor") -> None:
        self.url, self.session = url, session
        self.upload_path = self.upload("dogs.jpg", Path(EXAMPLES[1]).read_bytes())

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} | headers
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        text = answer.read().decode("latin-1")
        connection.close()
        return answer.status, text

    def upload(self, name: str, data: bytes) -> str:
        answer = httpx.post(f"{self.url}{API}/upload", files={"files": (name, data)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def join(self, function: int, data: list, session: str | None = None, **more: Any) -> int:
        body = {"data": data, "fn_index": function, "session_hash": session or self.session}
        return self.ask("POST", f"{API}/queue/join", body | more)[0]

    def answer(self, function: int, data: list, **more: Any) -> str:
        """All that a call is answered with."""
        assert self.join(function, data, **more) == 200
        return self.ask("GET", f"{API}/queue/data?session_hash={self.session}")[1]

    def functions(self) -> dict[int, list[Any]]:
        """Every function -> arguments it answers."""
        config = httpx.get(f"{self.url}/config").json()
        fields = {field["id"]: field for field in config["components"]}
        return {
            function["id"]: [self._argument(fields[number]) for number in function["inputs"]]
            for function in config["dependencies"]
        }

    def _argument(self, field: dict) -> Any:
        if field["type"] == "file":
            file = {"path": self.upload_path, **META}
            return [file] if field["props"]["file_count"] == "multiple" else file
        return None if field["type"] == "state" else field["props"]["value"]


@pytest.fixture(scope="module")
def visitor(app) -> Visitor:
    return Visitor(app.url)


@pytest.fixture(scope="module")
def names(visitor: Visitor, canary: Path, server: tuple[str, list[str]]) -> list[str]:
    """The canary by every name: path, URL, traversal, link, case, encodings."""
    mine, folder = Path(visitor.upload_path), Path(visitor.upload_path).parents[1]
    link, planted = folder / "link.png", folder / "planted" / "canary.png"
    if not link.exists():
        link.symlink_to(canary)
        planted.parent.mkdir()
        planted.write_text(MARK)
    up = "../" * 12
    paths = [
        *(str(canary), f"/{canary}", f"{canary}/", f"{canary}/.", str(canary).upper()),
        *(f"{mine}/{up}{canary}", f"{mine.parent}/{up}{canary}", f"{folder}/{up}{canary}"),
        *(f"{up}{canary}", f"./{canary}", str(link), f"{folder}/./link.png", str(planted)),
        *(f"{mine}/../../link.png", f"{mine}\0{canary}", f"{canary}\0.png", f" {canary}"),
        *(str(folder), str(mine.parent), str(mine).upper(), f"{mine}/", f"/{mine}", f"{mine} "),
        *(f"{mine.parent}/../{mine.parent.name}/{mine.name}", f"{mine.parent}//{mine.name}"),
        *(f"file://{canary}", f"FILE://localhost{canary}", f"{API}/file={canary}", "~/.bashrc"),
        *(f"{visitor.url}{API}/file={canary}", server[0], f"{server[0]}/a.png", server[0].upper()),
        *(f"//{urlsplit(server[0]).netloc}/a.png", f"http:/{server[0][6:]}/a.png", "", "."),
        *("/etc/passwd", "/proc/self/environ", "/proc/self/cwd/README.md", "README.md"),
    ]
    quoted = [quote(path, safe="") for path in paths]
    return [*paths, *quoted, *(quote(path, safe="") for path in quoted)]


def nestings(name: str) -> Iterator[Any]:
    """One name in every form that a field of Gradio's takes a file in, and some it does not."""
    file = {"path": name, **META}
    yield from (file, [file], [[file]], [[[file]]], {"path": name}, {"url": name, **META})
    yield from (file | {"url": name}, file | {"is_stream": True}, {"path": "a", "url": name})
    yield from (name, [name], json.dumps(file), {"meta": META["meta"], "url": name})
    yield from ({"image": file, "caption": None}, [{"image": file, "caption": None}])
    yield from ([file, "caption"], [[file, "caption"]], {"video": file, "subtitles": file})
    yield from ({"text": "", "files": [file]}, {"file": file, "alt_text": ""}, {"value": file})
    yield from ({"background": file, "layers": [file], "composite": file}, {"0": file})
    yield from ({"__type__": "update", "value": file}, {"path": file, **META}, {"path": [name]})
    yield from ({"path": name, "meta": "gradio.FileData"}, {"root": [file]}, {"data": [file]})


def paths(routes: list) -> Iterator[str]:
    """Of every route, those of included routers and mounts too."""
    for route in routes:
        if hasattr(route, "endpoint"):
            yield route.path
        else:
            inner = getattr(route, "original_router", None) or route.app
            yield from paths(inner.routes)


def test_every_route_of_gradio_is_decided(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    engine = Engine(tiny_model, "cpu", threads=1)
    models = {"tiny": ModelClient(engine, Limits(), engine.features, engine.predict)}
    routes = mounted(models, None, Limits(), tmp_path)
    (mount,) = routes._app.routes
    found = set(paths(mount.app.routes))
    assert found and found - THERE - NOT_THERE - SHADOWED == set(), (
        "decide these, here and in routes.py"
    )
    assert THERE - found == set()


def test_what_is_not_there_answers_404_whatever_is_asked(visitor, canary):
    filled = {re.sub(r"\{[^}]*\}", quote(str(canary), safe=""), path) for path in NOT_THERE} | {
        re.sub(r"\{[^}]*\}", "features", path) for path in NOT_THERE
    }
    body = {"data": [{"path": str(canary), **META}], "session_hash": "visitor", "fn_index": 0}
    for path, method in itertools.product(filled, ("GET", "HEAD", "POST", "PUT", "OPTIONS")):
        status, text = visitor.ask(method, path, body if method in ("POST", "PUT") else None)
        assert (status in (404, 405), MARK in text) == (True, False), (method, path, status)


def test_no_route_gives_the_canary(visitor, names, server):
    before = [
        *(f"{API}/file=", f"{API}/file/", "/file=", "/file/", f"{API}/proxy=", "/proxy=", "/"),
        *("/static/", "/assets/", "/svelte/", "/static/../", f"{API}/stream/", f"{API}/"),
        *("/?deep_link=", "/config?deep_link=", "/config?page=", f"{API}/info?all_endpoints="),
        *(f"{API}/custom_component/", f"{API}/heartbeat/", f"{API}/queue/data?session_hash="),
        *(f"{API}/deep_link?session_hash=", f"{API}/upload_progress?upload_id=", "/theme.css?v="),
    ]
    asked = 0
    for prefix, name in itertools.product(before, names):
        path = prefix + re.sub(r"[\0 ]", lambda found: quote(found[0]), name)
        status, text = visitor.ask("GET", path)
        assert MARK not in text and "root:" not in text, path
        if "file=" in prefix or "proxy=" in prefix or "/.." in path.partition("?")[0]:
            assert status in (400, 404), (status, path)
        asked += 1
    assert asked > 1000 and server[1] == []


def test_no_function_takes_the_canary(visitor, names, server):
    """In every field of every function, by every name, in every nesting."""
    functions = visitor.functions()
    assert len(functions) > 15 and sum(map(len, functions.values())) > 100
    forms = list(nestings(names[0])) + list(nestings(server[0]))
    refused = 0
    for number, good in functions.items():
        for place, argument in enumerate(good):
            takes_files = isinstance(argument, dict | list)
            hostile = [{"path": name, **META} for name in names] + forms if takes_files else forms
            for form in hostile if takes_files else hostile[::5]:
                data = [*good[:place], form, *good[place + 1 :]]
                status = visitor.join(number, data)
                assert status == 400, (status, number, place, form)
                refused += 1
    assert refused > 3000 and server[1] == []


def test_what_else_is_said_of_a_file_is_not_believed(visitor, canary, server):
    """An upload of the visitor's own, with the canary as everything but its path."""
    for said in (str(canary), server[0]):
        file = {"path": visitor.upload_path, "url": said, "orig_name": said, "mime_type": said}
        for number, good in visitor.functions().items():
            if not any(isinstance(argument, dict | list) for argument in good):
                continue
            data = [
                [file | META] if isinstance(a, list) else file | META if isinstance(a, dict) else a
                for a in good
            ]
            text = visitor.answer(number, data, event_data={"index": 0, **file, **META})
            assert "process_completed" in text
            assert MARK not in text and str(canary) not in text and server[0] not in text
    assert server[1] == []


def test_an_upload_belongs_to_the_session_that_named_it_first(visitor):
    number, good = next((n, g) for n, g in visitor.functions().items() if isinstance(g[-1:], list)
                        and any(isinstance(a, dict) for a in g))  # fmt: skip
    assert visitor.join(number, good) == 200
    assert visitor.join(number, good, session="somebody-else") == 400
    assert visitor.join(number, good) == 200


@pytest.mark.parametrize(
    "more",
    [
        {"fn_index": 10**6}, {"fn_index": -1}, {"fn_index": "0"}, {"fn_index": True},
        {"session_hash": "../x"}, {"session_hash": ""}, {"session_hash": None},
        {"session_hash": "a" * 65}, {"batched": True}, {"simple_format": True},
        {"api_name": "/features"}, {"trigger_id": "x"}, {"data": "x"}, {"data": [None] * 300},
    ],
)  # fmt: skip
def test_a_call_that_the_page_does_not_make_is_refused(visitor, more):
    number, good = next(iter(visitor.functions().items()))
    body = {"data": good, "fn_index": number, "session_hash": "visitor"} | more
    status, text = visitor.ask("POST", f"{API}/queue/join", body)
    assert status == 400 and json.loads(text)["detail"]


def test_values_that_a_field_cannot_have_are_refused_and_leave_the_log_alone(visitor, app):
    """A traceback for each would fill the disk."""
    before, refused = len(app.log), 0
    for number, good in visitor.functions().items():
        for place, argument in enumerate(good):
            wrong = {
                float: (-1, 1e300, True, "1", None),
                int: (-1, 10**15, True, "1", None),
                bool: (0, None, "x"),
                str: (1, None, True),
                type(None): (0, "x", True),
            }.get(type(argument), ("x", 1, True))
            for value in wrong:
                data = [*good[:place], value, *good[place + 1 :]]
                assert visitor.join(number, data) == 400, (number, place, value)
                refused += 1
    events = [n for n, good in visitor.functions().items() if not good]
    for number in events:
        for index in (-1, 10**9, None, "0", 1.0, True):
            if visitor.join(number, [], event_data={"index": index}) == 200:
                visitor.ask("GET", f"{API}/queue/data?session_hash={visitor.session}")
    assert refused > 300 and len(events) > 2
    assert "Traceback" not in "".join(app.log[before:])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"data": NaN}'])
def test_what_is_no_call_is_refused_in_a_line(visitor, body):
    answer = httpx.post(f"{visitor.url}{API}/queue/join", content=body)
    assert answer.status_code == 400 and len(answer.json()["detail"]) < 200


@pytest.mark.parametrize(
    "value", [[[[]]] * 30_000, [1] * 120_000, [{"path": 1}] * 24_000, [{"path": "a"}] * 17_000],
    ids=["lists", "numbers", "wrong files", "files"],
)  # fmt: skip
def test_validation_of_a_call_stops_at_its_first_error(value):
    """150 KB took 1.9 s, during which nobody was answered."""
    with pytest.raises(ValidationError) as caught:
        _Call.model_validate({"data": [value, value], "fn_index": 0, "session_hash": "a"})
    assert caught.value.error_count() < 10  # of one value, one for each kind there is


def test_a_call_names_no_more_files_than_a_request_has_and_leaves_none_behind(visitor):
    number, good = next(
        (n, g) for n, g in visitor.functions().items() if g and isinstance(g[-1], list)
    )
    folder = Path(good[-1][0]["path"]).parents[1]
    before = {path for path in folder.iterdir() if path.is_file()}
    assert visitor.join(number, [*good[:-1], good[-1] * 65]) == 413
    assert "process_completed" in visitor.answer(number, [*good[:-1], good[-1] * 3])
    assert {path for path in folder.iterdir() if path.is_file()} <= before


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("multipart/form-data; boundary=b", 200),
        ("multipart/form-data; boundary=b; charset=UTF-8", 200),
        ("multipart/form-data; boundary=b; charset=undefined", 400),
        ("multipart/form-data; boundary=b; charset=" + "x" * 5000, 400),
        ("multipart/form-data", 400),
        ("application/x-www-form-urlencoded", 400),
    ],
)
def test_an_upload_is_a_form_in_utf_8(visitor, kind, status):
    """Python keeps the name of every charset it was asked for, and one of them is a trap."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="\xff.png"\r\n\r\n'
        b"x\r\n--b--\r\n"
    )
    answer = httpx.post(f"{visitor.url}{API}/upload", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status


def test_a_call_has_few_bytes(visitor):
    answer = httpx.post(f"{visitor.url}{API}/queue/join", content=b" " * 300_000)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "name",
    ["../../x.png", "..", ".", "../", "/etc/x.png", "C:\\x\\y.png", "a" * 400 + ".png", "\u202ex",
     "%2e%2e%2fx.png", "a\nb.png", ".bashrc", "a#b?c.png", " "],
)  # fmt: skip
def test_an_upload_stays_where_it_was_put(visitor, name):
    path = Path(visitor.upload(name, b"data"))
    folder = Path(visitor.upload_path).parents[1]
    assert path.parents[1] == folder and path.read_bytes() == b"data"
    status, text = visitor.ask("GET", f"{API}/file={quote(str(path))}")
    assert (status, text) == (200, "data")


def test_what_was_uploaded_runs_nowhere(visitor):
    """A page of somebody's is not shown as one of the server's own."""
    path = visitor.upload("a.html", b"<script>alert(1)</script>")
    answer = httpx.get(f"{visitor.url}{API}/file={path}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/config", f"{API}/info", f"{API}/queue/join"])
def test_no_other_origin_is_given_leave_to_read(visitor, path):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS", "POST"):
        answer = httpx.request(method, f"{visitor.url}{path}", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_nothing_was_asked_of_the_canary_s_server(server: tuple[str, list[str]]):
    assert server[1] == []
