"""The model that ships inside: whole, small, and able to do what the README says of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from augself_hub import hub, preprocess
from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import draw, pixel_box
from augself_hub.folder import verify
from serving.inference.engine import load

PAIRS = 40  # of each photograph
VISIBLE = 0.1  # log brightness ratio


def test_it_agrees_with_its_manifest_and_stays_under_40_megabytes():
    folder = verify(hub.EMBEDDED)
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 40e6


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
