"""The preprocessing contract: parity with the stock processor, and what a folder says of it."""

import dataclasses
import io
import json

import numpy as np
import pytest
from handmade import photograph, saved
from PIL import Image

from augself_hub.errors import ModelFolderError, UsageError
from augself_hub.preprocess import Preprocessing, crop_resized, decode, load, preprocess


def noise(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


# -- Parity with transformers ----------------------------------------------------------------------

SIZES = [
    (1, 1), (1, 7), (7, 1), (1, 100), (33, 57), (97, 96), (224, 224), (225, 301), (301, 225),
    (375, 500), (501, 333), (40, 1000), (300, 20),
]  # fmt: skip


def stock(backend, size, image):
    transformers = pytest.importorskip("transformers")
    pil = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil
    processor = {"pil": pil, "torchvision": transformers.BitImageProcessor}[backend](
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    return np.asarray(pixels).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("picture", [photograph, noise])
def test_equal_to_the_stock_processor(size, height, width, picture):
    """Within a grey level and 0.001 on average of the Pillow backend.

    The torchvision backend rounds differently while it enlarges: it is up to 2 grey levels from
    the Pillow backend, and no farther from us.
    """
    image = picture(height, width)
    ours = preprocess(image, size)
    pillow, torchvision = stock("pil", size, image), stock("torchvision", size, image)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
    assert difference(ours, pillow).max() <= 1
    assert difference(ours, pillow).mean() <= 0.001
    shrinks = min(height, width) >= size
    assert difference(ours, torchvision).max() <= (1 if shrinks else 2)
    assert difference(ours, torchvision).mean() <= max(
        0.01, difference(pillow, torchvision).mean() + 0.001
    )


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_are_equal_to_the_stock_processor_too(backend, mode):
    image = photograph(60, 80).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize((80, 60)))
    ours = preprocess(decode(saved(image, "PNG")), 48)
    assert difference(ours, stock(backend, 48, image)).max() <= 1


def test_only_the_crop_is_computed():
    """1 x 40,000 pixels would be 224 x 8,960,000 if the whole were resized."""
    image = Image.new("RGB", (40_000, 1), (10, 20, 30))
    image.paste((200, 100, 0), (20_000, 0, 40_000, 1))
    ours = preprocess(image, 224)
    assert (ours[:, 0] == (10, 20, 30)).all() and (ours[:, -1] == (200, 100, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("mode", "height", "width"),
    [("RGBA", 1100, 1400), ("L", 1400, 1100), ("P", 1100, 1000), ("RGB", 60, 20_000),
     ("RGBA", 20_000, 60)],
)  # fmt: skip
def test_a_large_picture_is_prepared_in_strips_bit_by_bit(mode, height, width, orientation):
    """As if it were turned, composited and resized whole, in both of Pillow's orders of passes."""
    image = Image.effect_noise((width, height), 200).convert("RGB")
    if mode == "RGBA":
        image.putalpha(Image.radial_gradient("L").resize((width, height)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image.convert(mode), "PNG", exif=exif, compress_level=1)
    ours = Preprocessing(96, (0.5,) * 3, (0.5,) * 3).prepare(data)
    np.testing.assert_array_equal(ours, preprocess(decode(data), 96))


def test_the_training_crop_is_pillows_antialiased_bilinear_resize():
    image = photograph(100, 120)
    ours = crop_resized(image, (20, 10, 110, 90), 32)
    theirs = image.crop((20, 10, 110, 90)).resize((32, 32), Image.Resampling.BILINEAR)
    assert difference(ours, theirs)[1:-1, 1:-1].max() <= 1  # edges see beyond the box


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    image, path = photograph(48, 64), tmp_path / "photograph.txt"
    path.write_bytes(saved(image, "PNG"))
    np.testing.assert_array_equal(load(path, 24), preprocess(image, 24))


# -- preprocessor_config.json ----------------------------------------------------------------------

CONFIG = {
    "size": {"shortest_edge": 96},
    "crop_size": {"height": 96, "width": 96},
    "resample": 3,
    "image_mean": [0.43, 0.42, 0.39],
    "image_std": [0.27, 0.26, 0.27],
}


def write_config(folder, **changes):
    (folder / "preprocessor_config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def test_a_folders_preprocessing_is_read(tmp_path):
    ours = Preprocessing.from_folder(write_config(tmp_path, do_resize=True, do_rescale=None))
    assert ours == Preprocessing(96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27))


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 2}, {"crop_size": {"height": 96, "width": 64}}, {"size": {"height": 96}},
        {"size": {"shortest_edge": 110}}, {"image_mean": None}, {"crop_size": 96},
        {"do_normalize": False}, {"do_center_crop": False}, {"do_flip_channel_order": True},
        {"rescale_factor": 1 / 127.5}, {"rescale_factor": "1/255"},
    ],
)  # fmt: skip
def test_another_contract_is_refused(tmp_path, changes):
    with pytest.raises(ModelFolderError, match=r"preprocessor_config\.json"):
        Preprocessing.from_folder(write_config(tmp_path, **changes))


def test_a_folder_without_it_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="is missing"):
        Preprocessing.from_folder(tmp_path)


def test_fast_decoding_is_near_the_exact_one_and_never_the_default(photographs):
    """On a photograph that is large enough to be decoded at half its size."""
    way = Preprocessing(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = photographs[0].read_bytes()
    exact, fast = (dataclasses.replace(way, decode=d).prepare(data) for d in ("exact", "fast"))
    assert (way.prepare(data) == exact).all()
    difference = np.abs(exact.astype(int) - fast.astype(int))
    assert 0 < difference.mean() < 2


def test_fast_decoding_leaves_what_is_small_or_no_jpeg_alone(photographs):
    large = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="fast")
    small = dataclasses.replace(large, decode="exact")
    image = Image.open(photographs[0]).resize((300, 260))
    for kind in ("JPEG", "PNG"):
        data = io.BytesIO()
        image.save(data, kind)
        assert (large.prepare(data.getvalue()) == small.prepare(data.getvalue())).all()


def test_another_way_to_decode_is_refused():
    with pytest.raises(UsageError, match="there is no decode 'lossy': give exact or fast"):
        Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), decode="lossy")
