"""Contracts C1, C2, C3, C5 and C7 for every encoder family, and the table of docs/models.md.

Each cell of the table is run here, and what happens must be what the cell says.
The stock ways run in one process in which this project cannot be imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from javascript import node_modules
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoModel,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    RegNetConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from augself_hub import AugSelfModel, preprocess
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.errors import UsageError
from augself_hub.folder import FEATURES_GRAPH, read_manifest
from augself_hub.modeling.encoders import ENCODERS, build_encoder
from augself_hub.modeling.export import export_folder, write_graphs
from augself_hub.modeling.model import AugSelfHeads
from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
from augself_hub.preprocess import Preprocessing

DOCUMENT = Path(__file__).parents[3] / "docs/models.md"
STOCK = Path(__file__).with_name("stock_ways.py")
SIZE = 32
STAGES = {"embedding_size": 8, "depths": [1, 1, 1, 1]}
TOKENS = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}

# family -> a tiny configuration of its presets'
NEW = {
    "ResNet, basic blocks": ResNetConfig(
        **STAGES, hidden_sizes=[8, 16, 24, 32], layer_type="basic"
    ),
    "ResNet, bottlenecks": ResNetConfig(**STAGES, hidden_sizes=[16, 32, 48, 64]),
    "RegNet": RegNetConfig(**STAGES, hidden_sizes=[8, 16, 24, 32], groups_width=8, layer_type="x"),
    "ConvNext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "ViT (`vit-small`, `vit-base`)": Dinov2Config(
        **TOKENS, image_size=SIZE, patch_size=16, use_mask_token=False
    ),
}
# family -> what a foreign folder holds; its images are of another size, and no multiple of a patch
CONTINUED = {
    "Swin, continued": SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=56
    ),
    "DINOv2, continued": Dinov2Config(**TOKENS, image_size=56, patch_size=14),
    "stock ViT, continued": ViTConfig(
        **TOKENS, intermediate_size=128, image_size=SIZE, patch_size=16
    ),
}
FAMILIES = [*NEW, *CONTINUED]
# Graphs of an architecture that another row, or another test, exports as well.
SLOW_GRAPHS = (
    "ResNet, basic blocks",
    "ResNet, bottlenecks",
    "DINOv2, continued",
    "stock ViT, continued",
)
GRAPHS = ("ONNX", "transformers.js")


@torch.no_grad()
def shaken(network):
    """No weight and no statistic at its initial value; scales stay near 1."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn(value.shape))
    return network.eval()


def family_encoder(family, folder):
    """New, or built from a folder to continue from."""
    network = shaken(AutoModel.from_config(NEW.get(family) or CONTINUED[family]))
    if family in NEW:
        return network
    network.save_pretrained(folder)
    return build_encoder(str(folder), SIZE).network.eval()


def model_of(encoder, size=SIZE, kinds=("crop", "flip")):
    policy = Policy(size=size)
    with torch.no_grad():
        dim = encoder(torch.zeros(1, 3, size, size)).pooler_output.flatten(1).shape[1]
    spec = Spec("relative", policy, heads_for(kinds, policy), features=dim, hidden=16)
    heads = AugSelfHeads(spec)
    return AugSelfModel(
        encoder, heads, spec, Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD)
    ).eval()


def images(count=3, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def difference(a, b):
    """Largest norm-relative difference over the rows."""
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


def stock_report(folders, photo):
    """What transformers alone makes of model folders, this project out of reach."""
    run = subprocess.run(
        [sys.executable, STOCK, photo, *folders], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Family -> (encoder as built, its model folder)."""
    built = {}
    for family in FAMILIES:
        place = tmp_path_factory.mktemp("family")
        encoder = family_encoder(family, place / "foreign")
        model_of(encoder).save_pretrained(place / "model")
        built[family] = encoder, place / "model"
    return built


@pytest.fixture(scope="session")
def stock(models, photographs):
    folders = {family: folder for family, (_, folder) in models.items()}
    report = stock_report(folders.values(), photographs[0])
    return {family: report[str(folder)] for family, folder in folders.items()}


# -- The ways of loading: each returns what its cell says ------------------------------------------


@torch.no_grad()
def own_features(folder, photo):
    model = AugSelfModel.from_pretrained(folder)
    p = model.preprocessing
    pixels = torch.from_numpy(preprocess.load(photo, p.size).copy()).permute(2, 0, 1) / 255
    x = (pixels - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1)
    return model(x[None]).features[0].numpy()


def same_features(way):
    def check(report, encoder, folder, photo):
        if report[way] is None:
            pytest.skip("pip install sentence-transformers")
        assert cosine(own_features(folder, photo), np.array(report[way])) > 0.9999
        return "yes"

    return check


def auto_model(report, encoder, folder, photo):
    assert report["AutoModel"] == {"missing": [], "unexpected": []}
    return "yes"


def classification(report, encoder, folder, photo):
    keys = report["AutoModelForImageClassification"]
    assert keys["missing"] and all(name.startswith("classifier.") for name in keys["missing"])
    assert keys["unexpected"] == []
    return "yes"


def backbone(report, encoder, folder, photo):
    """ConvNext's and Swin's backbones normalise each map; those norms are in no AutoModel."""
    keys = report["Backbone"]
    if keys is None:
        return "transformers has none"
    assert all(name.startswith("hidden_states_norms.") for name in keys["missing"])
    assert all(name.startswith("layernorm.") for name in keys["unexpected"])
    return "yes, with new norms" if keys["missing"] else "yes"


@torch.no_grad()
def augself_model(report, encoder, folder, photo):
    model = AugSelfModel.from_pretrained(folder)
    x = images()
    expected = encoder(x).pooler_output.flatten(1)
    assert difference(model(x).features, expected) < 1e-6
    predicted = model.predict_difference(x, x.flip(0))
    assert {kind: tuple(v.shape) for kind, v in predicted.items()} == {
        "crop": (3, 4),
        "flip": (3, 1),
    }
    return "yes"


def exported_folder(folder):
    """A copy with all graphs, made once."""
    copy = folder.with_name("exported")
    if not copy.is_dir():
        export_folder(shutil.copytree(folder, copy), stock=True)
    return copy


def onnx(report, encoder, folder, photo):
    copy = exported_folder(folder)
    assert 0 < read_manifest(copy)["parity"]["features"] < 1e-4
    assert (copy / FEATURES_GRAPH).is_file()
    return "yes"


@torch.no_grad()
def transformers_js(report, encoder, folder, photo_of_any_size):
    """The same pixels within 1e-4; of a photograph of the right size the whole pipeline."""
    copy, side = exported_folder(folder), Preprocessing.from_folder(folder).size
    photo, x = folder.with_name("photo.png"), images(size=side)
    Image.fromarray(preprocess.load(photo_of_any_size, side)).save(photo)
    report = asked_in_node(copy, photo, x)
    expected = AugSelfModel.from_pretrained(copy)(x).features.numpy()
    pooled = np.array(report["pooled"]).reshape(expected.shape)
    np.testing.assert_allclose(pooled, expected, atol=1e-4, rtol=1e-4)
    assert cosine(own_features(folder, photo), np.array(report["pipeline"])) > 0.9999
    return "yes"


def asked_in_node(folder, photo, x):
    """What stock_ways.cjs says of a folder."""
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    pixels = folder / "pixels"
    pixels.write_bytes(x.numpy().tobytes())
    command = ["node", STOCK.with_suffix(".cjs"), folder, photo, pixels, str(x.shape[-1])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    pixels.unlink()
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@torch.no_grad()
def exported(report, encoder, folder, photo):
    model = AugSelfModel.from_pretrained(folder)
    size = model.preprocessing.size
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images(2, size),), dynamic_shapes=({0: batch},))
    x = images(5, size)
    assert difference(program.module()(x).features, model(x).features) < 1e-5
    return "yes"


@torch.no_grad()
def compiled(report, encoder, folder, photo):
    model = AugSelfModel.from_pretrained(folder)
    torch._dynamo.reset()
    x = images(size=model.preprocessing.size)
    fast = torch.compile(model, backend="eager", fullgraph=True)
    assert difference(fast(x).features, model(x).features) < 1e-5
    return "yes"


WAYS = {
    "AutoModel": auto_model,
    "processor, torchvision": same_features("torchvision"),
    "processor, PIL": same_features("pil"),
    "pipeline": same_features("pipeline"),
    "SentenceTransformer": same_features("SentenceTransformer"),
    "classification": classification,
    "Backbone": backbone,
    "AugSelfModel": augself_model,
    "ONNX": onnx,
    "transformers.js": transformers_js,
    "torch.export": exported,
    "torch.compile": compiled,
}


# -- The table -------------------------------------------------------------------------------------


def table(beginning):
    """The rows, without its ruler, of the table of docs/models.md that begins so."""
    text = DOCUMENT.read_text()
    lines = text[text.index(beginning) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def ways_of_families():
    """Family -> way -> what the cell says."""
    head, *rows = table("| encoder |")
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_table_has_every_family_and_every_way():
    assert list(ways_of_families()) == FAMILIES
    assert all(list(row) == list(WAYS) for row in ways_of_families().values())


CELLS = [
    pytest.param(family, way, marks=[pytest.mark.slow] * (way in GRAPHS and family in SLOW_GRAPHS))
    for family in FAMILIES
    for way in WAYS
]


@pytest.mark.parametrize(("family", "way"), CELLS)
def test_what_a_cell_says_is_what_happens(family, way, models, stock, photographs):
    outcome = WAYS[way](stock[family], *models[family], photographs[0])
    assert outcome == ways_of_families()[family][way]


def test_the_presets_are_those_there_are():
    documented = {}
    for names, _, widths in table("| preset |")[1:]:
        names, widths = names.replace("`", "").split(", "), map(int, widths.split(", "))
        documented |= zip(names, widths, strict=True)
    configs = {name: build(size=96) for name, build in ENCODERS.items()}
    assert documented == {
        name: c.hidden_sizes[-1] if hasattr(c, "hidden_sizes") else c.hidden_size
        for name, c in configs.items()
    }


# -- Beside the table ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_published_is_float32_and_no_pickle(family, models):
    """C5."""
    _, folder = models[family]
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        types = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert types <= {torch.float32, torch.int64}


def test_a_model_without_heads_has_one_graph(models, tmp_path):
    encoder, _ = models["ResNet, basic blocks"]
    model = model_of(encoder, kinds=())
    assert list(write_graphs(model, tmp_path)) == ["features"]
    assert [p.name for p in (tmp_path / "onnx").iterdir()] == [FEATURES_GRAPH.name]


@torch.no_grad()
def test_a_vit_to_continue_from_keeps_its_class_token(models):
    """C2: the ViT's own pooler is left out, everything before it is kept."""
    encoder, folder = models["stock ViT, continued"]
    vit = AutoModel.from_pretrained(folder.with_name("foreign")).eval()
    assert vit.config.model_type == "vit" and encoder.config.model_type == "dinov2"
    expected = vit(images()).last_hidden_state[:, 0]
    assert difference(encoder(images()).pooler_output, expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ViTConfig(**TOKENS, intermediate_size=100, image_size=32), "100 wide, not a multiple"),
        (DeiTConfig(**TOKENS, intermediate_size=64, image_size=32), "'deit' has a dense layer"),
    ],
)
def test_a_pooler_that_is_a_trained_layer_is_refused_by_name(config, reason, tmp_path):
    AutoModel.from_config(config).save_pretrained(tmp_path / "foreign")
    with pytest.raises(UsageError, match=reason):
        build_encoder(str(tmp_path / "foreign"), 32)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("preset", ENCODERS)
def test_every_preset_in_its_full_size(preset, tmp_path, photographs):
    """The same ways for each preset as it is trained, at 96 pixels."""
    encoder = shaken(build_encoder(preset, 96).network)
    model_of(encoder, 96).save_pretrained(tmp_path / "model")
    report = stock_report([tmp_path / "model"], photographs[0])[str(tmp_path / "model")]
    outcomes = {way: WAYS[way](report, encoder, tmp_path / "model", photographs[0]) for way in WAYS}
    assert {o.split(",")[0] for w, o in outcomes.items() if w != "Backbone"} == {"yes"}
