"""The page as a whole: bad uploads, cards, what it asks of others, what it imports."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import handle_file

from serving.demo.the_model import card
from serving.demo.visitors import EXAMPLES, FOLDER
from serving.demo.your_pictures import PAIRS

ROOT = Path(__file__).parents[3]
NEUTRAL = [0.5, 0.5, 1.0, 1.0, False, 1.0, 1.0, 1.0, 0.0, False]


def written(folder: Path, images: dict[str, bytes]) -> list[dict]:
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return [handle_file(str(folder / name)) for name in images]


def test_every_bad_image_is_told_by_name_and_every_odd_one_answered(
    page, bad_images, odd_images, tmp_path
):
    """All image rows in one drop."""
    bad = {name: data for name, (data, _) in bad_images.items()}
    files = written(tmp_path, bad | odd_images)
    shown, _, _ = page.predict("tiny", files, api_name="/your_pictures")
    assert f"{len(odd_images)} pictures;" in shown
    assert shown.count("<image") == len(odd_images)
    for name, (_, message) in bad_images.items():
        assert re.search(f"<code>{re.escape(name)}</code> was left out: .*{message}", shown), name


@pytest.mark.parametrize("place", ["/what_changed", "/your_pictures"])
def test_every_field_says_what_is_wrong_where_the_picture_would_be(
    page, bad_images, tmp_path, place
):
    """All image rows one by one, and a good one after each third."""
    asked = {
        "/what_changed": lambda file: (file, *NEUTRAL * 2),
        "/your_pictures": lambda file: ([file],),
    }[place]
    good = page.predict("tiny", *asked(handle_file(EXAMPLES[1])), api_name=place)
    for number, (name, (data, message)) in enumerate(bad_images.items()):
        (bad,) = written(tmp_path, {name: data})
        shown = page.predict("tiny", *asked(bad), api_name=place)[0]
        assert 'class="problem" role="alert"' in shown, name
        assert re.search(message, shown, re.IGNORECASE), (name, shown)
        if number % 3 == 0:
            again = page.predict("tiny", *asked(handle_file(EXAMPLES[1])), api_name=place)
            assert again[0] == good[0]


def test_every_odd_picture_is_shown(page, odd_images, tmp_path):
    for name, file in zip(odd_images, written(tmp_path, odd_images), strict=True):
        stage, told = page.predict("tiny", file, *NEUTRAL * 2, api_name="/what_changed")
        assert "Undone" in stage and "The model says" in told, name


def test_an_upload_larger_than_the_limit_is_refused(app):
    answer = httpx.post(
        f"{app.url}/gradio_api/upload", files={"files": ("a.jpg", bytes(33 * 2**20))}
    )
    assert answer.status_code == 413 and httpx.get(app.url).status_code == 200


def test_no_event_is_dropped_while_another_is_answered(page):
    """A second picture picked, or a file dropped, while the first one's answer is under way."""
    events = page.config["dependencies"]
    assert len(events) > 10
    assert [event["api_name"] for event in events if event["trigger_mode"] != "always_last"] == []


def test_an_unknown_model_is_refused_before_gradio_can_log_it(page, app):
    before = len(app.log)
    for name in ("nobody", "", "tiny ", "x" * 1000):
        with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
            page.predict(name, None, *NEUTRAL * 2, api_name="/what_changed")
    time.sleep(0.2)
    assert "Traceback" not in "".join(app.log[before:])


def test_the_card_asks_nobody_for_pictures(tmp_path):
    """Its own curves are put into the page, whatever else becomes its description."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Title\n\n![curves](curves.png) ![far](https://far.example/x.png)"
    )
    (tmp_path / "curves.png").write_bytes(b"png")
    text = card(SimpleNamespace(folder=tmp_path))
    assert "license" not in text and "# Title" not in text
    assert "![curves](data:image/png;base64,cG5n)" in text
    assert "far.example" not in text and "far" in text
    (tmp_path / "README.md").unlink()
    assert card(SimpleNamespace(folder=tmp_path)) == "This model has no card."


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["![" * 300_000, "![](" * 200_000, "![a](" + "b" * 900_000])
def test_a_card_is_looked_through_once(tmp_path, text):
    """400 KB of beginnings of pictures took minutes, at each pick of the model."""
    (tmp_path / "README.md").write_text(text)
    started = time.process_time()
    assert len(card(SimpleNamespace(folder=tmp_path))) > 300_000
    assert time.process_time() - started < 2


def test_a_strangers_card_is_bounded(tmp_path):
    model = SimpleNamespace(folder=tmp_path)
    (tmp_path / "README.md").write_bytes(b"caf\xe9 \xff")
    assert card(model).startswith("caf")
    (tmp_path / "README.md").write_text("![c](curves.png)" * 1000)
    (tmp_path / "curves.png").write_bytes(bytes(3000))
    assert card(model) == f"![c](data:image/png;base64,{'A' * 4000})" + "c" * 999
    (tmp_path / "curves.png").write_bytes(bytes(2**23 + 1))
    assert card(model) == "c" * 1000
    (tmp_path / "README.md").write_bytes(bytes(2**20 + 1))
    assert card(model) == "This model's card has more than 1048576 bytes and is not shown."


def test_the_page_fetches_nothing_from_elsewhere(page):
    html = httpx.get(page.src).text
    theme = httpx.get(f"{page.src}theme.css").text
    assert not re.findall(r'(?:src|href)="https?://', html)
    assert "url(http" not in theme and "@import" not in theme
    assert page.config["stylesheets"] == [] and page.config["analytics_enabled"] is False


def test_the_examples_are_small_bare_and_licensed():
    licenses = (FOLDER / "LICENSES.md").read_text()
    for path in {Path(name) for pair in PAIRS for name in pair} | set(map(Path, EXAMPLES)):
        image = Image.open(path)
        assert path.name in licenses and not image.getexif()
        assert path.stat().st_size < 100_000 and max(image.size) in (480, 640)


def test_the_demo_needs_no_torch():
    code = "import sys, app, serving.demo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_with_a_token_every_route_of_the_demo_asks_for_it(launch, tiny_model, monkeypatch):
    monkeypatch.setenv("AUGSELF_TOKEN", "secret")
    app = launch("--model", str(tiny_model), auth=("visitor", "secret"))
    try:
        for method, path in (
            *(("GET", path) for path in ("/", "/config", "/theme.css", "/static/img/logo.svg")),
            *(("GET", f"/gradio_api/{path}") for path in ("info", "file=/x", "heartbeat/a")),
            *(("POST", f"/gradio_api/{path}") for path in ("upload", "queue/join", "run/x")),
            ("GET", "/gradio_api/queue/data?session_hash=a"),
        ):
            for wrong in ({}, {"auth": ("secret", "wrong")}):
                answer = httpx.request(method, app.url + path, **wrong)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Basic")
        form = {"files": ("a.jpg", Path(EXAMPLES[0]).read_bytes())}
        for right in ({"auth": ("", "secret")}, {"headers": {"Authorization": "Bearer secret"}}):
            assert httpx.get(f"{app.url}/config", **right).status_code == 200
            assert httpx.get(f"{app.url}/v1/models", **right).status_code == 200
            answer = httpx.post(f"{app.url}/gradio_api/upload", files=form, **right)
            assert answer.status_code == 200 and len(answer.json()) == 1
    finally:
        app.stop()
