"""The tables of a matcher, by matchers that know the truth, or a part of it."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.errors import AugSelfError
from augself_hub.folder import write_manifest
from augself_hub.modeling.matcher import Match
from research.matching import (
    OF,
    Boxes,
    Pairs,
    TilesAndBoxes,
    copies,
    held_out,
    identical,
    large,
    main,
    measured,
    mirror_image,
    photograph,
    table,
)
from training.data.batches import ViewsDataset, collate
from training.data.sources import open_images
from training.methods.matcher import overlap
from training.methods.pairs import EncodedViews

POLICY = Policy(size=8)
SPEC = Spec("relative", POLICY, heads_for(("crop", "flip"), POLICY), features=4)


def parameters(count, seed):
    random = np.random.default_rng(seed)
    boxes = random.uniform((0, 0, 0.4, 0.4), (0.4, 0.4, 0.6, 0.6), (count, 4))
    return {
        "crop": torch.from_numpy(boxes).float(),
        "flip": torch.from_numpy(random.random(count) < 0.5),
        "rot": torch.zeros(count, dtype=torch.long),
    }


def pairs_of(a, b, names=("p", "q", "r", "s")):
    """Pairs whose maps are the parameters themselves, and the number of the photograph."""
    both = {name: torch.cat([a[name], b[name]]) for name in a}
    picture = (torch.arange(len(a["rot"])) % len(names)).repeat(2)
    maps = torch.cat([both["crop"], both["flip"][:, None], picture[:, None]], 1)[:, :, None, None]
    return Pairs(EncodedViews(maps.float(), both, picture), SPEC, names)


class Knowing:
    """A matcher that reads the truth off such maps, and is wrong by `error` in its own unit."""

    std, shape = torch.tensor([0.2, 0.2, 0.3, 0.3]), SimpleNamespace(turns=False)

    def __init__(self, error=0.0, stated=0.1):
        self.error, self.stated = error, stated

    def __call__(self, a, b):
        a, b = a[:, :, 0, 0], b[:, :, 0, 0]
        wa, wb = (
            {"crop": m[:, :4], "flip": m[:, 4] > 0.5, "rot": torch.zeros(len(m)).long()}
            for m in (a, b)
        )
        crop, flip = (targets(k, wa, wb, POLICY, "relative")[0].float() for k in ("crop", "flip"))
        one = (a[:, 5:] == b[:, 5:]).float()
        crop = crop / self.std + self.error * torch.randn(crop.shape)
        variance = torch.full_like(crop, self.stated).square().log()
        return Match(crop, variance, 20 * flip - 10, 0 * flip, 20 * one - 10)


def test_who_knows_the_truth_reaches_every_bar():
    found = measured(Knowing(), pairs_of(parameters(400, 0), parameters(400, 1)))
    for part in ("all", "overlap"):
        assert all(found[part][n]["value"] == pytest.approx(1, abs=1e-5) for n in ("y", "width"))
        assert found[part]["mirrored"]["value"] == 1
    assert found["all"]["pairs"] == 400 > found["overlap"]["pairs"] > 0
    assert found["strangers"] == {
        "auc": 1.0,
        "found at 5% false alarms": 1.0,
        "auc, boxes with something in common": 1.0,
    }


def test_errors_are_measured_against_what_is_stated():
    """By hand, of sizes, where both orders are wrong by themselves and state nothing: the mean of
    two errors within 1.96 of half their difference is a Cauchy variable's 2 atan(1.96) / pi. R^2 is
    1 - square / mean square.
    """
    torch.manual_seed(0)
    pairs = pairs_of(parameters(4000, 0), parameters(4000, 1))
    found = measured(Knowing(error=0.5, stated=1e-3), pairs)
    assert found["coverage"]["all"][2:] == pytest.approx(
        [2 * np.arctan(1.96) / np.pi] * 2, abs=0.02
    )
    assert found["standard_error"][2:] == pytest.approx(found["rmse"][2:], rel=0.1)
    assert found["rmse"][2:] == pytest.approx([0.3 * 0.5 / 2**0.5] * 2, rel=0.1)
    expected = 1 - found["rmse"][2] ** 2 / float(pairs.crop[:, 2].square().mean())
    assert found["all"]["height"]["value"] == pytest.approx(expected, abs=1e-6)
    low, high = found["all"]["height"]["interval"]
    assert low < expected < high


def test_a_table_says_every_figure():
    pairs = pairs_of(parameters(200, 0), parameters(200, 1))
    a = parameters(200, 2)
    flipped = {**a, "flip": ~a["flip"]}
    found = {name: measured(Knowing(), pairs) for name in "AB"}
    found["copies"] = copies(Knowing(), pairs_of(a, a), pairs_of(a, flipped))
    assert found["copies"]["identical: 0 within a tenth of the error"] == 1
    assert found["copies"]["identical: called mirrored"] == 0
    assert found["copies"]["mirror image: called mirrored"] == 1
    text = table(found)
    assert text.count("1.00 (1.00 to 1.00)") == 16
    assert "| B, largest tenth | 100.0% | 100.0% | 100.0% | 100.0% |" in text


def test_overlap_by_hand():
    """Two squares of 0.4, one 0.2 further right: 0.08 in common of 0.24. And two that are apart."""
    a = {"crop": torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.2, 0.2]])}
    b = {"crop": torch.tensor([[0.0, 0.2, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]])}
    assert overlap(a, b).tolist() == pytest.approx([1 / 3, 0])


def test_large_boxes_are_within_the_picture_and_as_large_as_said():
    w = {"crop": np.zeros((5000, 4))}
    large(w, 480, 720, np.random.default_rng(0))
    top, left, height, width = (w["crop"] * [480, 720, 480, 720]).T
    assert (w["crop"] >= 0).all()
    assert (top + height).max() <= 480 + 1e-6 and (left + width).max() <= 720 + 1e-6
    short = np.minimum(height, width)
    assert 190 < short.min() < 200 and 470 < short.max() <= 480 + 1e-6
    assert (np.maximum(height, width) / short).max() <= 4 / 3 + 1e-6


def test_tiles_come_by_the_policy_and_photographs_by_large_boxes_each_time_others(tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("tiles", 3), ("whole", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    tiles, whole = (open_images(str(tmp_path / name)) for name in ("tiles", "whole"))
    boxes = Boxes(whole, POLICY, 1, large)
    views = TilesAndBoxes(ViewsDataset(tiles, POLICY, 0), boxes, times=4)
    assert len(views) == 3 + 4 * 2
    keys = [(epoch, index) for epoch in range(2) for index in range(len(views))]
    crops = [tuple(item["w1"]["crop"][0]) for item in views.__getitems__(keys)]
    assert len(set(crops)) == len(keys)
    again = ViewsDataset(tiles, POLICY, 0)[1, 2]["w1"]["crop"][0]
    assert crops[keys.index((1, 2))] == tuple(again)
    batch = collate(views.__getitems__(keys))
    assert batch["crops"].shape == (2 * len(keys), 8, 8, 3)
    assert batch["w2"]["crop"].shape == (len(keys), 4)


def test_copies_have_all_but_the_mirror_in_common():
    w = {"crop": np.random.default_rng(0).random((2, 4)), "flip": np.array([True, False])}
    identical(w)
    assert (w["crop"][0] == w["crop"][1]).all() and w["flip"].tolist() == [True, True]
    mirror_image(w)
    assert w["flip"].tolist() == [True, False]


def test_tiles_are_of_the_photograph_they_are_named_after():
    assert photograph("wallpapers-Kay-contents-images-1440x900-960-3-11.jpg") == (
        "wallpapers-Kay-contents-images-1440x900"
    )
    tile = "held-out/wallpapers-Kay-1440x900-960-3-11.jpg"
    assert re.search(OF, tile).group(1) == photograph(tile) == "wallpapers-Kay-1440x900"
    assert photograph("held-out/backgrounds-Aqua.jpg") == "backgrounds-Aqua"


def test_a_matcher_is_fitted_into_a_folder_and_measured_there(
    tiny_model, tmp_path, monkeypatch, capsys
):
    random = np.random.default_rng(1)
    for place in ("corpus/pretrain", "corpus/held-out", "whole/pretrain", "whole/held-out"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(9):
            pixels = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            name = f"{i}-240-0-0" if place.startswith("corpus") else str(i)
            Image.fromarray(pixels).save(tmp_path / place / f"{name}.png")
    for name in "136":
        (tmp_path / "corpus/development/photographs/test" / name).mkdir(parents=True)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    monkeypatch.setattr("research.matching.PAIRS", 12)
    monkeypatch.setattr("research.matching.CALIBRATION", 12)
    monkeypatch.setattr("training.run.publishing.find_spec", lambda name: None)  # no graphs
    seen = []
    monkeypatch.setattr("research.matching.ViewsDataset", noted(ViewsDataset, seen))
    monkeypatch.setattr("research.matching.Boxes", noted(Boxes, seen))
    places = [str(tmp_path / "corpus"), str(tmp_path / "whole")]
    with pytest.raises(AugSelfError, match="no matcher"):
        main(["measure", *places, str(folder)])
    main(["fit", *places, str(folder), "pairs=160", "passes=1", "batch=16", "seed=3"])
    assert "matcher" in json.loads((folder / "augself/config.json").read_text())
    assert [names for names in seen if len(names) == 3] == [
        ["1-240-0-0.png", "3-240-0-0.png", "6-240-0-0.png"],
        ["1.png", "3.png", "6.png"],
    ]
    seen.clear()
    main(["measure", *places, str(folder)])
    assert "| B, all pairs | 12 |" in capsys.readouterr().out
    others = ["0", "2", "4", "5", "7", "8"]
    assert [n for names in seen for n in names if n[0] not in others] == [] and seen
    before = load_file(folder / "augself/matcher.safetensors")
    before["shift"] += 1
    save_file(before, folder / "augself/matcher.safetensors")
    write_manifest(folder)
    main(["calibrate", *places, str(folder)])
    after = load_file(folder / "augself/matcher.safetensors")
    assert {n for n, v in after.items() if not torch.equal(v, before[n])} <= {"slope", "shift"}
    assert not torch.equal(after["shift"], before["shift"])


def noted(kind, seen):
    """The same kind of views, of which each notes the names of its images."""

    def made(images, *others):
        seen.append(list(images.names))
        return kind(images, *others)

    return made


def test_without_the_development_photographs_nothing_is_calibrated(tmp_path):
    for place in ("corpus/held-out", "whole/held-out"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (60, 80)).save(tmp_path / place / "a.png")
    with pytest.raises(AugSelfError, match=r"has no picture of .*development/photographs"):
        held_out(tmp_path / "corpus", tmp_path / "whole", development=True)
