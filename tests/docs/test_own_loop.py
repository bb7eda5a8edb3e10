"""docs/own-loop.md: both loops run on real photographs, and the heads learn in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs/own-loop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["bare", "lightly"])
def test_the_loop_trains_the_heads(block, photo_folder, tmp_path, monkeypatch):
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
