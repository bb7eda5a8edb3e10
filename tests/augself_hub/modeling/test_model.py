"""AugSelfModel and the model folder: contracts C1 to C7 of the model folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from augself_hub import AugSelfModel, Encoder, preprocess
from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.folder import MANIFEST
from augself_hub.images.given import Skipped

STOCK = """
import json, sys
sys.modules["augself_hub"] = sys.modules["training"] = sys.modules["serving"] = None
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import ResNetBackbone, pipeline

folder, photo = sys.argv[1:]
image = Image.open(photo).convert("RGB")
model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
_, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
assert all(k.startswith("classifier") for k in info["missing_keys"]), info
assert not info["unexpected_keys"], info
_, info = ResNetBackbone.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
features = {}
for backend in ("torchvision", "pil"):
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    with torch.no_grad():
        output = model.eval()(**processor(image, return_tensors="pt"))
    features[backend] = output.pooler_output.flatten(1)[0].tolist()
pipe = pipeline("image-feature-extraction", model=folder, pool=True, device="cpu")
features["pipeline"] = np.asarray(pipe(image)).reshape(-1).tolist()
print(json.dumps(features))
"""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def own_features(folder: Path, photo: Path) -> np.ndarray:
    model = AugSelfModel.from_pretrained(folder)
    p = model.preprocessing
    pixels = torch.from_numpy(preprocess.load(photo, p.size).copy()).permute(2, 0, 1) / 255
    x = (pixels - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1)
    with torch.no_grad():
        return model(x[None]).features[0].numpy()


def test_stock_transformers_load_the_folder_without_this_project(tiny_model, photographs):
    """C1: AutoModel, both processors, the pipeline, classifier and backbone, project blocked."""
    run = subprocess.run(
        [sys.executable, "-c", STOCK, str(tiny_model), str(photographs[0])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ours = own_features(tiny_model, photographs[0])
    for way, features in json.loads(run.stdout.splitlines()[-1]).items():
        assert cosine(ours, np.asarray(features)) > 0.9999, way


def test_predict_difference_is_in_the_spec_s_shapes_and_antisymmetric(tiny_model):
    model = AugSelfModel.from_pretrained(tiny_model)
    xa, xb = torch.randn(2, 5, 3, 32, 32)
    with torch.no_grad():
        ab, ba = model.predict_difference(xa, xb), model.predict_difference(xb, xa)
    assert {kind: tuple(v.shape) for kind, v in ab.items()} == {
        "crop": (5, 4),
        "color": (5, 4),
        "flip": (5, 1),
    }
    torch.testing.assert_close(ab["color"], -ba["color"])
    torch.testing.assert_close(ab["crop"][:, 2:], -ba["crop"][:, 2:])
    assert not torch.allclose(ab["crop"][:, :2], -ba["crop"][:, :2])
    assert ((ab["flip"] > 0) & (ab["flip"] < 1)).all()


def test_save_and_load_keep_every_weight(tiny_model, tmp_path):
    model = AugSelfModel.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "copy")
    again = AugSelfModel.from_pretrained(tmp_path / "copy")
    assert again.spec == model.spec
    assert again.preprocessing == model.preprocessing
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_half_precision_model_is_published_in_float32_and_stays_half(tiny_model, tmp_path):
    model = AugSelfModel.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "copy")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    again = AugSelfModel.from_pretrained(tmp_path / "copy")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "copy/config.json").read_text())["dtype"] == "float32"


def test_nothing_in_a_folder_is_a_pickle(tiny_model):
    endings = {p.suffix for p in tiny_model.rglob("*") if p.is_file()}
    assert endings <= {".json", ".safetensors", ".onnx", ".md", ".png"}


def test_save_refuses_a_folder_that_exists(tiny_model):
    before = (tiny_model / MANIFEST).read_text()
    with pytest.raises(AugSelfError, match="exists"):
        AugSelfModel.from_pretrained(tiny_model).save_pretrained(tiny_model)
    assert (tiny_model / MANIFEST).read_text() == before


def test_a_flipped_byte_is_refused_by_name(tiny_model, tmp_path):
    model = AugSelfModel.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        AugSelfModel.from_pretrained(tmp_path / "copy")


def test_a_missing_model_says_what_to_give():
    with pytest.raises(ModelFolderError, match="give a model folder or a Hub id"):
        AugSelfModel.from_pretrained("nowhere")


def test_the_card_shows_what_the_heads_predict(tiny_model):
    card = (tiny_model / "README.md").read_text()
    assert "| color | saturation | log ratio |" in card
    assert "library_name: transformers" in card


def test_gray_photographs_give_the_same_features_as_their_rgb_twin(tiny_model, tmp_path):
    gray = Image.linear_gradient("L").resize((50, 40))
    gray.save(tmp_path / "l.png")
    gray.convert("RGB").save(tmp_path / "rgb.png")
    a, b = (own_features(tiny_model, tmp_path / name) for name in ("l.png", "rgb.png"))
    np.testing.assert_array_equal(a, b)


def test_images_are_taken_as_the_encoder_takes_them(tiny_model, photographs):
    """Paths, bytes and pixels; in training mode nothing is learned from what is looked at."""
    model = AugSelfModel.from_pretrained(tiny_model).train()
    model.heads.eval()
    statistics = model.encoder.state_dict()["embedder.embedder.normalization.running_mean"].clone()
    images = [photographs[0], photographs[1].read_bytes(), Image.open(photographs[2])]
    rows = model.features(images, batch_size=2)
    wanted = np.stack([own_features(tiny_model, photo) for photo in photographs[:3]])
    np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-5)
    after = model.encoder.state_dict()["embedder.embedder.normalization.running_mean"]
    assert torch.equal(statistics, after)
    assert model.training and model.encoder.training and not model.heads.training
    with pytest.raises(UsageError, match="put the one into a list"):
        model.features(photographs[0])
    with pytest.warns(Skipped, match="1 of 2"):
        assert np.isnan(model.features([photographs[0], b""], on_error="skip")[1]).all()


def test_a_difference_is_that_of_the_graphs(tiny_model, photographs):
    ours = AugSelfModel.from_pretrained(tiny_model).difference(*photographs[:2])
    theirs = Encoder(tiny_model, device="cpu").difference(*photographs[:2])
    assert ours.model == theirs.model == "tiny"
    pairs = zip(ours.to_dict()["differences"]["crop"], theirs.to_dict()["differences"]["crop"],
                strict=True)  # fmt: skip
    for mine, other in pairs:
        assert mine["value"] == pytest.approx(other["value"], abs=1e-3)
