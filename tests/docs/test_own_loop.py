"""docs/own-loop.md: both loops run on real photographs, the heads learn in them, and what they have
trained becomes a model folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from augself_hub import Encoder
from augself_hub.folder import verify
from augself_hub.preprocess import load
from serving.inference.engine import load as engine_of

PAGE = Path(__file__).parents[2] / "docs/own-loop.md"
*LOOPS, TO_A_FOLDER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", LOOPS, ids=["bare", "lightly"])
def test_the_loop_trains_the_heads_and_becomes_a_folder(
    block, photo_folder, photographs, tmp_path, monkeypatch
):
    if "lightly" in block:
        pytest.importorskip("lightly", reason="pip install 'augself-hub[bench]'")
    (tmp_path / "PHOTOS").symlink_to(photo_folder)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    preparation, loop = block.split("\nfor (", 1)
    names: dict = {}
    exec(preparation, names)
    before = [p.clone() for p in names["augself"].parameters()]
    exec(f"for ({loop}", names)
    assert torch.isfinite(names["loss"])
    after = names["augself"].parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    exec(TO_A_FOLDER, names)
    answers_are_the_networks(names, photographs[:2])


def answers_are_the_networks(names: dict, pair: list[Path]) -> None:
    """The folder's graphs, by torchvision's own network and the loop's heads."""
    views = names["views"]
    pixels = torch.tensor(np.stack([load(path, 32) for path in pair]) / 255, dtype=torch.float32)
    x = (pixels - torch.tensor(views.mean)) / torch.tensor(views.std)
    network = names.get("backbone", names["encoder"]).eval()
    with torch.no_grad():
        y = network(x.permute(0, 3, 1, 2))  # (2, 512)
        ab, ba = (names["augself"].heads.eval()(*(y[[i]] for i in order))["color"]
                  for order in ((0, 1), (1, 0)))  # fmt: skip
    std = [d.std for d in names["augself"].spec.heads["color"].dimensions]
    engine = engine_of(str(verify(Path("model"))))
    features = Encoder("model").features(pair)
    np.testing.assert_allclose(features, y.numpy(), atol=1e-4 * float(y.abs().max()))
    told = engine.differences(features[:1], features[1:])["color"]
    color = ((ab - ba) / 2 * torch.tensor(std)).numpy()
    np.testing.assert_allclose(told, color, rtol=1e-2, atol=1e-3)
