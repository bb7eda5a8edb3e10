"""The demo below a prefix of somebody's site, in a real browser."""

from __future__ import annotations

import os
import re
import shutil

import httpx
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api", reason="pip install 'augself-hub[dev]'")

from playwright.sync_api import sync_playwright

from serving.demo.visitors import EXAMPLES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)


def test_the_page_asks_for_nothing_outside_its_prefix(launch, tiny_model):
    app = launch("--model", str(tiny_model), "--root-path", "/our/images")
    inside, asked, failed = f"{app.url}/our/images/", [], []
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=root)
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.on("request", lambda request: asked.append(request.url))
            page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
            page.goto(inside.rstrip("/"))  # leads to the one with a slash
            page.locator("p.seen").wait_for()
            assert page.url == inside
            page.get_by_role("tab", name="Your pictures").click()
            field = page.get_by_role("tabpanel").locator("input[type=file]:not([disabled])").last
            field.set_input_files(list(EXAMPLES[:3]))
            page.get_by_role("group", name="a map of 3 pictures").wait_for()
            with page.expect_download() as download:
                page.get_by_role("link", name=re.compile("KB")).last.click()
            assert download.value.suggested_filename == "features.parquet"
            link = page.locator("nav a", has_text="API")
            assert link.evaluate("link => link.href") == f"{inside}docs"
            browser.close()
        outside = [
            u for u in asked if not u.startswith((inside, inside.rstrip("/"), "data:", "blob:"))
        ]
        assert outside == [] and failed == []
        # Of a proxy that takes the prefix off and names its own host.
        config = httpx.get(f"{app.url}/config", headers={"X-Forwarded-Host": "site.example"}).json()
        assert config["root"] == "http://site.example/our/images"
    finally:
        assert app.stop() == 0
