"""The tab "Your pictures": what changed between two, a map and neighbours of several, a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from pyarrow import parquet

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.features import MODEL_KEY
from augself_hub.hub import EMBEDDED
from augself_hub.images import Item
from serving.demo import answer
from serving.demo.files import Files
from serving.demo.gallery import Gallery, nearest
from serving.demo.map import MAP_JS, STYLE, drawn, principal
from serving.demo.picks import picked, picks
from serving.demo.visitors import (
    BUSY,
    EXAMPLES,
    FOLDER,
    PRIVATE,
    Models,
    data_url,
    pixels_url,
    problem,
)
from serving.extraction.tables import PLAIN, feature_table
from serving.inference.client import ModelClient

SENTENCE = (
    "Drop two pictures of one thing to read what changed, or several to see which are alike. They "
    "stay on this server and are deleted when the page is closed."
)
FILE = "features.parquet"
THUMBNAIL, WHOLE = 144, 360  # pixels
NEAR = 5  # neighbours of a picture among those dropped
GALLERY = 8  # and in the gallery, where one or two are dropped
PAIRS = tuple(
    (str(FOLDER / f"{name}.jpg"), str(FOLDER / f"pairs/{name}-{change}.jpg"))
    for name, change in (("dogs", "darker"), ("autumn", "greener"), ("drum", "gray"))
)
LINES = """\
#### The same in Python

```python
from augself_hub import Encoder

encoder = Encoder({model})
{last}
```
"""


@dataclass(frozen=True)
class Read:
    """What was dropped, as far as it can be read.

    Args:
        names: of the pictures, files' names. images: (S, S, 3) uint8 each. thumbnails: data: URLs.
        errors: {id, reason} of every file that is no picture.
    """

    names: list[str]
    images: list[np.ndarray]
    thumbnails: list[str]
    errors: list[dict[str, str]]


def tab(models: Models, files: Files, picker: gr.Dropdown, gallery: Gallery) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    with gr.Tab("Your pictures"):
        gr.Markdown(SENTENCE)
        with gr.Row():
            dropped = gr.File(
                file_count="multiple",
                label="Drop pictures here",
                height=150,
                scale=2,
                min_width=280,
            )
            with gr.Column(scale=1, min_width=240):
                edited = [(Path(b).stem.replace("-", ", "), Image.open(b)) for _, b in PAIRS]
                pairs = picks("or try a photograph and its edited copy", edited, pressed=None)
                examples = gr.Button("or six photographs")
        shown = gr.HTML(css_template=f"{answer.STYLE}{STYLE}", js_on_load=MAP_JS,
                        apply_default_css=False)  # fmt: skip
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                lines = gr.Markdown()
            table = gr.File(label="The features, to take home", interactive=False, height=90)

    def asked(name: str, given: list[dict[str, Any]] | None, request: gr.Request) -> Any:
        """A function of its own: Gradio looks for the request in its signature."""
        paths = [file["path"] for file in given or ()]
        return compute(models, files, gallery, name, paths, request.session_hash)

    outputs = [shown, table, lines]
    ask = {"fn": asked, "inputs": [picker, dropped], "outputs": outputs, **BUSY}
    ask["preprocess"] = False  # it makes a file on disk for each that is named, and leaves it
    dropped.upload(api_name="your_pictures", **ask)

    def pair(event: gr.EventData) -> list[str]:
        return [files.shipped(Path(path)) for path in PAIRS[picked(event, len(PAIRS))]]

    shipped = [files.shipped(Path(path)) for path in EXAMPLES]
    for taken in (
        pairs.click(pair, None, dropped, **PRIVATE, **BUSY),
        examples.click(lambda: shipped, None, dropped, **PRIVATE, **BUSY),
    ):
        taken.success(**PRIVATE, **ask)
    gr.on([dropped.delete, picker.input], **PRIVATE, **ask)
    dropped.clear(lambda: (None,) * 3, None, outputs, **PRIVATE, **BUSY)


def compute(
    models: Models,
    files: Files,
    gallery: Gallery,
    name: str,
    paths: Sequence[str],
    session: str | None,
) -> tuple[Any, ...]:
    """Dropped files -> what is shown, the table's file, and lines of code.

    What is no picture is named, and why; the table is there as long as the session.
    """
    if not paths:
        return None, None, None
    model = models[name]
    try:
        read = read_files(model, [Path(path) for path in paths])
        features = model.features(read.images)
        parts = [_left_out(read)]
        if len(read.names) == 2:
            parts.append(_pair(model, read))
        if len(read.names) <= 2:
            parts += [_alike(gallery, model, n, f)
                      for n, f in zip(read.names, features, strict=True)]  # fmt: skip
        if len(read.names) > 2:
            points, share = principal(features)
            near = [nearest(own, features, n, NEAR) for n, own in enumerate(features)]
            parts.append(drawn(points, share, read.names, read.thumbnails, near))
    except AugSelfError as error:
        return problem(str(error)), None, None
    table = files.keep(written(read, features, model.sha256), FILE, session)
    return "".join(parts), table, code(read.names, model)


def _left_out(read: Read) -> str:
    """What is no picture, and why."""
    if not read.errors:
        return ""
    items = (
        f"<li><code>{escape(e['id'])}</code> was left out: {escape(e['reason'])}</li>"
        for e in read.errors
    )
    return f'<ul class="left-out">{"".join(items)}</ul>'


def _pair(model: ModelClient, read: Read) -> str:
    """Two pictures side by side, and what takes the first to the second."""
    views = "".join(
        f'<figure><div class="view"><img src="{whole}" alt="{escape(name, quote=True)}">'
        f'<img class="seen" src="{pixels_url(seen)}" alt="as the model sees it"></div>'
        f"<figcaption><b>{letter}</b> {escape(name)}</figcaption></figure>"
        for letter, name, whole, seen in zip("ab", read.names, read.thumbnails, read.images,
                                             strict=True)
    )  # fmt: skip
    told = answer.told_html(answer.ask(model, read.images))
    return f'<div class="pair">{views}<div>{told}</div></div>'


def _alike(gallery: Gallery, model: ModelClient, name: str, features: np.ndarray) -> str:
    """The nearest pictures of the gallery."""
    near = nearest(features, gallery.features(model), None, GALLERY)
    items = (
        f'<li><img src="{data_url(gallery.open(int(n)), THUMBNAIL)}" '
        f'alt="{escape(gallery.names[int(n)], quote=True)}"></li>'
        for n in near
    )
    return (
        f"<section><h3>Nearest to {escape(name)} in the gallery</h3><ol>{''.join(items)}</ol>"
        "</section>"
    )


def read_files(model: ModelClient, paths: Sequence[Path]) -> Read:
    """Every file that is a picture, ready for the model; why the others are none.

    Raises:
        AugSelfError: more files than the limit, or no picture among them.
    """
    if len(paths) > model.limits.items:
        raise AugSelfError(too_many(len(paths), model.limits.items))
    read, side = Read([], [], [], []), WHOLE if len(paths) <= 2 else THUMBNAIL
    for path in paths:
        try:
            with model.picture(path.read_bytes()) as image:
                seen, thumbnail = model.prepare(image), data_url(image, side)
        except ImageError as error:
            read.errors.append({"id": path.name, "reason": str(error)})
            continue
        read.names.append(path.name)
        read.images.append(seen)
        read.thumbnails.append(thumbnail)
    if not read.names:
        raise AugSelfError(f"{read.errors[0]['id']}: {read.errors[0]['reason']}")
    return read


def too_many(count: int, most: int) -> str:
    return (
        f"{count} files are more than the {most} one request may have: "
        "drop fewer, or use augself extract"
    )


def written(read: Read, features: np.ndarray, model: str) -> bytes:
    """One part of a FeatureTable, as `augself extract` writes it."""
    items = [Item((name,), ()) for name in read.names]
    named = {MODEL_KEY: model}
    table = feature_table(items, features, PLAIN).replace_schema_metadata(named)
    file = io.BytesIO()
    parquet.write_table(table, file, write_page_checksum=True)
    return file.getvalue()


def _bare(name: str) -> str:
    """A foreign name between backticks stays a name."""
    return name.replace("`", "'")


def code(names: Sequence[str], model: ModelClient) -> str:
    """Three lines that do the same with the same files."""
    of = "" if model.folder.resolve() == EMBEDDED.resolve() else repr(_bare(model.name))
    some = [repr(_bare(name)) for name in names[:2]]
    if len(names) == 2:
        last = f"print(encoder.difference({', '.join(some)}))"
    else:
        last = f"features = encoder.features([{', '.join(some)}{', ...' * (len(names) > 2)}])"
    return LINES.format(model=of, last=last)
