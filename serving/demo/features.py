"""The tab "Features": drop pictures, take their features away, see them on a map."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.route_utils import get_request_origin
from pyarrow import parquet

from augself_hub.errors import AugSelfError, ImageError
from augself_hub.features import MODEL_KEY
from augself_hub.images import Item
from serving.demo.files import Files
from serving.demo.map import STYLE, drawn, principal
from serving.demo.visitors import BUSY, EXAMPLES, PRIVATE, Models, data_url, readable
from serving.extraction.tables import PLAIN, feature_table
from serving.inference.client import Local

SENTENCE = (
    "Drop pictures and get their features as a table. The map shows them by the two directions in "
    "which they differ most: what is close is alike to the model. A frame's colour is the first "
    "word of the file's name."
)
FILE = "features.parquet"
THUMBNAIL = 96
PATH = "/gradio_api/queue/join"  # where events arrive; what is before it is this server
_WORD = re.compile(r"[^\W\d_]+")

LINES = """\
#### The same without this page

```sh
curl {files} {url}/v1/embeddings
```

```python
import httpx

pictures = [("image", (name, open(name, "rb"))) for name in {names}]
answer = httpx.post("{url}/v1/embeddings", data={{"model": "{model}"}}, files=pictures)
features = [row["embedding"] for row in answer.json()["data"]]
```

Of a whole folder, as the same kind of table: `augself extract PHOTOS --output features`
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


def tab(models: Models, files: Files, picker: gr.Dropdown) -> None:
    """Build the tab inside the page, which is open, and wire it."""
    with gr.Tab("Features"):
        gr.Markdown(SENTENCE)
        with gr.Row():
            dropped = gr.File(
                file_count="multiple",
                label="Drop pictures here",
                height=160,
                scale=3,
                min_width=280,
            )
            with gr.Column(scale=1, min_width=200):
                examples = gr.Button("Use the examples")
                table = gr.File(label="The table", interactive=False, height=90)
        told = gr.Markdown("*No pictures yet: the map, the table and the code appear here.*")
        shown = gr.HTML(css_template=STYLE, apply_default_css=False)
        lines = gr.Markdown()

    def asked(
        name: str, given: list[dict[str, Any]] | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """A function of its own: Gradio looks for the request in its signature."""
        if name not in models:
            raise gr.Error("there is no such model: pick one", print_exception=False)
        assert request.request is not None, "Gradio has called this without a request"
        url = str(get_request_origin(request.request, PATH))
        paths = [file["path"] for file in given or ()]
        yield from extract(models, files, name, paths, url, request.session_hash)

    outputs = [told, shown, table, lines]
    answer = {"fn": asked, "inputs": [picker, dropped], "outputs": outputs, **BUSY}
    answer["preprocess"] = False  # it makes a file on disk for each that is named, and leaves it
    dropped.upload(api_name="features", **answer)
    shipped = [files.shipped(Path(path)) for path in EXAMPLES]
    taken = examples.click(lambda: shipped, None, dropped, **PRIVATE, **BUSY)
    taken.success(**PRIVATE, **answer)
    gr.on([dropped.delete, picker.input], **PRIVATE, **answer)
    dropped.clear(lambda: (None,) * 4, None, outputs, **PRIVATE, **BUSY)


def extract(
    models: Models,
    files: Files,
    name: str,
    paths: Sequence[str] | None,
    url: str,
    session: str | None,
) -> Iterator[tuple[Any, ...]]:
    """Dropped files -> what was read, the map, the table's file, and lines of code for `url`.

    The table is there as long as the session.

    Raises:
        gr.Error: too many files, none is a picture, or the server is full.
    """
    if not paths:
        yield None, None, None, None
        return
    model = models[name]
    with readable():
        read = read_files(model, [Path(path) for path in paths])
        features = model.features(read.images)
    points, share = principal(features)
    shown = drawn(points, read.names, [group(n) for n in read.names], read.thumbnails)
    lines = code(read.names, model.name, url)
    table = files.keep(written(read, features, model.sha256), FILE, session)
    yield summary(read, share), shown, table, lines


def read_files(model: Local, paths: Sequence[Path]) -> Read:
    """Every file that is a picture, ready for the model; why the others are none.

    Raises:
        AugSelfError: more files than the limit, or no picture among them.
    """
    if len(paths) > model.limits.items:
        raise AugSelfError(too_many(len(paths), model.limits.items))
    read = Read([], [], [], [])
    for path in paths:
        try:
            with model.picture(path.read_bytes()) as image:
                seen, thumbnail = model.prepare(image), data_url(image, THUMBNAIL)
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


def group(name: str) -> str:
    """dogs-02.jpg -> dogs: the first word of a name."""
    word = _WORD.search(Path(name).stem)
    return word[0].lower() if word else name


def summary(read: Read, share: float) -> str:
    """What was read, and what was not and why, in Markdown."""
    pictures = "1 picture" if len(read.names) == 1 else f"{len(read.names)} pictures"
    lines = [f"{pictures}. The map's two directions hold {share:.0%} of their differences."]
    lines += [f"- `{_bare(e['id'])}` was left out: {e['reason']}" for e in read.errors]
    return "\n".join(lines)


def _bare(name: str) -> str:
    """A foreign name between backticks stays a name."""
    return name.replace("`", "'")


def code(names: Sequence[str], model: str, url: str) -> str:
    """The lines that ask the server at `url` for the features of the same files."""
    some = [_bare(name) for name in names[:2]]
    files = " ".join(f'-F "image=@{name}"' for name in some)
    return LINES.format(files=f"-F model={model} {files}", names=some, model=model, url=url)
