"""docs/use-with.md: each block is run on real pictures, where what it imports is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from javascript import node_modules
from PIL import ExifTags, Image

from augself_hub import Encoder, export
from augself_hub.card import render
from augself_hub.hub import EMBEDDED
from augself_hub.preprocess import Preprocessing, load

PAGE = Path(__file__).parents[2] / "docs/use-with.md"
PARTS = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)
FIRST = re.findall(r"```python\n(.*?)```", PARTS[0], re.DOTALL)[0]
BLOCKS = {
    name: re.findall(r"```(?:python|js)\n(.*?)```", text, re.DOTALL)[0]
    for name, text in zip(PARTS[1::2], PARTS[2::2], strict=True)
}
NEAREST = ("usearch", "FAISS", "LanceDB")


@pytest.fixture(scope="module")
def place(tmp_path_factory, photo_folder, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("use")
    (folder / "PHOTOS").symlink_to(photo_folder)
    (folder / "MODEL").symlink_to(tiny_model)
    shutil.copy(sorted(photo_folder.rglob("*.jpg"))[0], folder / "query.jpg")
    return folder


def printed(block: str, place: Path) -> str:
    command = [sys.executable, "-c", f"{FIRST}\n{block}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [n for n in BLOCKS if not n.startswith(("Clients", "transf"))])
def test_a_block_runs(name, place, photo_folder):
    for package in re.findall(r"^(?:import|from) (\w+)", BLOCKS[name], re.M):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    said = printed(BLOCKS[name], place)
    first = sorted(photo_folder.rglob("*.jpg"))[0].relative_to(photo_folder).as_posix()
    if name in NEAREST:  # the query is in the folder
        assert re.findall(r"'(.*?)'", said)[0] == first and said.count("'") == 6
    elif name == "scikit-learn":
        assert said.strip() == first.split("/")[0]
    elif name == "sentence-transformers":
        assert said == "(1, 128)\n"
    elif name.startswith("TensorBoard"):
        rows = (place / "projector/00000/default/tensors.tsv").read_text().splitlines()
        names = (place / "projector/00000/default/metadata.tsv").read_text().splitlines()
        assert len(rows) == len(names) == 40 and first in names
    else:
        assert "even" in said and "20" in said


def test_the_probe_learns_no_class_of_an_image_without_one(place, photo_folder, tmp_path):
    for kind in ("even", "odd"):
        shutil.copytree(photo_folder / kind, tmp_path / "PHOTOS" / kind)
    shutil.copy(place / "query.jpg", tmp_path / "PHOTOS/stray.jpg")
    shutil.copy(place / "query.jpg", tmp_path)
    block = f"{BLOCKS['scikit-learn']}\nprint((table.labels == -1).sum(), probe.classes_)"
    assert printed(block, tmp_path).splitlines()[1:] == ["1 [0 1]"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sentence-transformers", "vector = features"),
        ("TensorBoard's projector", "vector = Encoder().features([pictures[0].convert('RGB')])"),
    ],
)
def test_a_photograph_of_a_phone_is_upright(name, more, tmp_path, photographs):
    """Of Exif orientation 6; features of it lying on its side have a cosine of 0.85 with ours."""
    for package in re.findall(r"^(?:import|from) (\w+)", BLOCKS[name], re.M):
        pytest.importorskip(package)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "PHOTOS").mkdir()
    for path in (tmp_path / "query.jpg", tmp_path / "PHOTOS/phone.jpg"):
        Image.open(photographs[1]).save(path, exif=exif, quality=95)
    (tmp_path / "MODEL").symlink_to(EMBEDDED)
    cosine = "a, b = vector[0], query[0]\nprint(a @ b / ((a @ a) * (b @ b)) ** 0.5)"
    said = printed(f"{BLOCKS[name]}\n{more}\n{cosine}", tmp_path)
    assert float(said.splitlines()[-1]) > 0.999


def test_the_block_of_transformers_js_runs(place, tiny_model):
    """In Node; a photograph that needs no resizing gives our features."""
    (place / "node_modules").symlink_to(node_modules())
    (place / "MODEL").unlink()
    export(shutil.copytree(tiny_model, place / "MODEL"), format="transformers.js")
    side = Preprocessing.from_folder(tiny_model).size
    Image.fromarray(load(place / "query.jpg", side)).save(place / "query.jpg", quality=95)
    block = BLOCKS["transformers.js"] + "console.log(JSON.stringify([...features.data]));"
    (place / "block.mjs").write_text(block)
    done = subprocess.run(["node", "block.mjs"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    width, values = done.stdout.splitlines()
    (of_card,) = re.findall(r"```js\n(.*?)```", render(place / "MODEL", "MODEL"), re.DOTALL)
    here = 'import { env } from "@huggingface/transformers"; env.localModelPath = ".";'
    shutil.copy(place / "query.jpg", place / "a.jpg")
    (place / "card.mjs").write_text(f"{here}\n{of_card}\nconsole.log(features.dims[1]);")
    by_card = subprocess.run(["node", "card.mjs"], cwd=place, capture_output=True, text=True)
    assert by_card.stdout.strip() == width, by_card.stderr
    expected = Encoder(tiny_model).features([place / "query.jpg"])[0]
    assert int(width) == len(expected)
    np.testing.assert_allclose(json.loads(values), expected, atol=2e-2 * np.abs(expected).max())
