"""The tab "What changed?": values by hand, and the page asked as a client asks it."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr
from gradio.state_holder import SessionState
from gradio_client import Client, handle_file

from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from serving.demo.comparison import HIDDEN, compare, table
from serving.demo.controls import box, controls, labels, parameters, place, values
from serving.demo.files import Files
from serving.demo.frames import box_in_photograph
from serving.demo.sliders import Sliders
from serving.demo.views import two_views
from serving.demo.what_changed import EXAMPLES, SHOWN, WAITING, tab
from serving.inference.client import ModelClient
from serving.limits import Limits

POLICY = Policy(size=32).with_kinds(("rot", "sol"))
NEUTRAL = [0.5, 0.5, 1.0, 1.0, False, 1.0, 1.0, 1.0, 0.0, False]
CHANGED = [0.0, 1.0, 0.5, 1.0, True, 1.2, 1.0, 0.8, 0.05, False]


def spec_of(*kinds: str, convention: str = "relative") -> Spec:
    return Spec(convention, POLICY, heads_for(kinds, POLICY, convention), features=8)


SPEC = spec_of("crop", "color", "flip")


def predicted(spec: Spec) -> dict[str, np.ndarray]:
    return {kind: np.full((1, head.outputs), 0.25) for kind, head in spec.heads.items()}


def test_only_the_augmentations_of_the_model_have_controls():
    assert [c.label for c in controls(SPEC)] == [
        *("Across", "Down", "Size", "Aspect", "Mirrored"),
        *("Brightness", "Contrast", "Saturation", "Hue (turns)", "Gray"),
    ]
    assert [c.parameter for c in controls(spec_of("blur", "rot", "sol"))] == ["blur", "rot", "sol"]


def test_sliders_become_parameters():
    """A 100 x 200 photograph: the largest square is 100 pixels wide, half of it 50."""
    view = parameters(controls(SPEC), CHANGED, height=100, width=200)
    assert view["crop"] == pytest.approx(np.array([[0.5, 0.0, 0.5, 0.25]]))
    assert view["color"] == pytest.approx(np.array([[1.2, 1.0, 0.8, 0.05]]))
    assert (view["flip"].item(), view["gray"].item()) == (True, False)


def test_neutral_sliders_are_the_centre_square_with_nothing_applied():
    view = parameters(controls(SPEC), NEUTRAL, height=100, width=200)
    assert view["crop"] == pytest.approx(np.array([[0.0, 0.25, 1.0, 0.5]]))
    photograph = Image.fromarray(np.arange(60000, dtype=np.uint8).reshape(100, 200, 3))
    shown = two_views(photograph, view, view, POLICY, 32)[0]
    expected = photograph.resize((32, 32), Image.Resampling.BILINEAR, box=(50, 0, 150, 100))
    assert np.abs(shown.astype(int) - np.asarray(expected)).max() == 0


def test_later_kinds_are_rows_of_the_table():
    view = parameters(controls(spec_of("blur", "rot", "sol")), [1.5, 3.0, 0.25], 10, 10)
    assert (view["blur"].item(), view["rot"].item(), view["sol"].item()) == (1.5, 3, 0.25)


@pytest.mark.parametrize(("height", "width"), [(433, 640), (640, 426), (1, 4000), (1, 1)])
def test_every_drawn_box_can_be_set_with_the_sliders(height, width):
    drawn = draw(POLICY, (0, 0, np.arange(200), 1), height, width)["crop"]
    assert box(place(drawn, height, width), height, width) == pytest.approx(drawn, abs=1e-9)


def test_drawn_views_are_shown_by_the_controls_to_a_step():
    rows = controls(spec_of("crop", "color", "flip", "blur", "rot", "sol"))
    for index in range(50):
        drawn = draw(POLICY, (0, 0, index, 0), 433, 640)
        shown = parameters(rows, values(rows, drawn, 433, 640), 433, 640)
        for name, tolerance in {"crop": 0.02, "color": 0.0051, "blur": 0.0051, "rot": 0}.items():
            assert shown[name] == pytest.approx(drawn[name], abs=tolerance), name
        assert (shown["flip"], shown["gray"]) == (drawn["flip"], drawn["gray"])


def test_rows_hold_the_true_differences():
    """View b: the lower left quarter, 50 of 100 pixels; brighter by 1.2, saturation times 0.8."""
    a = parameters(controls(SPEC), NEUTRAL, 100, 200)
    b = parameters(controls(SPEC), CHANGED, 100, 200)
    rows = compare(SPEC, a, b, predicted(SPEC))
    true = {row.name: row.true for row in rows}
    assert true == pytest.approx(
        {
            "y": 0.25,  # centres 75 and 50, in heights of a, 100
            "x": -0.75,  # centres 25 and 100, in widths of a, 100
            "height": -math.log(2),
            "width": -math.log(2),
            "brightness": math.log(1.2),
            "contrast": 0.0,
            "saturation": math.log(0.8),
            "hue": 0.05,
            "mirrored": 1.0,
        }
    )
    assert {row.predicted for row in rows} == {0.25}
    assert [row.unit for row in rows][:3] == ["heights of a", "widths of a", "log ratio"]


def test_what_a_gray_picture_cannot_show_is_said_and_is_no_number():
    a = parameters(controls(SPEC), NEUTRAL, 100, 200)
    b = parameters(controls(SPEC), [*CHANGED[:-1], True], 100, 200)
    rows = compare(SPEC, a, b, predicted(SPEC))
    assert [row.name for row in rows if row.true is None] == ["saturation", "hue"]
    assert [row.name for row in rows if row.predicted is None] == ["saturation", "hue"]
    assert table(rows).count(HIDDEN) == 2


def test_a_pair_has_the_errors_that_are_known_of_it():
    view = parameters(controls(SPEC), NEUTRAL, 100, 200)
    errors = {"crop": np.array([[0.01, 0.02, 0.03, 0.04]])}
    rows = compare(SPEC, view, view, predicted(SPEC), errors)
    assert [row.error for row in rows if row.kind == "crop"] == [0.01, 0.02, 0.03, 0.04]
    usual = {row.name: row.error for row in compare(SPEC, view, view, predicted(SPEC))}
    assert all(row.error == usual[row.name] for row in rows if row.kind != "crop")


def test_classes_have_a_row_each():
    spec = spec_of("rot")
    a, b = (parameters(controls(spec), [turns], 10, 10) for turns in (1, 3))
    rows = compare(spec, a, b, predicted(spec))
    assert [row.true for row in rows] == [0, 0, 1, 0]
    assert "quarter turns = 2" in table(rows)


def test_the_table_shows_signs_units_probabilities_and_escapes_foreign_names():
    a = parameters(controls(SPEC), NEUTRAL, 100, 200)
    b = parameters(controls(SPEC), CHANGED, 100, 200)
    rows = compare(SPEC, a, b, predicted(SPEC))
    html = table(rows)
    for text in ("+0.25", "-0.75", "<td>0.00</td>", "heights of a", "<td>yes</td>", "<td>25%</td>"):
        assert text in html
    foreign = table([type(rows[0])("crop", "<script>", '"&', 0.0, 0.0, 0.5, 1.0)])
    assert "<script>" not in foreign and "&lt;script&gt;" in foreign and "± 0.50" in foreign
    assert '<rect class="error" x="50.0" y="13.7" width="100.0"' in foreign  # half the span a side


def test_the_paper_s_convention_is_shown_in_its_own_terms():
    spec = spec_of("flip", convention="paper")
    view = parameters(controls(spec), [True], 10, 10)
    assert [(row.name, row.true) for row in compare(spec, view, view, predicted(spec))] == [
        ("same", 1.0)
    ]


def test_views_on_the_page_are_those_the_model_sees_at_a_finer_grain():
    """Averaged down, the large view is the small one; its blur is as wide in shares of the view."""
    photograph = Image.open(EXAMPLES[0]).convert("RGB")
    spec = spec_of("crop", "color", "flip", "blur")
    rows = controls(spec)
    drawn = [draw(Policy(size=32), (0, 0, 3, view), *photograph.size[::-1]) for view in (0, 1)]
    drawn[1]["blur"] = np.array([1.5])
    a, b = (
        parameters(rows, values(rows, view, *photograph.size[::-1]), *photograph.size[::-1])
        for view in drawn
    )
    small = two_views(photograph, a, b, spec.policy, 32).astype(float)
    large = two_views(photograph, a, b, spec.policy, 256).astype(float)
    averaged = large.reshape(2, 32, 8, 32, 8, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small).mean() < 6


def test_a_box_goes_back_through_turning_mirroring_and_the_crop():
    """The left half of what is shown. a is the photograph's right half, mirrored, turned left."""
    plain = {"crop": np.array([[0.0, 0.5, 1.0, 0.5]]), "flip": [False], "rot": [0]}
    left = (0.0, 0.0, 0.5, 1.0)
    assert box_in_photograph(left, plain) == pytest.approx((0.5, 0.0, 0.75, 1.0))
    mirrored = {**plain, "flip": [True]}
    assert box_in_photograph(left, mirrored) == pytest.approx((0.75, 0.0, 1.0, 1.0))
    # Turned to the left, what is on the left was above.
    assert box_in_photograph(left, {**plain, "rot": [1]}) == pytest.approx((0.5, 0.0, 1.0, 0.5))
    assert box_in_photograph(left, {**plain, "rot": [2]}) == pytest.approx((0.75, 0.0, 1.0, 1.0))


def test_several_models_share_the_controls_and_hide_what_one_does_not_have():
    one, two = SPEC, spec_of("color", "blur")
    assert [label for _, label in labels([one, two])] == [
        *("Across", "Down", "Size", "Aspect", "Mirrored", "Brightness", "Contrast", "Saturation"),
        *("Hue (turns)", "Gray", "Blur (sigma, pixels)"),
    ]
    with gr.Blocks():
        sliders = Sliders([one, two], {}, {})
    for view in (sliders.a, sliders.b):
        updates = view.show_those_of(two)
        assert list(view.headings) == ["crop", "color", "blur"]
        assert [updates[h]["visible"] for h in view.headings.values()] == [False, True, True]
        visible = [updates[c]["visible"] for c in view.components.values()]
        assert visible == [*5 * [False], *6 * [True]]


def test_a_call_has_view_a_s_values_before_view_b_s():
    with gr.Blocks():
        sliders = Sliders([SPEC], {}, {})
    a, b = sliders.labelled([*NEUTRAL, *CHANGED])
    assert (a["Across"], a["Size"], a["Brightness"], a["Gray"]) == (0.5, 1.0, 1.0, False)
    assert (b["Across"], b["Size"], b["Brightness"], b["Hue (turns)"]) == (0.0, 0.5, 1.2, 0.05)
    assert [c.label for c in sliders.components] == 2 * list(a)
    moved = sliders.b.set_to({"Size": 0.5})
    assert moved.pop(sliders.b.components["Size"]) == 0.5
    assert len(moved) == 9 and all(update == gr.skip() for update in moved.values())


def test_a_model_without_heads_has_no_sliders_and_counts_clicks_all_the_same(tmp_path):
    """A call with one output, the click's number, and calls with none."""
    described = SimpleNamespace(spec=spec_of(), name="none")
    models = {"none": ModelClient(described, Limits(), None, None)}
    with gr.Blocks() as page:
        tab(models, Files(tmp_path, 10**9), gr.Dropdown(["none"]))
    surprise, reset = (
        next(f for f in page.fns.values() if f.name == name) for name in ("surprise", "reset")
    )
    state = SessionState(page)
    clicks = surprise.outputs[0]
    for click in (1, 2):
        said = surprise.fn("none", Path(EXAMPLES[0]).read_bytes(), click)
        asyncio.run(page.postprocess_data(surprise, said, state))
        assert state[clicks._id] == click + 1
    assert asyncio.run(page.postprocess_data(reset, reset.fn("none"), state)) == []


def ask(page: Client, photograph: str | Path, b: list = CHANGED, model: str = "tiny") -> tuple:
    file = handle_file(str(photograph))
    return page.predict(model, file, *NEUTRAL, *b, api_name="/what_changed")


def shown(html: str) -> list[tuple[int, int]]:
    """Sizes of the pictures in a page's HTML, in order."""
    urls = re.findall(r'src="data:image/\w+;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(url))).size for url in urls]


def test_a_photograph_is_answered_with_pictures_and_the_table(page):
    stage, told = ask(page, EXAMPLES[0])
    large, seen = (SHOWN, SHOWN), (32, 32)
    assert shown(stage) == [large, seen, large, seen, large, large]  # a, b, undone and a over it
    assert re.findall(r'<th scope="row">(\w+)', told) == [
        *("y", "x", "height", "width", "brightness", "contrast", "saturation", "hue", "mirrored"),
    ]
    assert "+0.18" in told  # log 1.2
    assert "In truth: b is 1.2 times brighter, is less colourful, has its reds turned" in told
    assert "shows the lower left part, is mirrored." in told
    assert told.count("<rect") > 3 and "where the model puts it" in told


def test_the_model_and_the_truth_are_one_overlay_in_two_colours(page):
    told = ask(page, EXAMPLES[0], model="pretrained")[1]
    boxes = re.findall(r'<rect [^>]*stroke="([^"]*)"', told)
    assert boxes == ["white", "#0d9488", "#a855f7"]


def test_every_served_model_answers_for_itself(page):
    tiny, embedded = (ask(page, EXAMPLES[0], model=name)[1] for name in ("tiny", "pretrained"))
    assert "±" in embedded and "±" not in tiny  # nobody has measured the untrained one's error
    line = re.search(r"The model says: (.*?)</p>", embedded)[1]
    assert "mirrored" in line  # by the matcher, as it is


def test_equal_views_have_no_difference_and_the_model_agrees_where_it_must(page):
    """Averaged over both orders, what swapping negates is exactly zero for equal views."""
    html = ask(page, EXAMPLES[0], NEUTRAL)[1]
    cells = re.search(r"brightness<small>.*?<td>(.*?)</td><td>(.*?)</td>", html)
    assert cells.groups() == ("0.00", "0.00")
    assert "In truth: b shows no clear difference from a." in html


def test_a_gray_photograph_is_noticed_in_the_picture(page, tmp_path):
    Image.open(EXAMPLES[0]).convert("L").save(tmp_path / "gray.png")
    told = ask(page, tmp_path / "gray.png", model="pretrained")[1]
    assert told.count(HIDDEN) == 2 and "saturation and hue (a picture is gray)" in told


def test_surprise_draws_both_views_from_the_key(page):
    asked = "tiny", handle_file(EXAMPLES[0])
    first, second = (page.predict(*asked, api_name="/surprise") for _ in range(2))
    assert len(first) == 20 and first != second
    rows = controls(SPEC)
    drawn = (draw(Policy(size=32), (0, 0, 1, view), 433, 640) for view in (0, 1))
    expected = [value for view in drawn for value in values(rows, view, 433, 640)]
    assert list(first) == pytest.approx(expected)


def test_no_photograph_is_explained_where_it_would_be(page):
    stage, told = page.predict("tiny", None, *NEUTRAL, *CHANGED, api_name="/what_changed")
    assert "There is no photograph: pick an example or upload one." in stage and told == ""
    assert WAITING not in stage
