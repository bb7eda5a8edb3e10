"""docs/examples: each program does what it says, on the embedded model and real photographs."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageEnhance
from transformers import AutoImageProcessor, AutoModelForImageClassification

from augself_hub import AugSelfModel, FeatureTable, hub
from augself_hub.augmentations.spec import HEADS
from augself_hub.preprocess import Preprocessing
from augself_hub.preprocess import load as load_image
from serving.extraction.pipeline import extract
from serving.extraction.tables import TableSettings
from serving.inference.engine import load

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
TILES, SIDE = 14, 96


@pytest.fixture(scope="session")
def classes(tmp_path_factory, photographs) -> Path:
    """Tiles of each photograph in a sub-folder of its name: six classes."""
    folder, random = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for photograph in photographs:
        image = Image.open(photograph).convert("RGB")
        (folder / photograph.stem).mkdir()
        for number in range(TILES):
            tile(image, random).save(folder / photograph.stem / f"{number}.png")
    return folder


def tile(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A square of half the short side or more."""
    side = int(random.uniform(0.5, 1) * min(image.size))
    left, top = (int(random.uniform(0, length - side)) for length in image.size)
    return image.resize((SIDE, SIDE), box=(left, top, left + side, top + side))


@pytest.fixture(scope="session")
def gallery(tmp_path_factory, classes) -> Path:
    """The table `augself extract` writes of them."""
    folder = tmp_path_factory.mktemp("tables") / "gallery"
    extract(classes, folder, load())
    return folder


@pytest.fixture
def run(capsys):
    """Run an example in this process: its arguments -> what it prints."""

    def call(name: str, *arguments: object) -> str:
        program = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        program["main"](*map(str, arguments))
        return capsys.readouterr().out

    return call


def test_a_linear_probe_tells_the_photographs_apart(run, gallery):
    first, *rest = run("linear_probe", gallery).splitlines()
    right, commonest = (
        float(part.split("%")[0]) for part in first.replace(",", ":").split(":")[1:]
    )
    assert right > 80 > commonest
    assert len(rest) == 6


def test_a_linear_probe_leaves_out_what_has_no_label(run, classes, tmp_path):
    """A picture beside the class folders has label -1: no class, and not the last one's name."""
    for name in ("dogs", "fig"):
        shutil.copytree(classes / name, tmp_path / "some" / name)
    shutil.copy(classes / "fig/0.png", tmp_path / "some/stray.png")
    extract(tmp_path / "some", tmp_path / "table", load())
    first, *rest = run("linear_probe", tmp_path / "table").splitlines()
    assert first.startswith(f"{2 * TILES // 4} test images")
    assert [line.split()[0] for line in rest] == ["dogs", "fig"]
    shutil.copytree(classes / "fig", tmp_path / "none")
    extract(tmp_path / "none", tmp_path / "unlabelled", load())
    with pytest.raises(SystemExit, match="has a label: sort them"):
        run("linear_probe", tmp_path / "unlabelled")


def test_retrieval_finds_each_tile_in_its_own_gallery(run, gallery):
    lines = run("retrieval", gallery, gallery, 2).splitlines()
    queries = [line for line in lines if not line.startswith(" ")]
    nearest = [line.split() for line in lines[1::3]]
    assert len(queries) == 6 * TILES
    assert [name for _, name in nearest] == queries
    assert all(cosine == "1.000" for cosine, _ in nearest)


def test_retrieval_refuses_tables_of_two_models(run, gallery, classes, tiny_model, tmp_path):
    extract(classes / "fig", tmp_path / "other", load(str(tiny_model)))
    with pytest.raises(SystemExit, match="from two models"):
        run("retrieval", gallery, tmp_path / "other")


def test_colour_search_finds_the_same_colours_or_those_asked_for(run, photographs, tmp_path):
    """Of each photograph another tile, and that tile darker by 0.6."""
    folder, random = tmp_path / "colours", np.random.default_rng(1)
    folder.mkdir()
    for photograph in photographs:
        image = Image.open(photograph).convert("RGB")
        query, other = tile(image, random), tile(image, random)
        query.save(folder / f"{photograph.stem}-query.png")
        other.save(folder / f"{photograph.stem}-same.png")
        ImageEnhance.Brightness(other).enhance(0.6).save(folder / f"{photograph.stem}-dark.png")
    extract(folder, tmp_path / "table", load())
    for wanted, first in ((), "same"), (["brightness=-0.5"], "dark"):
        right = 0
        for photograph in photographs:
            name = photograph.stem
            out = run("colour_search", tmp_path / "table", f"{name}-query.png", *wanted)
            found = [line.split()[-1] for line in out.splitlines()]
            own = [f for f in found if f.startswith(name)]
            right += own[0] == f"{name}-{first}.png"
        assert right >= 5


def test_fine_tuning_sees_a_photograph_of_a_phone_upright(photographs, tmp_path):
    """As this package does: by the stock processor, what it makes of the same file."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown a quarter turn clockwise
    (tmp_path / "class").mkdir()
    Image.open(photographs[0]).save(tmp_path / "class/phone.jpg", exif=exif)
    program = runpy.run_path(str(EXAMPLES / "finetune.py"))
    processor = AutoImageProcessor.from_pretrained(hub.EMBEDDED)
    ((seen, _),) = program["photographs"](str(tmp_path), processor)
    ours = load_image(tmp_path / "class/phone.jpg", Preprocessing.from_folder(hub.EMBEDDED).size)
    mean, std = (np.array(v) for v in (processor.image_mean, processor.image_std))
    off = np.abs(seen[0].permute(1, 2, 0).numpy() * std + mean - ours / 255)
    assert off.mean() < 0.01


def test_colour_search_takes_the_table_s_own_model_and_no_other(
    run, photo_folder, tiny_model, tmp_path
):
    tables = tmp_path / "tiny", tmp_path / "unit"
    extract(photo_folder / "even", tables[0], load(str(tiny_model)))
    extract(photo_folder / "even", tables[1], load(), TableSettings(normalize=True))
    query = FeatureTable.read(tables[0]).ids[0]
    assert len(run("colour_search", tables[0], query, f"model={tiny_model}").splitlines()) == 20
    for words, said in (
        ((tables[0], query), "the table is not of embedded: give the model it was made with"),
        ((tables[1], query), "features of length 1 are not what the heads learned"),
        ((tables[0], query, f"model={tiny_model}", "brightnes=1"), "brightnes: give brightness"),
    ):
        with pytest.raises(SystemExit, match=said):
            run("colour_search", *words)


@pytest.mark.slow
def test_a_model_is_fine_tuned_with_transformers_alone(run, classes, tmp_path):
    assert "augself" not in (EXAMPLES / "finetune.py").read_text().split('"""', 2)[2]
    shown = run("finetune", hub.EMBEDDED, classes, tmp_path / "classifier").splitlines()[-1]
    assert float(shown.split(": ")[1].split("%")[0]) > 60
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    assert sorted(network.config.id2label.values()) == sorted(p.name for p in classes.iterdir())


@pytest.mark.slow
def test_a_kind_of_ones_own_is_learned_and_stays_with_the_model(
    run, classes, tmp_path, monkeypatch
):
    monkeypatch.setitem(HEADS, "relative", dict(HEADS["relative"]))
    shown = run("custom_kind", classes, tmp_path / "model")
    assert float(shown.split(": ")[1]) > 0.3
    model = AugSelfModel.from_pretrained(tmp_path / "model")
    assert list(model.spec.heads) == ["crop", "color", "flip", "gamma"]
