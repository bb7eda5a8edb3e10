"""Encoder, the public name: any kind of picture gives the features that a file of it gives."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import multiprocessing
import os
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from answers import same_answers
from handmade import DAMAGED_PALETTES
from PIL import Image

from augself_hub import Encoder
from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images.given import Skipped
from serving.inference.engine import MAX_BATCH


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder(tiny_model, device="cpu", threads=1)


@pytest.fixture(scope="module")
def pngs(tmp_path_factory, photographs):
    """Photographs without loss, so that pixels and files say the same."""
    place = tmp_path_factory.mktemp("pngs")
    for number, path in enumerate(photographs[:3]):
        Image.open(path).convert("RGB").resize((90, 70)).save(place / f"{number}.png")
    return sorted(place.iterdir())


def test_every_kind_of_picture_gives_the_same_features(encoder, pngs):
    expected = encoder.features(pngs)
    assert expected.shape == (3, encoder.dim) and expected.dtype == np.float32
    arrays = [np.asarray(Image.open(path)) for path in pngs]
    for kind in (
        [str(path) for path in pngs],
        [path.read_bytes() for path in pngs],
        [Image.open(path) for path in pngs],
        arrays,
        (array for array in arrays),
        np.stack(arrays),
        [np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]) for array in arrays],
    ):
        assert np.array_equal(encoder.features(kind), expected)


def test_features_are_those_of_stock_transformers(encoder, tiny_model, pngs):
    torch = pytest.importorskip("torch")
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(tiny_model).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_model, backend="pil")
    with torch.no_grad():
        pixels = processor([Image.open(path) for path in pngs], return_tensors="pt")
        expected = model(**pixels).pooler_output.flatten(1).numpy()
    cosine = (encoder.features(pngs, normalize=True) * expected).sum(1)
    assert cosine == pytest.approx(np.linalg.norm(expected, axis=1), rel=1e-4)


def test_a_gray_array_is_the_picture_in_three_channels(encoder):
    gray = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    one, three = encoder.features([gray, np.dstack([gray] * 3)])
    assert np.array_equal(one, three)


def test_long_lists_keep_their_order(encoder):
    """More than a batch, each of another colour; a row is what it is alone."""
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in range(200)]
    rows = encoder.features(iter(pictures))
    for number in (0, 63, 64, 128, 199):
        alone = encoder.features([pictures[number]])[0]
        assert np.allclose(rows[number], alone, rtol=1e-4, atol=1e-6)
    assert len({row.tobytes() for row in rows}) == 200


def test_nothing_gives_no_rows_and_length_one_is_had_by_asking(encoder, pngs):
    assert encoder.features([]).shape == (0, encoder.dim)
    rows = encoder.features(pngs, normalize=True)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), b"", Image.new("RGB", (4, 4))])
def test_a_single_picture_is_refused_with_the_mend(encoder, single):
    with pytest.raises(UsageError, match=r"a list of images: put the one into a list"):
        encoder.features(single)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (3, "int is no image"),
        (None, "NoneType is no image"),
        (np.zeros((4, 4, 3)), r"float64 array of shape \(4, 4, 3\) is no image"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is no image"),
        (Image.new("RGB", (0, 4)), "a PIL image of 0 x 4 pixels is no image"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\) is no image"),
    ],
)
def test_what_is_no_picture_is_refused(encoder, wrong, said):
    with pytest.raises(UsageError, match=said):
        encoder.features([np.zeros((4, 4, 3), np.uint8), wrong])


def test_a_broken_picture_is_named(encoder, pngs, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pngs[0].read_bytes()[:200])
    with pytest.raises(ImageError, match=r"broken\.png: "):
        encoder.features([pngs[0], broken])
    with pytest.raises(ImageError, match="image 1: "):
        encoder.features([pngs[0], broken.read_bytes()])
    with pytest.raises(AugSelfError, match=r"none\.png: No such file or directory"):
        encoder.features([tmp_path / "none.png"])


def test_a_closed_or_truncated_pil_image_is_named(encoder, pngs):
    closed, truncated = (Image.open(path) for path in pngs[:2])
    closed.close()
    with pytest.raises(ImageError, match="image 0: the PIL image cannot be read: Operation on clo"):
        encoder.features([closed])
    truncated = Image.open(io.BytesIO(pngs[0].read_bytes()[:200]))
    with pytest.raises(AugSelfError, match="image 1: "):
        encoder.features([pngs[0], truncated])


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True])
def test_a_wrong_number_of_threads_is_refused(tiny_model, threads):
    with pytest.raises(UsageError, match=f"{threads!r} threads cannot run a model"):
        Encoder(tiny_model, threads=threads)


def test_broken_images_are_skipped_and_reported(encoder, pngs, tmp_path):
    """Their rows are NaN, so that the others keep their places."""
    broken, gone = tmp_path / "broken.png", tmp_path / "none.png"
    broken.write_bytes(pngs[0].read_bytes()[:200])
    images = [broken, pngs[0], gone, b"nothing", pngs[1]]
    with pytest.warns(Skipped, match="3 of 5 images cannot be read") as told:
        rows = encoder.features(iter(images), on_error="skip")
    assert np.isnan(rows).all(1).tolist() == [True, False, True, True, False]
    assert np.array_equal(rows[[1, 4]], encoder.features(pngs[:2]))
    reasons = told[0].message.reasons
    assert list(reasons) == [0, 2, 3]
    assert reasons[2] == f"{gone}: No such file or directory" and reasons[3].startswith("image 3: ")
    with pytest.raises(UsageError, match="int is no image"):  # a mistake, and no damage
        encoder.features([3], on_error="skip")
    with pytest.raises(UsageError, match="on_error='ignore': give raise or skip"):
        encoder.features(pngs, on_error="ignore")


@pytest.mark.parametrize("data", DAMAGED_PALETTES.values(), ids=DAMAGED_PALETTES)
def test_a_damaged_palette_is_skipped_like_any_damage(encoder, pngs, data):
    """Also of a picture that was opened by Pillow, which has seen nothing of it yet."""
    with pytest.warns(Skipped, match="1 of 2 images cannot be read"):
        encoder.features([data, pngs[0]], on_error="skip")
    opened = Image.open(io.BytesIO(data))
    try:
        opened.convert("RGBA")
    except (AssertionError, ValueError):
        with pytest.warns(Skipped, match="1 of 2 images cannot be read"):
            encoder.features([Image.open(io.BytesIO(data)), pngs[0]], on_error="skip")


def test_a_list_of_nothing_but_broken_images(encoder):
    with pytest.warns(Skipped, match="2 of 2"):
        rows = encoder.features([b"", b""], on_error="skip", normalize=True)
    assert rows.shape == (2, encoder.dim) and np.isnan(rows).all()


@pytest.mark.parametrize("wrong", [3, None, 2.5])
def test_what_is_no_list_is_refused(encoder, wrong):
    with pytest.raises(UsageError, match="takes a list of images, not"):
        encoder.features(wrong)


def test_urls_are_the_server_s(encoder):
    with pytest.raises(UsageError, match="--allow-url-host"):
        encoder.features(["https://example.org/a.jpg"])


def test_a_long_list_is_held_a_batch_at_a_time(encoder):
    """Of 300 images from an iterator no more are alive than a batch and those that come."""
    alive, most = [], 0

    def coming():
        nonlocal most
        for number in range(300):
            image = Image.new("RGB", (32, 32), (number % 256, 0, 0))
            alive.append(weakref.ref(image))
            most = max(most, sum(one() is not None for one in alive))
            yield image
            del image

    assert len(encoder.features(coming())) == 300
    assert most <= 2 * MAX_BATCH


def test_a_bar_is_shown_by_asking_and_counts_images(encoder, pngs, capsys):
    encoder.features(pngs, progress=True)
    assert "3/3" in capsys.readouterr().err
    encoder.features(pngs)
    assert capsys.readouterr().err == ""


def test_an_encoder_says_what_it_is(encoder):
    assert repr(encoder).startswith("Encoder(tiny: 32 x 32 pixels -> 128 features, heads: crop, co")


def test_a_pipe_is_not_waited_for(encoder, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="no regular file"):
        encoder.features([tmp_path / "pipe.jpg"])


def test_a_difference_is_what_predict_prints(augself, tiny_model, encoder, pngs):
    difference = encoder.difference(pngs[0], np.asarray(Image.open(pngs[1])))
    printed = augself("predict", pngs[0], pngs[1], "--model", tiny_model, "--device", "cpu")
    assert printed.out == f"{difference}\n"
    told = augself("predict", pngs[0], pngs[1], "--model", tiny_model, "--json", "--device", "cpu")
    assert json.loads(told.out) == difference.to_dict()
    assert {row[0] for row in difference.rows()} == {"crop", "color", "flip"}


def test_bytes_of_a_jpeg_are_read_as_the_server_reads_them(encoder, photographs):
    data = io.BytesIO(photographs[0].read_bytes()).getvalue()
    assert np.array_equal(encoder.features([data]), encoder.features([photographs[0]]))


@pytest.mark.parametrize("which", ["embedded, with a matcher", "tiny, without"])
def test_differences_of_many_pairs_are_those_of_each(which, encoder, photographs, pngs):
    """More than a batch, of pictures of one thing and of two, one gray, in every form."""
    asked = encoder if which.startswith("tiny") else Encoder(device="cpu", threads=1)
    gray = Image.open(pngs[0]).convert("L")
    pictures = [*pngs, photographs[0].read_bytes(), np.asarray(Image.open(pngs[1])), gray]
    pairs = [(a, b) for a in pictures for b in pictures]
    assert len(pairs) > MAX_BATCH // 2
    wanted = [asked.difference(a, b) for a, b in pairs]
    same_answers(asked.differences(pairs), wanted)
    same_answers(asked.differences(iter(pairs[:3])), wanted[:3])
    table = np.array([(str(pngs[0]), str(pngs[1]))], dtype=object)  # as pandas gives it
    same_answers(asked.differences(table), asked.differences([[pngs[0], pngs[1]]]))
    assert asked.differences([]) == []


def test_of_many_pairs_one_that_cannot_be_read_is_named_or_skipped(encoder, pngs):
    bad = [(pngs[0], pngs[1]), (pngs[0], b"no image"), ("none.png", pngs[0]), (pngs[1], pngs[2])]
    with pytest.raises(ImageError, match=r"^pair 1: image b: "):
        encoder.differences(bad)
    with pytest.raises(AugSelfError, match=r"^pair 1: none\.png: No such file"):
        encoder.differences([bad[0], bad[2]])
    said = "2 of 4 pairs cannot be read, and their differences are None: pair 1: image b: "
    with pytest.warns(Skipped, match=said) as caught:
        found = encoder.differences(bad, on_error="skip")
    assert sorted(caught[0].message.reasons) == [1, 2]
    assert found[1] is found[2] is None
    same_answers([found[0], found[3]], [encoder.difference(*bad[0]), encoder.difference(*bad[3])])
    with pytest.warns(Skipped, match="1 of 1 pairs"):
        assert encoder.differences(bad[1:2], on_error="skip") == [None]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("ab", r"differences takes a list of pairs, \[\(a, b\), ...\], not str of 2"),
        (7, "not int"),
        (["ab"], "pair 0 is no pair of images .* but str of 2"),
        ([(b"", b"", b"")], "pair 0 is no pair of images .* but tuple of 3"),
        ([np.zeros((2, 8, 3), np.uint8)], "pair 0 is no pair of images .* but ndarray of 2"),
        ([(3, 4)], "pair 0: image a: int is no image"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(encoder, pairs, said):
    with pytest.raises(UsageError, match=said):
        encoder.differences(pairs, on_error="skip")
    with pytest.raises(UsageError, match="give raise or skip"):
        encoder.differences([], on_error="ignore")


def test_a_model_without_heads_gives_no_difference(tiny_model, tmp_path):
    from augself_hub import AugSelfModel

    model = AugSelfModel.from_pretrained(tiny_model)
    from augself_hub.modeling.export import export_folder
    from augself_hub.modeling.model import AugSelfHeads

    model.spec = dataclasses.replace(model.spec, heads={})
    model.heads = AugSelfHeads(model.spec)
    model.save_pretrained(tmp_path / "bare")
    export_folder(tmp_path / "bare")
    with pytest.raises(AugSelfError, match="has no AugSelf heads"):
        Encoder(tmp_path / "bare", device="cpu").difference(b"", b"")
    with pytest.raises(AugSelfError, match="has no AugSelf heads"):
        Encoder(tmp_path / "bare", device="cpu").differences([])


def _asked(encoder: Encoder, images: list[Path], answers: multiprocessing.SimpleQueue) -> None:
    answers.put(encoder.features(images))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_encoder_goes_to_a_worker(encoder, pngs, method):
    """As PyTorch's DataLoader, joblib and multiprocessing hand it over."""
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    worker = context.Process(target=_asked, args=(encoder, pngs, answers))
    worker.start()
    assert np.array_equal(answers.get(), encoder.features(pngs))
    worker.join()


def test_an_encoder_is_pickled_as_what_it_was_opened_with(tiny_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Encoder("model", device="cpu", threads=1, decode="fast"))
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again._options["decode"], again._threads, again.name) == ("fast", 1, "model")
    assert copy.copy(again).dim == again.dim
    shutil.rmtree(folder)
    with pytest.raises(AugSelfError, match="no model at"):
        pickle.loads(pickled)


def test_another_model_at_the_place_is_not_the_one_that_was_pickled(
    tiny_model, other_tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    pickled = pickle.dumps(Encoder(folder, device="cpu", threads=1))
    shutil.rmtree(folder)
    shutil.copytree(other_tiny_model, folder)
    with pytest.raises(AugSelfError, match="is not the model that was pickled"):
        pickle.loads(pickled)


def test_a_column_of_paths(encoder, pngs):
    """As pandas' `frame["path"].to_numpy()` gives it."""
    expected = encoder.features(pngs)
    for kind in (np.array([str(p) for p in pngs]), np.array(pngs, dtype=object)):
        assert np.array_equal(encoder.features(kind), expected)
    assert encoder.features(np.array([])).shape == (0, encoder.dim)
    with pytest.raises(UsageError, match="put the one into a list"):
        encoder.features(np.zeros(5, np.uint8))
