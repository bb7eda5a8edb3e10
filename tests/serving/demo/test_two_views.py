"""The demo: values by hand, the page asked as a client asks it, bad uploads, what it imports."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from augself_hub.augmentations.sampling import draw
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from serving.client import Local
from serving.demo import LAUNCH, build
from serving.demo.comparison import HIDDEN, compare, table
from serving.demo.controls import box, controls, parameters, place, values
from serving.demo.two_views import EXAMPLES, enlarged, outlined, two_views
from serving.engine import Engine

POLICY = Policy(size=32).with_kinds(("rot", "sol"))
ROOT = Path(__file__).parents[3]
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


@pytest.fixture(scope="module")
def page(tiny_model: Path) -> Iterator[Client]:
    """The page as app.py starts it, and a client of it."""
    blocks = build(Local(Engine(tiny_model, "cpu", threads=1)))
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    yield Client(url, verbose=False, analytics_enabled=False)
    blocks.close(verbose=False)


def ask(page: Client, photograph: str | Path, b: list = CHANGED) -> tuple:
    return page.predict(handle_file(str(photograph)), *NEUTRAL, *b, api_name="/two_views")


def test_a_photograph_is_answered_with_pictures_and_the_table(page):
    photograph, a, b, html = ask(page, EXAMPLES[0])
    assert Image.open(photograph).size == (640, 433)
    assert [Image.open(view).size for view in (a, b)] == [(256, 256)] * 2
    assert re.findall(r'<th scope="row">(\w+)', html) == [
        *("y", "x", "height", "width", "brightness", "contrast", "saturation", "hue", "mirrored"),
    ]
    assert "+0.18" in html  # log 1.2


def test_equal_views_have_no_difference_and_the_model_agrees_where_it_must(page):
    """Averaged over both orders, what swapping negates is exactly zero for equal views."""
    html = ask(page, EXAMPLES[0], NEUTRAL)[-1]
    cells = re.search(r"brightness<small>.*?<td>(.*?)</td><td>(.*?)</td>", html)
    assert cells.groups() == ("0.00", "0.00")


def test_a_gray_photograph_is_noticed_in_the_picture(page, tmp_path):
    Image.open(EXAMPLES[0]).convert("L").save(tmp_path / "gray.png")
    assert ask(page, tmp_path / "gray.png")[-1].count(HIDDEN) == 2


def test_surprise_draws_both_views_from_the_key(page):
    first, second = (page.predict(handle_file(EXAMPLES[0]), api_name="/surprise") for _ in range(2))
    assert len(first) == 20 and first != second
    rows = controls(SPEC)
    drawn = (draw(Policy(size=32), (0, 0, 1, view), 433, 640) for view in (0, 1))
    expected = [value for view in drawn for value in values(rows, view, 433, 640)]
    assert list(first) == pytest.approx(expected)


def truncated() -> bytes:
    return Path(EXAMPLES[0]).read_bytes()[:20_000]


def tiff() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"this is no picture", "the data is not an image: send JPEG"),
        (truncated(), "the image cannot be decoded"),
        (b"", "the image is empty"),
        (tiff(), "is not read: send JPEG"),
    ],
    ids=["text", "truncated", "empty", "tiff"],
)
def test_a_bad_upload_is_explained_and_the_page_lives_on(page, tmp_path, data, message):
    path = tmp_path / "photograph.jpg"
    path.write_bytes(data)
    with pytest.raises(AppError, match=message):
        ask(page, path)
    assert "mirrored" in ask(page, EXAMPLES[1])[-1]


def test_no_photograph_is_explained(page):
    with pytest.raises(AppError, match="there is no photograph: pick an example"):
        page.predict(None, *NEUTRAL, *CHANGED, api_name="/two_views")


def test_the_page_fetches_nothing_from_elsewhere(page):
    html = urllib.request.urlopen(page.src).read().decode()
    theme = urllib.request.urlopen(f"{page.src}theme.css").read().decode()
    assert not re.findall(r'(?:src|href)="https?://', html)
    assert "url(http" not in theme and "@import" not in theme
    assert page.config["stylesheets"] == [] and page.config["analytics_enabled"] is False


def test_the_examples_are_small_bare_and_licensed():
    licenses = (Path(EXAMPLES[0]).parent / "LICENSES.md").read_text()
    for path in map(Path, EXAMPLES):
        image = Image.open(path)
        assert path.name in licenses
        assert path.stat().st_size < 100_000 and max(image.size) == 640 and not image.getexif()


def test_the_demo_needs_no_torch():
    code = "import sys, app; print({'torch', 'torchvision', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
