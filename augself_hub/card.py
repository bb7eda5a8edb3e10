"""The model card: README.md of a model folder, generated from the folder's own files.

Nothing in it is written by hand and nothing unmeasured is filled in.
"""

from __future__ import annotations

import json
from pathlib import Path

from augself_hub import hub
from augself_hub.augmentations.spec import Spec
from augself_hub.preprocess import Preprocessing

_METADATA = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
license: {license}
tags:
- augself
- image-feature-extraction
- self-supervised-learning
---
"""

_USE = """\
## How to use it

With transformers alone (features):

```python
from transformers import pipeline

extract = pipeline("image-feature-extraction", model="{name}", pool=True)
features = extract("photograph.jpg")
```

With `augself-hub` (features, and how two views differ):

```python
from augself_hub import AugSelfModel

model = AugSelfModel.from_pretrained("{name}")
features = model(pixel_values).features
difference = model.predict_difference(view_a, view_b)
```
"""

_CITATION = """\
## Citation

```bibtex
@inproceedings{lee2021augself,
  title     = {Improving Transferability of Representations via Augmentation-Aware
               Self-Supervision},
  author    = {Lee, Hankook and Lee, Kibok and Lee, Kimin and Lee, Honglak and Shin, Jinwoo},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}
```
"""


def write(folder: Path, name: str | None = None) -> None:
    """Write README.md of a model folder. The manifest must be written again afterwards.

    Args:
        name: what to call the model in the examples; None means the Hub-style placeholder.
    """
    (folder / "README.md").write_text(render(folder, name or "your-name/your-model"))


def render(folder: Path, name: str) -> str:
    """The card's text."""
    spec = hub.read_spec(folder)
    parts = [
        _METADATA.format(license=spec.provenance.get("license", "other")),
        _introduction(folder, spec),
        _USE.format(name=name),
        _augmentations(spec),
        _training(spec),
        _evaluation(folder),
        _CITATION,
    ]
    return "\n".join(part for part in parts if part)


def _introduction(folder: Path, spec: Spec) -> str:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    size = Preprocessing.from_folder(folder).size
    kinds = ", ".join(spec.heads) or "none"
    return (
        "# AugSelf image features\n\n"
        f"An image encoder ({architecture}, {size} x {size} pixels, {spec.features}-dimensional "
        "features) trained with augmentation-aware self-supervision "
        "([AugSelf](https://arxiv.org/abs/2111.09613)), with heads that predict how two views of "
        f"one image differ: {kinds}.\n"
    )


def _augmentations(spec: Spec) -> str:
    rows = [
        f"| {kind} | {d.name} | {d.unit} | {_number(d.standard_error)} |"
        for kind, head in spec.heads.items()
        for d in head.dimensions
    ]
    if not rows:
        return ""
    return "\n".join(
        [
            "## What the heads predict",
            "",
            f"Convention `{spec.convention}`. The standard error is measured on held-out pairs.",
            "",
            "| augmentation | value | unit | standard error |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _training(spec: Spec) -> str:
    if not spec.provenance:
        return ""
    rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in spec.provenance.items()]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *rows, ""])


def _evaluation(folder: Path) -> str:
    path = folder / hub.EVALUATION
    if not path.is_file():
        return ""
    results = json.loads(path.read_text())["results"]
    rows = [
        f"| {r['task']} | {r['name']} | {_number(r['value'])} | {_number(r.get('trivial'))} |"
        for r in results
    ]
    head = [
        "## Evaluation",
        "",
        "| task | measure | value | trivial predictor |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
