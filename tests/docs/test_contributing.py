"""CONTRIBUTING.md: its changes fit the tree as it is, and what they add is trained."""

from __future__ import annotations

import ast
import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
TWO_STEPS = """
import sys
from pathlib import Path
import torch
from augself_hub import AugSelfLoss, Policy
from augself_hub.errors import UsageError
from augself_hub.modeling.encoders import build_encoder
from augself_hub.modeling.views import finish_views
from training.data.batches import ViewsDataset, collate
from training.methods import METHODS
from training.data.sources import open_images

torch.manual_seed(0)
policy, weights = Policy(size=32).with_kinds(["gamma"]), {"crop": 1.0, "gamma": 1.0}
method = METHODS["barlow"](build_encoder("convnext-atto", 32), width=16)
augself = AugSelfLoss(method.encoder.dim, weights, policy)
learned = [*method.parameters(), *augself.parameters()]
optimizer = torch.optim.SGD(learned, lr=0.01)
images = ViewsDataset(open_images(Path(sys.argv[1])), policy, seed=0)
batch = collate([images[0, i] for i in range(16)])
w1, w2 = batch["w1"], batch["w2"]
both = {name: torch.cat([w1[name], w2[name]]) for name in w1}
x1, x2 = finish_views(batch["crops"], both, policy).chunk(2)
for step in range(2):
    loss, y1, y2 = method(x1, x2)
    extra, parts = augself(y1, y2, w1, w2)
    optimizer.zero_grad()
    (loss + extra).backward()
    assert all(p.grad is not None for p in learned)
    optimizer.step()
    print({"method": loss.item(), **{kind: value.item() for kind, value in parts.items()}})
try:
    AugSelfLoss(method.encoder.dim, weights, policy, "paper")
except UsageError as error:
    print(error)
"""


def apply(block: str, tree: Path) -> Path:
    """One change: its lines with a blank or a minus are there, once; they become the others."""
    header, *lines = block.splitlines(keepends=True)
    place = tree / header.removeprefix("+++ ").strip()
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    if old:
        text = place.read_text()
        assert text.count(old) == 1, f"{place.name} has not once: {old}"
        new = text.replace(old, new)
    else:
        assert not place.exists(), place
    place.write_text(new)
    return place


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A copy of the tree with every change made in it, and the files that changed."""
    ignored = shutil.ignore_patterns("__pycache__", "pretrained", "results")
    for part in ("augself_hub", "training", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    changed = [apply(textwrap.dedent(block), tmp_path) for block in BLOCKS]
    return tmp_path, changed


def test_the_method_the_kind_and_the_encoder_train_two_steps(grown, photo_folder):
    """In a process of their own, whose package is the copy; gamma is no kind of the paper's."""
    tree, changed = grown
    assert len(BLOCKS) == 15 and tree / "training/methods/barlow.py" in changed
    done = subprocess.run(
        [sys.executable, "-c", TWO_STEPS, str(photo_folder)],
        cwd=tree, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, refused = done.stdout.splitlines()
    before, after = ast.literal_eval(first), ast.literal_eval(second)
    assert set(before) == {"method", "crop", "gamma"}
    assert all(math.isfinite(after[name]) and after[name] != before[name] for name in before)
    assert refused == "unknown augmentation 'gamma': use crop, color, flip, blur, rot, sol"


def test_the_programs_of_the_guides_are_written_as_ours(grown):
    """The changed files pass the linter and the formatter."""
    tree, changed = grown
    shutil.copy(ROOT / "pyproject.toml", tree)
    programs = sorted({str(path) for path in changed if path.suffix == ".py"})
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *programs],
            cwd=tree, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
