"""The tab "Two views": values by hand, and the page asked as a client asks it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from serving.demo.comparison import HIDDEN, compare, table
from serving.demo.controls import box, controls, labels, parameters, place, values
from serving.demo.files import Files
from serving.demo.frames import enlarged, outlined
from serving.demo.two_views import EXAMPLES, _of_model, two_views
from serving.demo.visitors import kept
from serving.inference.client import Local
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
    shown = two_views(photograph, view, view, POLICY)[0]
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


def test_views_are_enlarged_by_whole_pixels_and_boxes_are_drawn_at_their_place():
    view = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    assert enlarged(view).shape == (256, 256, 3) and (enlarged(view)[::8, ::8] == view).all()
    shown = np.asarray(outlined(Image.new("RGB", (1280, 640)), [(0, 0, 640, 640)] * 2))
    assert shown.shape == (320, 640, 3)
    assert shown[160, 320].any() == 0 and shown[160, 318].any() and not shown[160, 330:].any()


def test_several_models_share_the_controls_and_hide_what_one_does_not_have():
    specs = {"one": SPEC, "two": spec_of("color", "blur")}
    models = {name: Local(SimpleNamespace(spec=spec), Limits(), None, None) for name, spec in
              specs.items()}  # fmt: skip
    kinds = labels(specs.values())
    assert [label for _, label in kinds] == [
        *("Across", "Down", "Size", "Aspect", "Mirrored", "Brightness", "Contrast", "Saturation"),
        *("Hue (turns)", "Gray", "Blur (sigma, pixels)"),
    ]
    _, in_a, *headings, _ = _of_model(models, kinds, ["crop", "blur"], "two")[:5]
    assert (in_a["visible"], [h["visible"] for h in headings]) == (True, [False, True])
    controls_of_two = _of_model(models, kinds, ["crop", "blur"], "two")[4:]
    assert [c["visible"] for c in controls_of_two] == 2 * [*5 * [False], *6 * [True]]


def ask(page: Client, photograph: str | Path, b: list = CHANGED, model: str = "tiny") -> tuple:
    file = handle_file(str(photograph))
    return page.predict(model, file, *NEUTRAL, *b, api_name="/two_views")


def test_a_photograph_is_answered_with_pictures_and_the_table(page):
    photograph, a, b, html, frame, slider = ask(page, EXAMPLES[0])
    assert Image.open(photograph).size == (640, 433)
    assert [Image.open(view).size for view in (a, b)] == [(256, 256)] * 2
    assert [Image.open(path).size for path in (frame, *slider)] == [(480, 480)] * 3
    assert re.findall(r'<th scope="row">(\w+)', html) == [
        *("y", "x", "height", "width", "brightness", "contrast", "saturation", "hue", "mirrored"),
    ]
    assert "+0.18" in html  # log 1.2


def test_every_served_model_answers_for_itself(page):
    tiny, embedded = (ask(page, EXAMPLES[0], model=name)[3] for name in ("tiny", "pretrained"))
    assert "±" in embedded and "±" not in tiny  # nobody has measured the untrained one's error


def test_equal_views_have_no_difference_and_the_model_agrees_where_it_must(page):
    """Averaged over both orders, what swapping negates is exactly zero for equal views."""
    html = ask(page, EXAMPLES[0], NEUTRAL)[3]
    cells = re.search(r"brightness<small>.*?<td>(.*?)</td><td>(.*?)</td>", html)
    assert cells.groups() == ("0.00", "0.00")


def test_a_gray_photograph_is_noticed_in_the_picture(page, tmp_path):
    Image.open(EXAMPLES[0]).convert("L").save(tmp_path / "gray.png")
    assert ask(page, tmp_path / "gray.png")[3].count(HIDDEN) == 2


def test_surprise_draws_both_views_from_the_key(page):
    asked = "tiny", handle_file(EXAMPLES[0])
    first, second = (page.predict(*asked, api_name="/surprise") for _ in range(2))
    assert len(first) == 20 and first != second
    rows = controls(SPEC)
    drawn = (draw(Policy(size=32), (0, 0, 1, view), 433, 640) for view in (0, 1))
    expected = [value for view in drawn for value in values(rows, view, 433, 640)]
    assert list(first) == pytest.approx(expected)


def test_no_photograph_is_explained(page):
    with pytest.raises(AppError, match="there is no photograph: pick an example"):
        page.predict("tiny", None, *NEUTRAL, *CHANGED, api_name="/two_views")


def test_a_picture_that_is_shown_again_is_not_written_again(tmp_path):
    """Another visitor may be reading it."""
    picture, files = np.full((8, 8, 3), 77, np.uint8), Files(tmp_path, 2**20)
    path = Path(kept(files, picture))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    path.write_bytes(b"as it was")
    assert kept(files, picture) == str(path) and path.read_bytes() == b"as it was"
