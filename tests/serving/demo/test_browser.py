"""The page in a real browser, used as a visitor uses it. Needs Playwright and a Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api", reason="pip install 'augself-hub[dev]'")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from serving.demo.visitors import EXAMPLES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
TABS = ("Two views", "Two photographs", "Neighbours", "Features", "The model")
SECONDS = 60  # for anything to appear, on a busy machine
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=root)
        yield browser
        browser.close()


@pytest.fixture
def visit(app, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page; afterwards it must have asked nobody else and have thrown nothing."""
    pages: list[Page] = []
    asked: list[str] = []
    thrown: list[str] = []

    def open_page(width: int = 1280, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(app.url)
        page.locator("th.kind").first.wait_for()
        pages.append(page)
        return page

    expect.set_options(1000 * SECONDS)
    yield open_page
    for page in pages:
        page.context.close()
    assert [url for url in asked if not url.startswith((app.url, "data:", "blob:"))] == []
    assert thrown == []


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def differences(page: Page) -> Locator:
    """The table of true and predicted differences."""
    return page.locator("table", has=page.locator("th.kind"))


def test_two_views(visit):
    page = visit()
    first = differences(page).text_content()
    page.get_by_role("button", name="Surprise me").click()
    expect(differences(page)).not_to_have_text(first)
    page.get_by_label("Gray").first.check()
    expect(page.get_by_text("not visible in a gray picture").first).to_be_visible()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.get_by_text("not visible in a gray picture")).to_have_count(0)
    brightness = differences(page).locator("tr", has_text="brightness")
    expect(brightness).to_contain_text(re.compile(r"0\.00\s*0\.00"))
    for alt in ("view a, the reference", "view b", "view a with two boxes"):
        assert page.get_by_alt_text(alt).first.evaluate("image => image.naturalWidth") >= 256
    expect(page.get_by_text("Drag the handle")).to_be_visible()
    before = page.get_by_alt_text("the photograph with the boxes").get_attribute("src")
    page.get_by_role("button", name="brushes").click()
    expect(page.get_by_alt_text("the photograph with the boxes")).not_to_have_attribute(
        "src", before
    )


def test_two_photographs(visit):
    page = visit()
    tab(page, "Two photographs")
    expect(page.get_by_text("once there are two pictures")).to_be_visible()
    page.get_by_role("button", name="dogs-darker").click()
    expect(page.get_by_text("B is darker: 0.7")).to_be_visible()
    expect(page.get_by_text("log ratio").and_(page.locator("small:visible")).first).to_be_visible()
    tab(page, "Two views")
    tab(page, "Two photographs")
    expect(page.get_by_text("B is darker: 0.7")).to_be_visible()


def test_neighbours_by_keyboard(visit):
    page = visit()
    page.get_by_role("tab", name="Neighbours").focus()
    page.keyboard.press("Enter")
    expect(page.locator("ol li")).to_have_count(16)
    expect(page.locator("ol li img").first).to_have_attribute("alt", re.compile("fig"))
    page.get_by_role("button", name=re.compile("^autumn")).first.focus()
    page.keyboard.press("Enter")
    expect(page.locator('button[aria-pressed="true"]:visible')).to_have_attribute(
        "aria-label", re.compile("autumn")
    )
    expect(page.locator("ol li img").first).to_have_attribute("alt", re.compile("autumn"))
    expect(page.get_by_role("heading", name="tiny")).to_be_visible()


def test_features(visit, tmp_path):
    page = visit()
    tab(page, "Features")
    page.locator("input[type=file]:not([disabled])").last.set_input_files(list(EXAMPLES[:3]))
    expect(page.get_by_text("3 pictures. The map's two directions hold")).to_be_visible()
    expect(page.get_by_role("img", name="a map of 3 pictures")).to_be_visible()
    expect(page.get_by_text("import httpx")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("KB")).last.click()
    assert download.value.suggested_filename == "features.parquet"


def test_the_model_is_picked_everywhere(visit):
    page = visit()
    tab(page, "The model")
    expect(page.get_by_role("heading", name="How to use it")).to_be_visible()
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="tiny").click()
    expect(page.locator("dd").first).to_have_text("tiny")
    expect(page.get_by_role("link", name="the API is described at /docs")).to_have_attribute(
        "href", re.compile("docs$")
    )
    tab(page, "Two views")
    expect(differences(page)).not_to_contain_text("±")


def test_bad_uploads_are_explained_in_the_page_and_it_lives_on(visit, bad_images, tmp_path):
    page = visit()
    for name, (data, _) in bad_images.items():
        (tmp_path / name).write_bytes(data)
    for name in ("cut.jpg", "tiff.jpg", "huge.png"):
        page.get_by_label("Clear").first.click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        expect(page.get_by_text(re.compile(bad_images[name][1])).first).to_be_visible()
    page.get_by_role("button", name="brushes").click()
    expect(page.locator("table").first).to_contain_text("brushes")
    tab(page, "Features")
    files = [*(str(tmp_path / name) for name in bad_images), EXAMPLES[0]]
    page.locator("input[type=file]:not([disabled])").last.set_input_files(files)
    for name, (_, message) in bad_images.items():
        line = page.locator("li", has=page.get_by_text(name, exact=True))
        expect(line).to_contain_text(re.compile(message))
    expect(page.get_by_role("img", name="a map of 1 pictures")).to_be_visible()


def test_with_a_token_as_password_the_page_works(launch, tiny_model, browser, monkeypatch):
    """The browser asks its user once, and sends it with uploads and events, too."""
    monkeypatch.setenv("AUGSELF_TOKEN", "secret")
    app = launch("--model", str(tiny_model), auth=("", "secret"))
    context = browser.new_context(http_credentials={"username": "x", "password": "secret"})
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.goto(app.url)
        differences(page).first.wait_for()
        tab(page, "Features")
        field = page.locator("input[type=file]:not([disabled])").last
        field.set_input_files(list(EXAMPLES[:2]))
        page.get_by_role("img", name="a map of 2 pictures").wait_for()
    finally:
        context.close()
        app.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone(visit, scheme):
    page = visit(380, scheme)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, name
    ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) > 384 if scheme == "dark" else True


def test_the_browser_itself_refuses_to_ask_others(visit):
    page = visit()
    refused = page.evaluate(
        """() => new Promise((told) => {
          document.addEventListener('securitypolicyviolation', (event) => told(event.blockedURI));
          fetch('https://far.example/picture.png').catch(() => {});
        })"""
    )
    assert refused.startswith("https://far.example")


def test_sliders_move_by_keyboard(visit):
    page = visit()
    before = differences(page).text_content()
    slider = page.get_by_role("slider", name=re.compile("Brightness")).first
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    expect(differences(page)).not_to_have_text(before)


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script, from the npm registry."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine: axe-core cannot be had")
    done = subprocess.run([npm, "pack", "axe-core@4"], cwd=folder, capture_output=True)
    packed = next(folder.glob("axe-core-*.tgz"), None)
    if done.returncode or packed is None:
        pytest.skip("axe-core cannot be had from the npm registry")
    with tarfile.open(packed) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, axe, scheme):
    page = visit(1280, scheme)
    page.evaluate(axe)
    found = []
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(1500)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            (name, v["id"], v["nodes"][0]["html"][:160])
            for v in result["violations"]
            if v["impact"] in ("serious", "critical")
        ]
    assert found == []
