"""The Gradio demo: one file a tab, assembled by `build`.

Torch-free, and no request leaves the visitor's machine for anywhere but the server: no analytics,
no fonts from elsewhere. Gradio takes the looks of a page where it is started, not where it is
built, so both ways of starting it get them from here:

    build(client).launch(**LAUNCH)
    gradio.mount_gradio_app(app, build(client), path="/", **LAUNCH)
"""

from __future__ import annotations

import gradio as gr

from serving.client import Local
from serving.demo import two_views

TITLE = "AugSelf: features that know how a picture was changed"
INTRODUCTION = (
    "Two views of one photograph go through the encoder; from their features alone the model says "
    "how view b was cropped, mirrored and coloured differently from view a."
)
THEME = gr.themes.Default(
    primary_hue="teal",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(
    # Darker than the theme's own, for a contrast of at least 4.5 with what lies behind.
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    body_text_color_subdued="*neutral_500",
    block_label_text_color="*neutral_600",
    block_info_text_color="*neutral_600",
)
LAUNCH = {
    "theme": THEME,
    "footer_links": ["api", "settings"],
    "run_history": False,
    "max_file_size": "20mb",
    "show_error": False,  # ours are shown all the same; a bug's text is not for visitors
}
FREQUENCY, AGE = 600, 3600  # seconds: pictures older than an hour are deleted every ten minutes


def build(client: Local) -> gr.Blocks:
    """The whole page over one model."""
    gr.set_static_paths(two_views.FOLDER)
    page = gr.Blocks(title="AugSelf Hub", analytics_enabled=False, delete_cache=(FREQUENCY, AGE))
    with page:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        two_views.tab(page, client)
    return page
