"""Undo: the exact difference taken back gives view a again; boxes stand where they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from serving.demo.frames import NOTHING, box_in_frame, placed
from serving.demo.undo import backwards, can_undo, undone

POLICY = Policy(size=32)
PLAIN = {
    "flip": np.array([False]),
    "color": np.array([[1.0, 1.0, 1.0, 0.0]]),
    "order": np.arange(4)[None],
    "sol": np.array([1.0]),
    "gray": np.array([False]),
    "blur": np.array([0.0]),
    "rot": np.array([0]),
}


def picture() -> np.ndarray:
    """(1, 3, 32, 32), smooth, no colour near the ends of the range, and nothing alike."""
    y, x = np.mgrid[0:32, 0:32] / 31
    return np.stack([0.4 + 0.2 * x, 0.4 + 0.2 * y, 0.45 + 0.1 * x * y])[None]


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("turns", [(0, 0), (0, 1), (1, 0), (3, 2)])
def test_the_true_difference_takes_view_b_back_to_view_a(mirrored, turns):
    a = {**PLAIN, "flip": np.array(mirrored[:1]), "rot": np.array(turns[:1])}
    jitter = np.array([[1.2, 0.9, 1.3, 0.07]])
    b = {**PLAIN, "flip": np.array(mirrored[1:]), "rot": np.array(turns[1:]), "color": jitter}
    view_a, view_b = (augment(picture(), parameters, POLICY) for parameters in (a, b))
    crops = [{**p, "crop": np.array([[0.0, 0.0, 1.0, 1.0]])} for p in (a, b)]
    difference = {
        kind: targets(kind, *crops, POLICY, "relative")[0][0] for kind in ("color", "flip", "rot")
    }
    difference["rot"] = np.eye(4)[int(difference["rot"][0])]
    back = augment(view_b, backwards(difference, gray=False), POLICY)
    assert np.abs(back - view_a).max() < 1e-5


def test_a_gray_view_keeps_its_hue_and_saturation():
    difference = {"color": np.array([np.log(2.0), 0.0, 0.7, 0.1])}
    assert backwards(difference, gray=True)["color"] == pytest.approx(
        np.array([[0.5, 1.0, 1.0, 0.0]])
    )


def test_a_box_in_a_s_frame_is_where_the_difference_says():
    """The lower left quarter of a: half a's height down, half as high and as wide."""
    crop = np.array([0.25, -0.25, -np.log(2), -np.log(2)])
    assert box_in_frame(crop) == pytest.approx((0.0, 0.5, 0.5, 1.0))


def test_the_true_box_of_drawn_views_is_the_part_of_the_photograph_they_share():
    a, b = (draw(POLICY, (0, 0, 5, view), 100, 100) for view in (0, 1))
    a, b = {**a, "flip": np.array([False])}, {**b, "flip": np.array([False])}
    left, top, right, bottom = box_in_frame(targets("crop", a, b, POLICY, "relative")[0][0])
    (at, al, ah, aw), (bt, bl, bh, bw) = a["crop"][0], b["crop"][0]
    assert (al + left * aw, at + top * ah) == pytest.approx((bl, bt))
    assert ((right - left) * aw, (bottom - top) * ah) == pytest.approx((bw, bh))


def test_a_view_is_placed_at_its_box_and_the_rest_says_nothing():
    white = np.full((32, 32, 3), 255, np.uint8)
    frame = placed(white, (0.5, 0.0, 1.0, 0.5), 100)
    nothing = np.asarray(Image.new("RGB", (1, 1), NOTHING))[0, 0]
    assert (frame[:50, 50:] == 255).all()
    assert (frame[50:] == nothing).all() and (frame[:50, :50] == nothing).all()


def test_a_head_gone_wild_costs_no_memory():
    wild = {"crop": np.array([900.0, -900.0, 50.0, 50.0])}
    view = np.zeros((32, 32, 3), np.uint8)
    assert undone(view, wild, gray=False, policy=POLICY, side=64).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("convention", "kinds", "can"),
    [("relative", ("color",), True), ("relative", (), False), ("paper", ("color",), False)],
)
def test_only_what_says_so_can_be_undone(convention, kinds, can):
    spec = Spec(convention, POLICY, heads_for(kinds, POLICY, convention), features=8)
    assert can_undo(spec) is can
