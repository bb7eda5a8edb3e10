"""The files and sessions of the page: bounds, ages and owners."""

from __future__ import annotations

import asyncio
import contextlib
import io
import stat
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("gradio")

from serving.demo import files as files_module
from serving.demo import mounted, sessions
from serving.demo.files import Files
from serving.http.late_demo import private_folder
from serving.inference.client import ModelClient
from serving.inference.engine import Engine
from serving.limits import Limits

JOIN = "/gradio_api/queue/join"


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 100_000)


def upload(files: Files, size: int, name: str = "a.jpg") -> str:
    return files.upload(io.BytesIO(bytes(size)), name)


def test_the_oldest_uploads_make_room(files):
    paths = [upload(files, 30_000) for _ in range(3)]
    assert paths[0] in files  # named again: the second is the oldest now
    paths.append(upload(files, 30_000))
    assert [path in files for path in paths] == [True, False, True, True]
    assert [Path(path).exists() for path in paths] == [True, False, True, True]
    assert files.bytes == on_disk(files.folder) == 90_000


def test_empty_uploads_take_room_too(files):
    """An entry and a folder are not free: 100,000 bytes hold twelve of 8192."""
    paths = [upload(files, 0) for _ in range(50)]
    assert sum(path in files for path in paths) == 12
    assert len(list(files.folder.iterdir())) == 12


def test_one_file_larger_than_the_folder_leaves_nothing_else(files):
    first, second = upload(files, 10), upload(files, 200_000)
    assert first not in files and second in files


def test_examples_stay_and_are_nobody_s(files, tmp_path):
    source = tmp_path / "example.jpg"
    source.write_bytes(b"example")
    path = files.shipped(source)
    for _ in range(5):
        upload(files, 90_000)
    assert path in files and files.claim(path, "a") and files.claim(path, "b")
    assert files.shipped(source) == path and Path(path).name == "example.jpg"


def test_an_upload_has_one_owner_and_ends_with_the_session(files):
    path, other = upload(files, 10), upload(files, 10)
    assert files.claim(path, "a") and files.claim(path, "a") and not files.claim(path, "b")
    assert not files.claim(f"{path} ", "a") and not files.claim(str(files.folder), "a")
    files.end("a")
    assert path not in files and not Path(path).exists() and other in files


def test_what_nobody_names_is_deleted_unless_its_page_is_open(files, monkeypatch):
    path, held = upload(files, 10), upload(files, 10)
    assert files.claim(held, "open")
    files.sweep(())
    assert path in files
    monkeypatch.setattr(files_module, "SECONDS", -1)
    files.sweep({"open"})
    assert path not in files and held in files
    files.sweep(())
    assert held not in files and on_disk(files.folder) == files.bytes == 0


def test_many_threads_at_once_leave_the_books_right(files):
    def work() -> None:
        for n in range(40):
            upload(files, 9000)
            files.keep(bytes([n]) * 9000, "picture.png")
            files.sweep(())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.bytes == on_disk(files.folder) <= files.capacity


def test_two_sessions_tables_are_two_files_though_they_hold_the_same(files):
    tables = [files.keep(b"table", "features.parquet", owner) for owner in ("a", "b")]
    files.end("a")
    assert [table in files for table in tables] == [False, True]


def test_the_same_picture_of_ours_is_one_file_that_content_does_not_tell(files, tmp_path):
    (tmp_path / "other").mkdir()
    assert files.keep(b"a", "a.png") == files.keep(b"a", "a.png") != files.keep(b"b", "a.png")
    other = Files(tmp_path / "other", 100)
    assert (
        Path(other.keep(b"a", "a.png")).parent.name != Path(files.keep(b"a", "a.png")).parent.name
    )


@pytest.fixture
def page(tiny_model):
    engine = Engine(tiny_model, "cpu", threads=1)
    models = {"tiny": ModelClient(engine, Limits(), engine.features, engine.predict)}
    with private_folder() as folder:
        yield mounted(models, None, Limits(), folder)


async def joined(client: httpx.AsyncClient, page, session: str) -> int:
    """The cheapest call: Reset."""
    number = next(n for n, f in page._page.fns.items() if [type(b).__name__ for b in f.inputs]
                  == ["Dropdown"] and len(f.outputs) > 15)  # fmt: skip
    body = {"data": ["tiny"], "fn_index": number, "session_hash": session}
    return (await client.post(JOIN, json=body)).status_code


def kept(page) -> list[int]:
    return [len(one) for one in page._sessions._kept]


async def drained(page) -> None:
    while page._page._queue.event_ids_to_events:
        await asyncio.sleep(0.05)


def within(page, scenario) -> None:
    async def run() -> None:
        async with page.running():
            transport = httpx.ASGITransport(app=page)
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
                await scenario(client)

    asyncio.run(run())


def test_fresh_sessions_take_the_place_of_the_oldest(page, monkeypatch):
    monkeypatch.setattr(sessions, "MOST", 5)

    async def scenario(client: httpx.AsyncClient) -> None:
        for number in range(40):
            assert await joined(client, page, f"s{number}") in (200, 503)  # 64 may wait
        await drained(page)
        await page._sessions.sweep()
        assert max(kept(page)) <= 5 and kept(page)[0] == 5
        assert "s39" in page._sessions and "s0" not in page._sessions
        assert (await client.get("/gradio_api/queue/data?session_hash=s0")).status_code == 404
        assert len(page._page._queue.event_analytics) <= 1

    within(page, scenario)


def test_sessions_whose_page_is_open_are_kept_and_new_ones_told_to_wait(page, monkeypatch):
    monkeypatch.setattr(sessions, "MOST", 2)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert await joined(client, page, "a") == await joined(client, page, "b") == 200
        with page._sessions.connected("a", page=True), page._sessions.connected("b", page=True):
            assert await joined(client, page, "c") == 503
        assert await joined(client, page, "c") == 200
        assert "b" not in page._sessions and "a" in page._sessions  # b's page was closed first

    within(page, scenario)


def test_a_session_ends_with_its_page_and_its_uploads_with_it(page, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "_GRACE", 0.0)

    async def scenario(client: httpx.AsyncClient) -> None:
        path = page._files.upload(io.BytesIO(b"data"), "a.jpg")
        with page._sessions.connected("a", page=True):
            assert await joined(client, page, "a") == 200 and page._files.claim(path, "a")
            await drained(page)
            await page._sessions.sweep()
            assert path in page._files and kept(page)[0] == 1
        await asyncio.sleep(0.01)
        await page._sessions.sweep()
        assert path not in page._files and max(kept(page)) == 0

    within(page, scenario)


def test_the_folder_is_private_and_gone_afterwards(launch, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "made"))
    app = launch("--model", str(tiny_model))
    try:
        (folder,) = (tmp_path / "made").iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        form = {"files": ("a.png", picture.getvalue())}
        (path,) = httpx.post(f"{app.url}/gradio_api/upload", files=form).json()
        assert Path(path).read_bytes() == picture.getvalue()
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    finally:
        assert app.stop() == 0
    assert list((tmp_path / "made").iterdir()) == []


def streams(app: Any, stack: contextlib.ExitStack, sessions: list[str]) -> list[int]:
    """A heartbeat of each of these sessions, which stays open: their statuses."""
    found = []
    for session in sessions:
        client = stack.enter_context(httpx.Client(base_url=app.url, timeout=20))
        url = f"/gradio_api/heartbeat/{session}"
        found.append(stack.enter_context(client.stream("GET", url)).status_code)
    return found


def test_streams_of_one_visitor_or_of_many_leave_places_for_all_others(launch, tiny_model):
    """A heartbeat has no end, and any name of a session opens one."""
    app = launch("--model", str(tiny_model), "--limit", "connections=30")
    try:
        with contextlib.ExitStack() as stack:
            assert streams(app, stack, ["mine"] * 6) == [200] * 4 + [503] * 2
            many = streams(app, stack, [f"s{number}" for number in range(40)])
            assert many == [200] * 11 + [503] * 29
            for path in ("/health/live", "/v1/models", "/"):
                assert httpx.get(f"{app.url}{path}").status_code == 200
        until = time.monotonic() + 20  # those that are closed make room
        while time.monotonic() < until:
            with contextlib.ExitStack() as stack:
                if streams(app, stack, ["another"]) == [200]:
                    return
            time.sleep(0.2)
        raise AssertionError("no stream may be opened any more")
    finally:
        assert app.stop() == 0


def test_uploads_beyond_the_folder_s_room_push_the_oldest_out(launch, tiny_model, tmp_path,
                                                             monkeypatch):  # fmt: skip
    """Eight bodies of 100 kB fit."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app = launch("--model", str(tiny_model), "--limit", "body_bytes=100000")
    try:
        (folder,) = tmp_path.iterdir()
        before = on_disk(folder)
        for _ in range(30):
            form = {"files": ("a.png", bytes(90_000))}
            answer = httpx.post(f"{app.url}/gradio_api/upload", files=form)
            assert answer.status_code == 200
        assert 0 < on_disk(folder) - before <= 800_000
    finally:
        app.stop()


def test_pages_are_made_one_at_a_time_and_sent_together(page, monkeypatch):
    """Each is 20 ms during which nobody is answered; a reader that is slow holds nobody up."""
    made, now, sent = [], [0], []

    async def gradio(scope, receive, send):
        now[0] += 1
        made.append(now[0])
        await asyncio.sleep(0)
        now[0] -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    async def ask(slow: bool) -> None:
        async def send(message):
            if slow:
                await asyncio.sleep(60)
            sent.append(message.get("body"))

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await page(scope, None, send)

    async def visit() -> None:
        slow = asyncio.create_task(ask(True))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*(ask(False) for _ in range(20))), 5)
        slow.cancel()

    monkeypatch.setattr(page, "_app", gradio)
    asyncio.run(visit())
    assert made == [1] * 21 and sent.count(b"page") == 20
