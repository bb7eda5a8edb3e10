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
TABS = ("Neighbours", "What changed?", "Your pictures", "The model")
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
        page.locator("ol button").first.wait_for()
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


def said(page: Page) -> Locator:
    """What the model and the truth say of a and b, in words."""
    return page.locator("p.line:visible")


def dropped(page: Page) -> Locator:
    """The field of the tab that is open."""
    return page.get_by_role("tabpanel").locator("input[type=file]:not([disabled])").last


def test_the_story_is_told_by_the_first_page_and_one_click_tells_another(visit):
    page = visit()
    line = page.locator("p.seen")
    expect(line).to_have_text(
        re.compile(r"With AugSelf, the nearest pictures share \d+% of this picture's colours; "
                   r"without, \d+%. Over all \d+ pictures: \d+% and \d+%.")
    )  # fmt: skip
    assert page.locator("section li button:visible").count() == 16
    first = page.locator("section li button").first.get_attribute("data-index")
    before = line.text_content()
    page.locator("button[aria-pressed=false]").nth(3).click()
    expect(line).not_to_have_text(before)
    before = page.locator("figure img").first.get_attribute("src")
    page.locator("section li button").nth(2).click()  # a neighbour is asked in its turn
    expect(page.locator("figure img").first).not_to_have_attribute("src", before)
    before = page.locator("figure img").first.get_attribute("src")
    page.get_by_role("button", name="A random picture").click()
    expect(page.locator("figure img").first).not_to_have_attribute("src", before)
    assert first is not None


def test_neighbours_by_keyboard(visit):
    page = visit()
    button = page.locator("button[aria-pressed=false]").nth(1)
    name = button.get_attribute("aria-label")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator('button[aria-pressed="true"]:visible')).to_have_attribute(
        "aria-label", name
    )
    expect(page.locator("figure img").first).to_have_attribute("alt", name)


def test_served_models_are_compared_when_they_are_picked(visit):
    page = visit()
    page.get_by_label("Second row: features of").click()
    page.get_by_role("option", name="tiny").click()
    expect(page.get_by_role("heading", name="Features of tiny")).to_be_visible()


def test_what_changed(visit):
    page = visit()
    tab(page, "What changed?")
    expect(said(page)).to_have_count(2)
    first = said(page).last.text_content()
    page.get_by_role("button", name="Surprise me").click()
    expect(said(page).last).not_to_have_text(first)
    page.get_by_label("Gray").first.check()
    expect(page.get_by_text("saturation and hue (a picture is gray)")).to_be_visible()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(said(page).last).to_have_text("In truth: b shows no clear difference from a.")
    page.locator("summary").click()
    brightness = page.locator("tr", has_text="brightness")
    expect(brightness.first).to_contain_text(re.compile(r"0\.00\s*0\.00"))
    for alt in ("a, the reference", "b, cut and recoloured", "b taken back to a"):
        assert page.get_by_alt_text(alt).evaluate("image => image.naturalWidth") >= 400
    before = page.get_by_alt_text("a, the reference").get_attribute("src")
    page.get_by_role("button", name="brushes").click()
    expect(page.get_by_alt_text("a, the reference")).not_to_have_attribute("src", before)


def test_what_b_was_taken_back_to_is_uncovered_by_the_handle(visit):
    page = visit()
    tab(page, "What changed?")
    handle = page.get_by_role("slider", name="how much of a covers b taken back")
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    over = page.locator(".undo img.over")
    assert "60%" in over.evaluate("image => getComputedStyle(image).clipPath")


def test_two_pictures_say_what_changed(visit):
    page = visit()
    tab(page, "Your pictures")
    page.get_by_role("button", name="dogs, darker").click()
    expect(page.get_by_text("b is darker (0.7 times as bright)")).to_be_visible()
    tab(page, "Neighbours")
    tab(page, "Your pictures")
    expect(page.get_by_text("b is darker (0.7 times as bright)")).to_be_visible()


def test_a_map_of_your_pictures(visit):
    page = visit()
    tab(page, "Your pictures")
    dropped(page).set_input_files(list(EXAMPLES))
    expect(page.get_by_text("6 pictures; near means alike")).to_be_visible()
    pictures = page.locator(".map g")
    expect(pictures).to_have_count(6)
    pictures.nth(3).focus()
    expect(page.locator("aside b")).to_have_text(pictures.nth(3).get_attribute("aria-label"))
    expect(page.locator("aside li")).to_have_count(5)
    before = [g.get_attribute("transform") for g in pictures.all()]
    page.get_by_role("button", name="zoom in").click()
    assert [g.get_attribute("transform") for g in pictures.all()] != before
    page.get_by_role("button", name="whole map").click()
    assert page.locator(".map g").first.get_attribute("transform").split(".")[0] == \
        before[0].split(".")[0]  # fmt: skip
    width = page.locator(".map svg").evaluate("svg => svg.getBoundingClientRect().width")
    assert width > 900
    expect(page.get_by_text("from augself_hub import Encoder")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("KB")).last.click()
    assert download.value.suggested_filename == "features.parquet"


def test_the_model_is_picked_everywhere(visit):
    page = visit()
    tab(page, "The model")
    expect(page.get_by_text("How well it says what changed")).to_be_visible()
    expect(page.get_by_role("heading", name="How to use it")).to_be_hidden()
    page.get_by_role("button", name="The whole model card").click()
    expect(page.get_by_role("heading", name="How to use it")).to_be_visible()
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="tiny").click()
    expect(page.locator("dd").first).to_have_text("tiny")
    tab(page, "What changed?")
    page.get_by_role("button", name="Surprise me").click()
    page.locator("summary").click()
    expect(page.locator("tr", has_text="brightness").first).not_to_contain_text("±")


def test_the_header_has_the_links_and_gradio_s_own_are_gone(visit):
    page = visit()
    links = {a.text_content(): a.get_attribute("href") for a in page.locator("nav a").all()}
    assert links["Paper"] == "https://arxiv.org/abs/2111.09613" and links["API"] == "docs"
    assert page.evaluate("fetch('docs').then((answer) => answer.status)") == 200
    for text in ("Use via API", "Built with Gradio", "Settings"):
        assert page.get_by_text(text).count() == 0
    page.goto(page.url.split("?")[0] + "?view=api")
    page.wait_for_load_state()
    assert page.url.endswith("/docs")


def test_the_page_is_there_in_time(visit):
    """Bounds with room for a busy machine; research/demo-models.md has what was measured."""
    page = visit()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 6000


def test_bad_uploads_are_explained_in_the_page_and_it_lives_on(visit, bad_images, tmp_path):
    """A sentence where the pictures would be, and none that waits for ever."""
    page = visit()
    for name, (data, _) in bad_images.items():
        (tmp_path / name).write_bytes(data)
    tab(page, "What changed?")
    for name in ("cut.jpg", "tiff.jpg", "huge.png"):
        page.get_by_role("tabpanel").get_by_label("Clear").first.click()
        dropped(page).set_input_files(tmp_path / name)
        expect(page.get_by_role("alert").filter(has_text=re.compile(bad_images[name][1], re.I))
               ).to_be_visible()  # fmt: skip
    page.get_by_role("button", name="brushes").click()
    expect(page.get_by_alt_text("a, the reference")).to_be_visible()
    tab(page, "Your pictures")
    files = [*(str(tmp_path / name) for name in bad_images), EXAMPLES[0]]
    dropped(page).set_input_files(files)
    for name, (_, message) in bad_images.items():
        line = page.locator("li", has=page.get_by_text(name, exact=True))
        expect(line).to_contain_text(re.compile(message))
    expect(page.get_by_role("heading", name="Nearest to fig.jpg in the gallery")).to_be_visible()
    assert page.locator(".progress-text:visible, .eta-bar:visible").count() == 0


def test_two_tabs_and_a_page_that_is_loaded_again_lose_nothing_of_each_other(visit):
    one, other = visit(), visit()
    for page, name in ((one, "dogs, darker"), (other, "drum, gray")):
        tab(page, "Your pictures")
        page.get_by_role("button", name=name).click()
    expect(one.get_by_text("b is darker")).to_be_visible()
    expect(other.get_by_text("(a picture is gray)")).to_be_visible()
    other.reload()
    other.locator("ol button").first.wait_for()
    tab(one, "Neighbours")
    tab(one, "Your pictures")
    expect(one.get_by_text("b is darker")).to_be_visible()


def test_with_a_token_as_password_the_page_works(launch, tiny_model, browser, monkeypatch):
    """The browser asks its user once, and sends it with uploads and events, too."""
    monkeypatch.setenv("AUGSELF_TOKEN", "secret")
    app = launch("--model", str(tiny_model), auth=("", "secret"))
    context = browser.new_context(http_credentials={"username": "x", "password": "secret"})
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.goto(app.url)
        tab(page, "Your pictures")
        dropped(page).set_input_files(list(EXAMPLES[:3]))
        page.get_by_role("group", name="a map of 3 pictures").wait_for()
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


def test_below_a_root_path_nothing_is_asked_of_the_root(launch, tiny_model, browser):
    app = launch("--model", str(tiny_model), "--root-path", "/hub")
    context = browser.new_context()
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
        page.goto(f"{app.url}/hub/")
        page.locator("section li button").first.wait_for()
        tab(page, "What changed?")
        said(page).last.wait_for()
        tab(page, "Your pictures")
        page.get_by_role("button", name="or six photographs").click()
        page.locator(".map").wait_for()
        assert page.evaluate("fetch('docs').then((answer) => answer.status)") == 200
        inside = (f"{app.url}/hub/", "data:", "blob:")
        assert [url for url in asked if not url.startswith(inside)] == failed == []
    finally:
        context.close()
        app.stop()


def test_sliders_move_by_keyboard(visit):
    page = visit()
    tab(page, "What changed?")
    expect(said(page)).to_have_count(2)
    before = said(page).last.text_content()
    slider = page.get_by_role("slider", name=re.compile("Brightness")).first
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    expect(said(page).last).not_to_have_text(before)


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
        if name == "What changed?":
            expect(said(page)).to_have_count(2)
            page.locator("summary").click()
        if name == "Your pictures":
            page.get_by_role("button", name="or six photographs").click()
            page.get_by_role("group", name="a map of 6 pictures").wait_for()
        page.wait_for_timeout(1500)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            (name, v["id"], v["nodes"][0]["html"][:160])
            for v in result["violations"]
            if v["impact"] in ("serious", "critical")
        ]
    assert found == []
