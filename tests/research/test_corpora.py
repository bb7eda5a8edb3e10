"""The image collections: nothing that is measured on is trained on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from augself_hub.errors import AugSelfError
from augself_hub.folder import file_sha256
from research.corpora.building import MANIFEST, build
from research.corpora.first import DEVELOPMENT, FINAL, FIRST, PHOTOGRAPHS
from research.corpora.pictures import Picture, alike, distinct, perceptual_hash
from research.corpora.second import NEAR, SECOND
from research.corpora.sets import (
    TURNS,
    Example,
    LabelledSet,
    drawing,
    scenes,
    splits,
    tiles,
    turned,
    whole,
)
from research.corpora.table import Table

# What research.corpora built of the real packages, for either study.
CORPUS, CORPUS_2 = os.environ.get("AUGSELF_CORPUS"), os.environ.get("AUGSELF_CORPUS_2")
ICONS = "openclipart/png/computer"
FLAG, BIRD = (
    "openclipart/png/signs_and_symbols/flags/asia/x.png",
    "tuxpaint/stamps/animals/birds/x.png",
)


def blob(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of few large patches that no other seed resembles."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def save(root: Path, name: str, image: Image.Image) -> None:
    path = root / "some-package/usr/share" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree: pictures of every class, some icons, and copies that should be found."""
    root, seed = tmp_path_factory.mktemp("packages"), 0
    patterns = [
        p for s in (FINAL | DEVELOPMENT).values() for some in s.classes.values() for p in some
    ]
    for pattern in dict.fromkeys(patterns):
        photograph = any(pattern.startswith(p[:-1]) for p in PHOTOGRAPHS)
        suffix = ".png" if pattern.endswith("*") else ""
        for name in "abcde" if photograph else "abcdefghij":
            seed += 1
            picture = blob(seed, (200, 160) if photograph else (40, 32))
            save(root, pattern.replace("*", name) + suffix, picture)
    for seed in range(10_000, 10_010):
        save(root, f"{ICONS}/{seed}.png", blob(seed))
    save(root, f"{ICONS}/again.png", ImageOps.mirror(blob(10_000)))
    save(root, BIRD, blob(20_000))
    save(root, f"{ICONS}/mirrored-bird.png", ImageOps.mirror(blob(20_000, (80, 64))))
    save(root, "openclipart/png/office/bird.png", blob(20_000, (60, 48)))
    save(root, FLAG, blob(30_000))
    save(root, FLAG.replace("asia", "africa"), blob(30_000))
    save(root, "backgrounds/Bridge.png", blob(40_000, (300, 250)))
    return root


@pytest.fixture(scope="module")
def corpus(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpora") / "corpus"
    build(packages, output, FIRST)
    return output


def sources(corpus: Path, role: str) -> set[str]:
    """Names of the pictures a role's images come from."""
    files = json.loads((corpus / MANIFEST).read_text())["files"]
    return {entry["source"] for name, entry in files.items() if name.startswith(f"{role}/")}


def assert_disjoint(corpus: Path) -> None:
    """By source; and by perceptual hash what is no tile."""
    trained, final, development = (sources(corpus, r) for r in ("pretrain", "final", "development"))
    assert trained and not trained & (final | development | sources(corpus, "held-out"))
    assert final and not final & development
    for role in ("final", "development"):
        same = alike(looks(corpus / "pretrain"), looks(corpus / role))
        assert not same.any(), f"{role} and pretrain share a picture"


def looks(folder: Path, names: str = "*.png") -> list[np.ndarray]:
    """Hashes of all drawings below a folder, upright; tiles are JPEGs."""
    found = []
    for path in sorted(path for path in folder.rglob(names) if path.is_file()):
        image = Image.open(path).convert("RGB")
        if path.parent.name in TURNS:
            image = image.rotate(-90 * TURNS.index(path.parent.name))
        found.append(perceptual_hash(image))
    return found


def test_nothing_that_is_measured_on_is_trained_on(corpus):
    """Neither the same picture, nor its mirror image, nor one of another size."""
    assert_disjoint(corpus)
    names = {Path(name).name for name in sources(corpus, "pretrain")}
    assert "mirrored-bird.png" not in names
    assert not any(name.endswith("office/bird.png") for name in sources(corpus, "development"))


@pytest.mark.slow
@pytest.mark.skipif(CORPUS is None, reason="AUGSELF_CORPUS names no corpus")
def test_nothing_of_the_real_packages_that_is_measured_on_is_trained_on():
    """The same of the real packages."""
    assert_disjoint(Path(CORPUS))


@pytest.mark.slow
@pytest.mark.skipif(CORPUS_2 is None, reason="AUGSELF_CORPUS_2 names no corpus")
def test_the_second_studys_real_sets_are_large_and_apart():
    """300 test pictures, 21 of a class, and what looks alike on one side, with what is trained."""
    corpus = Path(CORPUS_2)
    trained = looks(corpus / "pretrain", "*")
    for name, which in SECOND.sets["final"].items():
        sides = {s: looks(corpus / "final" / name / s, "*") for s in ("train", "val", "test")}
        assert len(sides["test"]) >= 300, name
        labels = {p.name for p in (corpus / "final" / name / "test").iterdir()}
        for label in labels:
            assert len(list((corpus / "final" / name).glob(f"*/{label}/*"))) >= 21, (name, label)
        levels = which.near or 4.0
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not alike(sides[a], sides[b], levels - 0.5).any(), (name, a, b)
        assert not alike(trained, [h for side in sides.values() for h in side], 3.5).any(), name


ICON, PHOTO = "icons/theme", "backgrounds/x"


def a_table(**changes: object) -> Table:
    """One set of icons in three classes, and one of tiles of photographs."""
    classes = {name: (f"{ICON}/*/{name}/*",) for name in ("actions", "apps", "places")}
    icons = LabelledSet("folder", classes, whole, near=NEAR, most=20)
    views = LabelledSet("photograph", {"any": (f"{PHOTO}/*",)}, scenes, tiles=True, apart=True)
    sets = {"final": {"icons": icons, "views": views}, "development": {}}
    given = {"packages": ("*",), "photographs": ("backgrounds/*",), "kept_out": (f"{PHOTO}/*",)}
    return Table(sets=sets, left_out=(), **{**given, **changes})


@pytest.fixture(scope="module")
def themed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Icons of two sizes, each with a variant that is a little lighter, and three photographs."""
    root = tmp_path_factory.mktemp("themed")
    for folder, first in (("actions", 100), ("apps", 200), ("places", 300)):
        for number in range(30 if folder == "actions" else 8):
            image = blob(first + number, (128, 128))
            name = f"{'xy'[number // 26]}{chr(97 + number % 26)}"  # numbers tell variants
            save(root, f"{ICON}/128x128/{folder}/name-{name}.png", image)
            other = ImageOps.invert(image).resize((48, 48))
            save(root, f"{ICON}/48x48/{folder}/name-{name}.png", other)
            lighter = image.point(lambda v: min(255, v + 8))
            save(root, f"{ICON}/128x128/{folder}/other-{name}.png", lighter)
    for number in range(3):
        save(root, f"{PHOTO}/{number}.png", blob(number, (1600, 1000)))
    plain = Image.new("RGB", (1600, 1000), (90, 120, 200))
    save(root, f"{PHOTO}/sky.png", plain)
    plain.paste(blob(9, (800, 1000)), (800, 0))
    save(root, "backgrounds/y/half-sky.png", plain)
    save(root, "drawings/a b.png", blob(50_000))  # the file of both is drawings-a-b.png
    save(root, "drawings/a-b.png", blob(50_001))
    return root


def test_an_icon_counts_once_whatever_its_sizes(themed, tmp_path):
    """The larger file of each; twenty of a class, and a variant with its drawing on one side."""
    build(themed, tmp_path / "corpus", a_table())
    assert not [name for name in sources(tmp_path / "corpus", "final") if "48x48" in name]
    per_class: dict[str, int] = {}
    side: dict[tuple[str, str], set[str]] = {}
    for path in (tmp_path / "corpus/final/icons").glob("*/*/*.png"):
        split, label, file = path.relative_to(tmp_path / "corpus/final/icons").parts
        per_class[label] = per_class.get(label, 0) + 1
        side.setdefault((label, file.rpartition("-")[2]), set()).add(split)
    assert per_class == {"actions": 20, "apps": 16, "places": 16}
    assert all(len(splits_of_one) == 1 for splits_of_one in side.values())
    assert set.union(*side.values()) == {"train", "val", "test"}


def test_tiles_that_look_the_same_are_apart(themed, tmp_path):
    """A plain sky leaves one tile to measure on, and none to train on where tiles are apart."""
    for name, wanted in (("with", False), ("without", True)):
        build(themed, tmp_path / name, a_table(tiles_apart=wanted))
        skies = list((tmp_path / name / "final/views").glob("*/*sky/*"))
        assert len(skies) == 1
        trained = looks(tmp_path / name / "pretrain", "*half-sky*")
        assert alike(looks(skies[0].parent, "*"), trained).any() != wanted and trained


def test_files_are_counted_once(themed, tmp_path):
    """Of two drawings with one file name the last is there, and counted."""
    counts = build(themed, tmp_path / "corpus", a_table())
    trained = list((tmp_path / "corpus/pretrain").iterdir())
    assert [p.name for p in trained if "drawings" in p.name] == ["drawings-a-b.png"]
    assert counts["pretrain"] == len(trained)


def test_what_looks_the_same_is_kept_once(corpus):
    """Ten icons and a mirrored one leave ten; a flag of two continents is left out of both."""
    icons = [name for name in sources(corpus, "pretrain") if name.startswith(ICONS)]
    assert len(icons) == 10
    flags = {name for name in sources(corpus, "final") if "flags" in name}
    assert FLAG not in flags and len(flags) == 50


def test_every_set_has_every_class_in_every_split(corpus):
    """The linear probe needs all classes to learn from, to choose by and to be tested on."""
    for role, sets in (("final", FINAL), ("development", DEVELOPMENT)):
        for name in sets:
            place = corpus / role / name
            classes = {s: {p.name for p in (place / s).iterdir()} for s in ("train", "val", "test")}
            assert classes["train"] == classes["val"] == classes["test"], name


def test_the_manifest_says_what_every_file_is(corpus):
    """The sha256 of each file, and of the list of them in the form of sha256sum."""
    manifest = json.loads((corpus / MANIFEST).read_text())
    there = {p.relative_to(corpus).as_posix() for p in corpus.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - {MANIFEST}
    lines = "".join(f"{file_sha256(corpus / name)}  {name}\n" for name in manifest["files"])
    assert manifest["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_the_same_packages_make_the_same_corpus(packages, corpus, tmp_path):
    """The sha256 of the whole does not change."""
    build(packages, tmp_path / "again", FIRST)
    first, second = (json.loads((f / MANIFEST).read_text()) for f in (corpus, tmp_path / "again"))
    assert first["sha256"] == second["sha256"]


def test_a_group_is_on_one_side():
    """Groups stay whole, and of a class about 40, 20 and 40% are in the splits."""
    blank = Image.new("RGB", (8, 8))
    examples = [
        Example(f"{i}", "ab"[i % 2], f"group {i // 4}", "picture", blank) for i in range(400)
    ]
    found = splits(examples)
    sides = {(e.group, split) for e, split in zip(examples, found, strict=True)}
    assert len(sides) == 100
    for label in "ab":
        mine = [split for e, split in zip(examples, found, strict=True) if e.label == label]
        assert [mine.count(s) for s in ("train", "val", "test")] == [80, 40, 80]


def test_a_split_does_not_depend_on_the_other_classes():
    """Leaving a class out moves no image of another from one side to the other."""
    blank = Image.new("RGB", (8, 8))
    examples = [Example(f"{i}", "ab"[i % 2], f"{i}", "picture", blank) for i in range(100)]
    both, alone = splits(examples), splits([e for e in examples if e.label == "a"])
    assert both[::2] == alone


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("food/apple_bw.png", "food/apple"),
        ("food/apple.png", "food/apple"),
        ("food/cello_mo_02.png", "food/cello_mo"),
        ("food/cello_mo_01r.png", "food/cello_mo"),
        ("food/7.png", "food/7"),
    ],
)
def test_variants_of_a_drawing_are_one_group(name, group):
    """Numbers and bw at the end of a name tell variants apart."""
    assert drawing(Picture(Path(name), name)) == group


def test_a_turned_picture_is_turned_as_its_class_says(tmp_path):
    """To the left, which is counter-clockwise; a corner of the picture shows it."""
    corner = {"0-upright": (0, 0), "1-left": (0, 39), "2-upside-down": (39, 39), "3-right": (39, 0)}
    seen = set()
    for number in range(20):
        image = Image.new("RGB", (40, 40), "white")
        image.putpixel((0, 0), (255, 0, 0))
        path = tmp_path / f"{number}.png"
        image.save(path)
        (example,) = turned(Picture(path, path.name), "drawing")
        seen.add(example.label)
        assert example.image.getpixel(corner[example.label]) == (255, 0, 0)
    assert seen == set(corner)


def test_tiles_cover_the_picture_once():
    """A picture of 480 x 330 at short side 330 has 2 rows of 3 tiles of 160."""
    image = blob(1, (480, 330))
    found = list(tiles(image, 330))
    assert [(row, column, rows) for row, column, rows, _ in found] == [
        (row, column, 2) for row in range(2) for column in range(3)
    ]
    row, column, _, tile = found[4]
    assert (row, column) == (1, 1)
    np.testing.assert_array_equal(tile, np.asarray(image)[160:320, 160:320])


def test_a_hash_knows_mirror_images_and_colours():
    """A mirrored picture is the same picture, one of other colours is another."""
    picture = blob(1)
    others = [
        ImageOps.mirror(picture),
        picture.resize((400, 320)),
        ImageOps.invert(picture),
        blob(2),
    ]
    same = alike([perceptual_hash(picture)], [perceptual_hash(other) for other in others])
    assert same.tolist() == [[True, True, False, False]]
    assert distinct([perceptual_hash(p) for p in (picture, *others)]) == [0, 3, 4]


def test_a_tree_without_pictures_is_refused(tmp_path):
    with pytest.raises(AugSelfError, match="unpack the Debian packages"):
        build(tmp_path, tmp_path / "corpus", FIRST)
