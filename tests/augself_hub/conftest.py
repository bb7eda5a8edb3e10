"""A small Hub on this machine, for the real client: what it asks for while it pushes and pulls.

It keeps repositories as lists of commits, files by their sha256, and a record of every request. The
requests and answers are those of huggingface_hub's hf_api.py, _commit_api.py and lfs.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from augself_hub import hub
from augself_hub.folder import write_manifest

WRITE, READ = "hf_may_write", "hf_may_read"
LARGE = (".safetensors", ".onnx", ".png")  # what the Hub keeps as LFS objects


def hash_of(path: str, data: bytes) -> str:
    """What the Hub calls a file's content: sha256 of a large one, git's own hash of another."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", content: Any = None, **headers: str) -> None:
        self.status, self.headers = status, headers
        self.content = content or {"error": f"status {status}"}
        if code:
            self.headers |= {"X-Error-Code": code}


@dataclass
class Repository:
    """Commits, oldest first: (commit's hash, path -> content)."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(b"commit %d" % len(self.commits)).hexdigest()
        self.commits.append((name, files))
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision == "main":
            return self.commits[-1]
        try:
            return next(c for c in self.commits if c[0] == self.tags.get(revision, revision))
        except StopIteration:
            raise Answer(404, "RevisionNotFound") from None

    def labels(self) -> list[str]:
        """The Hub's tags of a model: those of its card, and its licence."""
        card = self.commits[-1][1].get("README.md", b"---\n{}\n---").decode()
        metadata = yaml.safe_load(card.split("---")[1])
        return [*metadata.get("tags", []), f"license:{metadata.get('license')}"]


class LocalHub(ThreadingHTTPServer):
    """The Hub.

    Attributes:
        requests: "METHOD /path" of everything that was asked for.
        trouble: [pattern, status, times]: requests that fail instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/cdn"  # another host, as the Hub's is
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.trouble: list[list[Any]] = []

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name].commits[-1][1]

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]


class Handler(BaseHTTPRequestHandler):
    """One request: the first route that matches answers it."""

    protocol_version = "HTTP/1.1"
    server: LocalHub

    def handle_one(self) -> None:
        self.url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.url.path}")
        try:
            self.fail_if_told_to()
            for method, pattern, route in ROUTES:
                found = re.fullmatch(pattern, unquote(self.url.path))
                if self.command in method.split() and found:
                    return self.answer(200, *route(self, *found.groups()))
            raise Answer(404)
        except Answer as answer:
            self.answer(answer.status, answer.content, answer.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def fail_if_told_to(self) -> None:
        for trouble in self.server.trouble:
            pattern, status, times = trouble
            if times > 0 and re.search(pattern, self.server.requests[-1]):
                trouble[2] -= 1
                raise Answer(status)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    # -- Who may do what ---------------------------------------------------------------------------

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> None:
        if self.token() != WRITE:
            raise Answer(403 if self.token() == READ else 401)

    def repository(self, name: str) -> Repository:
        """As the real Hub: what is not there and what may not be seen look alike."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.token()):
            raise Answer(404 if self.token() else 401, "RepoNotFound")
        return found

    # -- Pushing -----------------------------------------------------------------------------------

    def create(self) -> tuple[Any, ...]:
        self.may_write()
        order = json.loads(self.body)
        name = f"{order['organization']}/{order['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            raise Answer(409, content=url)
        repository = Repository(private=order.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repositories[name] = repository
        return (url,)

    def validate_yaml(self) -> tuple[Any, ...]:
        text = json.loads(self.body)["content"]
        metadata = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
        if not isinstance(metadata, dict):
            raise Answer(400)
        return ({"errors": [], "warnings": []},)

    def preupload(self, name: str, revision: str) -> tuple[Any, ...]:
        self.may_write()
        there = self.repository(name).at(revision)[1]
        answer: list[dict[str, Any]] = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "lfs" if path.endswith(LARGE) else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in there:
                answer[-1]["oid"] = hash_of(path, there[path])
        return ({"files": answer},)

    def batch(self, name: str) -> tuple[Any, ...]:
        self.may_write()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{self.server.url}/lfs/verify"},
            }
            there = wanted["oid"] in self.server.objects
            objects.append(wanted if there else {**wanted, "actions": actions})
        return ({"transfer": "basic", "objects": objects},)

    def upload(self, oid: str) -> tuple[Any, ...]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400)
        self.server.objects[oid] = self.body
        return ({}, {"ETag": oid})

    def verify_upload(self) -> tuple[Any, ...]:
        order = json.loads(self.body)
        if len(self.server.objects.get(order["oid"], b"")) != order["size"]:
            raise Answer(404)
        return ({},)

    def commit(self, name: str, revision: str) -> tuple[Any, ...]:
        self.may_write()
        repository = self.repository(name)
        head, files = repository.at(revision)
        files = dict(files)
        for line in self.body.splitlines():
            key, value = (order := json.loads(line))["key"], order["value"]
            if key == "header" and value.get("parentCommit", head) != head:
                raise Answer(412)
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        new = repository.commit(files)
        return ({"commitUrl": f"{self.server.url}/{name}/commit/{new}", "commitOid": new},)

    # -- Pulling -----------------------------------------------------------------------------------

    def info(self, name: str, revision: str | None) -> tuple[Any, ...]:
        repository = self.repository(name)
        commit, files = repository.at(revision or "main")
        siblings = [{"rfilename": path} for path in files]
        return (
            {"id": name, "sha": commit, "private": repository.private, "siblings": siblings,
             "tags": repository.labels()},
        )  # fmt: skip

    def tree(self, name: str, revision: str) -> tuple[Any, ...]:
        rows = []
        for path, data in self.repository(name).at(revision)[1].items():
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
            row["oid"] = hash_of(path, data)
            if path.endswith(LARGE):
                row["lfs"] = {"oid": row["oid"], "size": len(data), "pointerSize": 134}
            rows.append(row)
        return (rows,)

    def resolve(self, name: str, revision: str, path: str) -> tuple[Any, ...]:
        commit, files = self.repository(name).at(revision)
        if path not in files:
            raise Answer(404, "EntryNotFound", X_Repo_Commit=commit)
        data, headers = files[path], {"X_Repo_Commit": commit}
        oid = hash_of(path, data)
        if not path.endswith(LARGE):
            return data, {**headers, "ETag": f'"{oid}"'}
        self.server.objects[oid] = data
        headers |= {"X_Linked_ETag": f'"{oid}"', "X_Linked_Size": str(len(data))}
        raise Answer(302, **headers, Location=f"{self.server.storage}/{oid}")

    def content(self, oid: str) -> tuple[Any, ...]:
        return self.server.objects[oid], {"ETag": f'"{oid}"'}

    def models(self) -> tuple[Any, ...]:
        (wanted,) = parse_qs(self.url.query)["filter"]
        found = {n: r.labels() for n, r in self.server.repositories.items() if not r.private}
        return ([{"id": n, "tags": labels} for n, labels in found.items() if wanted in labels],)


_NAME, _REST = r"([\w.-]+/[\w.-]+)", r"([^?]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{_NAME}/preupload/{_REST}", Handler.preupload),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.upload),
    ("POST", "/lfs/verify", Handler.verify_upload),
    ("POST", f"/api/models/{_NAME}/commit/{_REST}", Handler.commit),
    ("GET", "/api/models", Handler.models),
    ("GET", f"/api/models/{_NAME}(?:/revision/{_REST})?", Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/{_REST}", Handler.tree),
    ("HEAD GET", f"/{_NAME}/resolve/([^/]+)/{_REST}", Handler.resolve),
    ("HEAD GET", "/cdn/([0-9a-f]{64})", Handler.content),
]


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The Hub of this process for one test, with an empty cache and a token that may write."""
    server = LocalHub()
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants + "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "cache"))
    scanned = "huggingface_hub.utils._cache_manager.HF_HUB_CACHE"
    monkeypatch.setattr(scanned, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    yield server
    server.shutdown()
    server.server_close()


_GRAPHS: dict[tuple[str, ...], bytes] = {}


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test before has had exported is not traced again, which takes 2 to 4 s a graph.

    The same weights give the same bytes: test_export.py asserts it, without this.
    """
    from augself_hub.modeling import export

    real = export._export

    def once(graph: Any, inputs: dict[str, Any], outputs: list[str], path: Path) -> None:
        digest = hashlib.sha256()
        for value in graph.state_dict().values():
            digest.update(value.numpy().tobytes())
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        key = (repr(graph), repr(outputs), repr(shapes), digest.hexdigest())
        if key not in _GRAPHS:
            real(graph, inputs, outputs, path)
            _GRAPHS[key] = path.read_bytes()
        path.write_bytes(_GRAPHS[key])

    monkeypatch.setattr(export, "_export", once)


@pytest.fixture
def model_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model with results, to publish and to spoil; its graphs are cut short."""
    folder = shutil.copytree(tiny_model, tmp_path / "mine")
    for graph in (folder / "onnx").iterdir():
        graph.write_text("graph")
    result = {"task": "kNN", "name": "STL-10", "metric": "accuracy", "value": 0.5}
    evaluation = {"protocol": "k = 20", "results": [result]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "training_log.json").write_text("[]")
    write_manifest(folder)
    return folder


@pytest.fixture
def published(local_hub: LocalHub, model_folder: Path) -> LocalHub:
    """The Hub with that model as somebody/tiny."""
    hub.push(model_folder, "somebody/tiny")
    return local_hub
