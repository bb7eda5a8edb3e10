"""The model that ships inside: whole, small, and able to do what the README says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from augself_hub import hub, preprocess
from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import draw, pixel_box
from augself_hub.folder import read_spec, verify
from serving.inference.engine import load

PAIRS = 40  # of each photograph
VISIBLE = 0.1  # log brightness ratio


def test_it_agrees_with_its_manifest_and_stays_under_45_megabytes():
    folder = verify(hub.EMBEDDED)
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 45e6


def test_it_sees_which_of_two_views_is_brighter(photographs):
    """On the shipped graphs, as the server runs them; held-out figures are in its card."""
    engine = load()
    true, predicted = np.concatenate([_brightness(engine, p) for p in photographs], axis=1)
    visible = np.abs(true) > VISIBLE
    assert visible.sum() > 100
    assert (np.sign(true) == np.sign(predicted))[visible].mean() > 0.9


def _brightness(engine, path) -> np.ndarray:
    """(2, PAIRS): true and predicted log brightness ratios of views of one photograph."""
    policy = engine.spec.policy
    image = preprocess.to_rgb(Image.open(path))
    views, parameters = [], []
    for view in (0, 1):
        drawn = draw(policy, (1, 0, np.arange(PAIRS), view), image.height, image.width)
        boxes = (pixel_box(crop, image.height, image.width) for crop in drawn["crop"])
        crops = np.stack([preprocess.crop_resized(image, box, policy.size) for box in boxes])
        floats = crops.transpose(0, 3, 1, 2).astype(np.float32) / 255
        finished = augment(floats, drawn, policy).transpose(0, 2, 3, 1)
        views.append(engine.features(list(np.round(finished * 255).astype(np.uint8))))
        parameters.append(drawn)
    predicted = engine.differences(*views)["color"][:, 0]
    target, _ = targets("color", *parameters, policy, engine.spec.convention)
    return np.stack([target[:, 0], predicted])


def test_the_heads_on_features_have_not_learned_x_and_the_matcher_has():
    spec = read_spec(hub.EMBEDDED)
    marks = {d.name: d.learned for head in spec.heads.values() for d in head.dimensions}
    assert [name for name, learned in marks.items() if learned is False] == ["x"]
    assert None not in marks.values()
    answering = spec.answering()
    assert {kind: which for kind, (which, _) in answering.items()} == {
        "crop": "matcher",
        "color": "features",
        "flip": "matcher",
    }
    assert all(d.learned for _, head in answering.values() for d in head.dimensions)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, photographs) -> dict[str, tuple[Path, Path]]:
    """A photograph beside itself, mirrored, 0.3 times as bright, and beside another one."""
    folder = tmp_path_factory.mktemp("pairs")
    autumn, drum = (
        Image.open(p).convert("RGB") for p in photographs if p.stem in ("autumn", "drum")
    )
    made = {
        "itself": autumn,
        "mirrored": ImageOps.mirror(autumn),
        "darker": autumn.point(lambda level: round(0.3 * level)),
        "stranger": drum,
    }
    for name, image in made.items():
        image.save(folder / f"{name}.png")
    return {name: (folder / "itself.png", folder / f"{name}.png") for name in made}


def by_command(augself, a: Path, b: Path) -> dict:
    return json.loads(augself("predict", a, b, "--device", "cpu", "--json").out)


def by_http(client, a: Path, b: Path) -> dict:
    files = {"image_a": a.read_bytes(), "image_b": b.read_bytes()}
    return client.post("/v1/augmentations", files=files).json()["data"][0]


@pytest.fixture(scope="module")
def client():
    from fastapi.testclient import TestClient

    from serving.http.api import create_app
    from serving.inference.source import ModelSource

    app = create_app([ModelSource("embedded", hub.EMBEDDED, "cpu")])
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def told(answer: dict) -> dict[str, str]:
    """Dimension -> the name of the reason it has no value, or `answered`."""
    found = {}
    for kind in answer["differences"].values():
        for record in kind if isinstance(kind, list) else [kind]:
            name = record.get("name") or next(iter(record))
            found[name] = record.get("reason", "answered").split(":")[0]
    return found


@pytest.mark.parametrize("way", ["command", "http"])
def test_what_it_says_of_four_pairs(way, augself, client, pairs):
    said = {
        name: by_command(augself, *pair) if way == "command" else by_http(client, *pair)
        for name, pair in pairs.items()
    }
    for name in ("itself", "mirrored", "darker"):
        reasons = told(said[name])
        for dimension in ("x", "mirrored", "hue", "y"):
            assert reasons[dimension] == "answered"
        dark = "beyond what was trained on" if name == "darker" else "answered"
        assert reasons["brightness"] == dark
        flip = said[name]["differences"]["flip"]
        assert (flip["mirrored"] > 0.9) == (name == "mirrored") and flip["head"] == "matcher"
    itself = {d["name"]: d["value"] for d in said["itself"]["differences"]["color"]}
    assert all(abs(value) < 0.01 for value in itself.values())
    for record in said["itself"]["differences"]["crop"]:  # 0 within a part of the stated error
        assert abs(record["value"]) < 0.3 * record["standard_error"]
    assert said["itself"]["match"] > 0.9 > 0.5 > said["stranger"]["match"]
    assert set(told(said["stranger"]).values()) == {"unlike pictures"}


def test_what_is_said_of_four_pairs_in_words(pairs):
    from augself_hub import Encoder

    encoder = Encoder(device="cpu")

    def said(a: Path, b: Path) -> str:
        return encoder.difference(a, b).words()

    assert "two different pictures" in said(*pairs["stranger"])
    for name in ("itself", "mirrored", "darker"):
        mirrored = "B is mirrored" if name == "mirrored" else "B is not mirrored"
        assert mirrored in said(*pairs[name]) and "not learned" not in said(*pairs[name])
    assert "Brightness: the answer lies beyond what was trained on" in said(*pairs["darker"])
