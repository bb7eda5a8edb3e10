"""The Gradio demo: one file a tab, assembled by `build`.

Torch-free, and no request leaves the visitor's machine for anywhere but the server: no analytics,
no fonts from elsewhere, and the page's own policy forbids the browser all others. Gradio takes the
looks of a page where it is mounted, not where it is built:

    gradio.mount_gradio_app(app, build(models, files), path="/", **looks(limits))
"""

from __future__ import annotations

import contextlib
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from serving.demo import neighbours, the_model, what_changed, your_pictures
from serving.demo.files import Files
from serving.demo.gallery import of_table, shipped
from serving.demo.routes import Routes
from serving.demo.sessions import MOST
from serving.demo.visitors import AT_ONCE, Models
from serving.limits import Limits

TITLE = "AugSelf: features that keep colour and place"
INTRODUCTION = (
    "A network that learns from pictures without labels sees each of them cropped and recoloured, "
    "and learns to ignore both. AugSelf also makes it say <b>what was changed</b>, so that its "
    "features, the numbers it describes a picture by, keep the colours and where things are."
)
PAPER = "https://arxiv.org/abs/2111.09613"
THEME = gr.themes.Default(
    primary_hue="slate",
    secondary_hue="slate",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(
    # Darker than the theme's own, for a contrast of at least 4.5 with what lies behind.
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    link_text_color_dark="#60a5fa",
    body_text_color_subdued="*neutral_500",
    block_label_text_color="*neutral_600",
    block_info_text_color="*neutral_600",
)
LABELS = {"source": "Code", "repository": "Code", "documentation": "Docs"}
HEADER = """
header { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between;
  gap: 4px 24px; }
h1 { margin: 0; font-size: 1.6rem; font-weight: 700; color: var(--body-text-color); }
nav { display: flex; gap: 20px; }
nav a { color: var(--link-text-color); text-decoration: underline; }
p { margin: 8px 0 0; font-size: 1.05rem; line-height: 1.5; color: var(--body-text-color); }
"""
# Whatever a card or a package might ask for, the browser asks this server or nobody.
HEAD = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'self\' data: blob: '
    "'unsafe-inline' 'unsafe-eval'\">"
)
CSS = """
.tab-container button.selected { color: var(--body-text-color) !important; }
.block.hide-container > .html-container { padding: 0; }
.card td, .card th { word-break: normal; overflow-wrap: anywhere; min-width: 90px; }
.icon-button[aria-label="common.upload"] { display: none; }
.token.string { color: #3f6212 !important; }
.token.builtin { color: #3f6212 !important; }
.dark .token.string { color: #a3c76a !important; }
.dark .token.builtin { color: #a3c76a !important; }
"""
# Gradio names its upload buttons otherwise than they are labelled, and empty fields need no name.
JS = """() => new MutationObserver(() =>
  document.querySelectorAll('button.upload-container[aria-label], div.empty[aria-label]')
    .forEach((element) => element.removeAttribute('aria-label'))
).observe(document.body, {childList: true, subtree: true})"""
WAITING = 64  # calls; beyond it they get 503
FOLDER_BODIES = 8  # of the largest size fit into the folder of files


def looks(limits: Limits) -> dict[str, Any]:
    """How the page is mounted."""
    return {
        "theme": THEME,
        "head": HEAD,
        "css": CSS,
        "js": JS,
        "footer_links": [],  # programs have /v1, described at /docs
        "run_history": False,
        "max_file_size": limits.body_bytes,
        "mcp_server": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": False,  # ours are shown all the same; a bug's text is not for visitors
    }


def header() -> str:
    """The title, what it is about, and the links that there are. Code and documentation are where
    the package's own metadata says."""
    links = {"Paper": PAPER, "API": "docs"}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.metadata("augself-hub").get_all("Project-URL") or ():
            name, _, url = line.partition(", ")
            links |= {LABELS[name.lower()]: url} if name.lower() in LABELS else {}
    shown = "".join(
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener">{name}</a>'
        for name, url in links.items()
    )
    return f"<header><h1>{TITLE}</h1><nav>{shown}</nav></header><p>{INTRODUCTION}</p>"


def build(models: Models, files: Files, table: str | None = None) -> gr.Blocks:
    """The whole page.

    Args:
        models: what is served; the first is picked when the page opens.
        files: where the page's files are.
        table: a FeatureTable's folder whose pictures are searched; None: the examples.

    Raises:
        UsageError: the table comes from no served model, or its pictures are not there.
    """
    gallery = shipped() if table is None else of_table(Path(table), list(models.values()))
    names = list(models)
    page = gr.Blocks(title="AugSelf Hub", analytics_enabled=False)
    with page:
        gr.HTML(header(), css_template=HEADER, apply_default_css=False)
        picker = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        with gr.Tabs(overflow_behavior="wrap"):
            neighbours.tab(page, models, gallery)
            what_changed.tab(models, files, picker)
            your_pictures.tab(models, files, picker, gallery)
            the_model.tab(models, picker)
    return page


def mounted(
    models: Models, table: str | None, limits: Limits, folder: Path, root_path: str = ""
) -> Routes:
    """The page as an ASGI application.

    Args:
        folder: for its files; empty, of mode 0700, and GRADIO_TEMP_DIR.
        root_path: what stands before its paths, see `ServerSettings`.
    """
    files = Files(folder, FOLDER_BODIES * limits.body_bytes)
    page = build(models, files, table)
    page.queue(default_concurrency_limit=AT_ONCE, max_size=WAITING)
    page.state_session_capacity = MOST
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(outer, page, path="/", root_path=root_path, **looks(limits))
    # Only launch() says so, and Gradio's own checks of what a path may name are off until then.
    page.has_launched = True
    return Routes(app, page, files, limits)
