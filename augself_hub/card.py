"""The model card: README.md of a model folder, generated from the folder's own files.

Nothing unmeasured is filled in. A card that somebody edited is theirs and is not written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from augself_hub.augmentations.spec import Cut, Dimension, Spec
from augself_hub.configs import read_json
from augself_hub.folder import (
    CARD,
    CURVES,
    ENCODER_GRAPH,
    MANIFEST,
    card_is_edited,
    read_manifest,
    read_spec,
)
from augself_hub.preprocess import Preprocessing
from augself_hub.results import read_evaluation
from augself_hub.terminal import shown

PLACEHOLDER = "your-name/your-model"

log = logging.getLogger(__name__)

_USE = """\
## How to use it

Features, with transformers alone:

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
pixels = processor(Image.open("a.jpg"), return_tensors="pt")
features = model(**pixels).pooler_output.flatten(1)
```
"""

_USE_HEADS = """\
What takes picture a to picture b, with `augself-hub`:

```python
from augself_hub import AugSelfModel

augself = AugSelfModel.from_pretrained("{name}").eval()
a = processor(Image.open("a.jpg"), return_tensors="pt")["pixel_values"]
b = processor(Image.open("b.jpg"), return_tensors="pt")["pixel_values"]
difference = augself.predict_difference(a, b)
```
"""

_USE_GRAPHS = """\
Features, and what differs between two pictures, on ONNX Runtime without torch:

```python
from augself_hub import Encoder

encoder = Encoder("{name}")
features = encoder.features(["a.jpg", "b.jpg"])
print(encoder.difference("a.jpg", "b.jpg"))
```

Over HTTP:

```sh
augself serve --model {name} --port 7860
curl -F image=@a.jpg localhost:7860/v1/embeddings
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


def write(folder: Path, name: str = PLACEHOLDER) -> None:
    """Write README.md of a model folder, but where somebody has edited it: then it is theirs.

    Args:
        name: what the examples call the model, e.g. its Hub id.
    """
    if card_is_edited(folder):
        log.warning("%s was edited and stays: remove it to have it generated", folder / CARD)
        return
    text = render(folder, name)
    (folder / CARD).write_text(text)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        manifest["card"] = {"generated": hashlib.sha256(text.encode()).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def render(folder: Path, name: str = PLACEHOLDER) -> str:
    """The card's text. Raises ModelFolderError where the folder is incomplete."""
    spec = read_spec(folder)
    evaluation = read_evaluation(folder)
    parts = [
        f"---\n{_metadata(spec, name, evaluation).to_yaml()}\n---\n",
        _introduction(folder, spec),
        _use(folder, spec, name),
        _augmentations(spec),
        _training(folder, spec),
        _results(evaluation),
        _limits(folder, spec),
        _CITATION,
    ]
    return "\n".join(part for part in parts if part)


def _metadata(spec: Spec, name: str, evaluation: dict[str, Any]) -> ModelCardData:
    measured = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=r.get("dataset", r["task"]).replace(" ", "-"),
            dataset_name=r.get("dataset", r["task"]),
            metric_type=r["metric"],
            metric_name=f"{r['task']}: {r['name']}" if "dataset" in r else r["name"],
            metric_value=round(r["value"], 4),
        )
        for r in evaluation["results"]
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=spec.provenance.get("license", "other"),
        tags=["augself", "self-supervised-learning"],
        datasets=_hub_data(spec),
        metrics=sorted({r["metric"] for r in evaluation["results"]}) or None,
        eval_results=measured or None,
    )


def _hub_data(spec: Spec) -> list[str] | None:
    """The Hub's data set it was trained on: `hf:ORG/NAME[:SPLIT]`."""
    kind, _, place = str(spec.provenance.get("data", "")).partition(":")
    return [place.partition(":")[0]] if kind == "hf" and "/" in place else None


def _introduction(folder: Path, spec: Spec) -> str:
    named = read_json(folder / "config.json").get("architectures") or [""]
    architecture = shown(str(named[0])) if isinstance(named, list) and named[0] else "no name"
    size = Preprocessing.from_folder(folder).size
    heads = (
        " with heads of augmentation-aware self-supervision "
        "([AugSelf](https://arxiv.org/abs/2111.09613)), which predict how two views differ: "
        f"{', '.join(spec.heads)}"
    )
    return (
        "# AugSelf image features\n\n"
        f"An image encoder ({architecture}, {size} x {size} pixels, {spec.features}-dimensional "
        f"features){heads if spec.heads else ''}.\n"
    )


def _use(folder: Path, spec: Spec, name: str) -> str:
    size = Preprocessing.from_folder(folder).size
    parts = [_USE, _USE_HEADS if spec.heads else "", _USE_GRAPHS if _has_graphs(folder) else ""]
    return "\n".join(part.format(name=name, size=size) for part in parts if part)


def _has_graphs(folder: Path) -> bool:
    return (folder / ENCODER_GRAPH).is_file()


_MEANING = {"relative": "what takes view a to view b", "paper": "view a minus view b"}


def _augmentations(spec: Spec) -> str:
    """What the heads predict, in which units."""
    if not spec.heads:
        return ""
    rows = [
        (kind, d.name, d.unit, _number(d.standard_error), _learned(d))
        for kind, head in spec.heads.items()
        for d in head.dimensions
    ]
    return (
        "## What the heads predict\n\n"
        f"Convention `{spec.convention}`: {_MEANING[spec.convention]}. The standard error is right "
        "on average over held-out pairs, not for every pair; empty: not measured. What is not "
        "learned has no answer.\n\n"
        + _table(("augmentation", "value", "unit", "standard error", "held-out pairs"), rows)
        + _match(spec)
    )


def _learned(dimension: Dimension) -> str:
    """R^2 or accuracy on held-out pairs with its 95% interval, and the mark."""
    mark = "**not learned** " if dimension.learned is False else ""
    if dimension.score is None or dimension.interval is None:
        return mark.strip()
    measure = "accuracy" if dimension.unit == "probability" else "R^2"
    low, high = dimension.interval
    return f"{mark}{measure} {dimension.score:.2f} ({low:.2f} to {high:.2f})"


def _match(spec: Spec) -> str:
    cuts = spec.match and {
        "have colours, or neither has": spec.match.alike,
        "are one gray and one coloured": spec.match.one_gray,
    }
    return "".join(_cut(case, cut) for case, cut in (cuts or {}).items() if cut is not None)


def _cut(case: str, m: Cut) -> str:
    return (
        f"\nWhere both pictures {case}, a pair counts as unlike pictures, and gets no answer, "
        f"below a probability of {m.least:.2f} of being of one thing, read off the cosine of the "
        f"features: {m.false_alarms:.1%} of {m.pairs} held-out pairs of one picture fall below "
        f"it, and {m.found:.0%} of about as many pairs of two (area under the ROC curve "
        f"{m.auc:.3f}).\n"
    )


def _training(folder: Path, spec: Spec) -> str:
    if not spec.provenance:
        return ""
    rows = [(shown(key.replace("_", " ")), shown(str(v))) for key, v in spec.provenance.items()]
    curves = f"\n![Training curves]({CURVES})\n" if (folder / CURVES).is_file() else ""
    return "## How it was trained\n\n" + _table(("", ""), rows) + curves


def _results(evaluation: dict[str, Any]) -> str:
    """A table for each task, with a column for whatever stands beside; not measured is empty."""
    if not evaluation["results"]:
        return ""
    text, told = "## Evaluation\n", None
    for task, group in groupby(evaluation["results"], key=lambda r: r["task"]):
        records = list(group)
        protocol = records[0].get("protocol") or evaluation["protocol"]
        labels = list(dict.fromkeys(label for r in records for label in r.get("beside", ())))
        rows = [
            (r["name"], _value(r), _number(r.get("trivial")), *(_beside(r, x) for x in labels))
            for r in records
        ]
        head = (task, "this model", "trivial predictor", *labels)
        text += f"\n{protocol}\n" if protocol != told else ""
        text, told = text + "\n" + _table(head, rows), protocol
    return text


def _value(record: dict[str, Any]) -> str:
    """With half its 95% interval and its unit, where the protocol states them."""
    interval = f" ± {_number(record['interval'])}" if "interval" in record else ""
    return _number(record["value"]) + interval + (" %" if record.get("unit") == "%" else "")


def _beside(record: dict[str, Any], label: str) -> str:
    """Another's value; in brackets how much this model has more, with its 95% interval."""
    other = record.get("beside", {}).get(label)
    if other is None:
        return ""
    more = f"{other['difference']:+.3g}"
    if other["interval"] is not None:
        more += ", {:+.3g} to {:+.3g}".format(*other["interval"])
    return f"{_number(other['value'])} ({more})"


def _limits(folder: Path, spec: Spec) -> str:
    size = Preprocessing.from_folder(folder).size
    lines = [f"Pictures are seen at {size} x {size} pixels, the middle square of each."]
    if any(d.needs_color for head in spec.heads.values() for d in head.dimensions):
        lines.append("Nothing can be said about saturation and hue where a picture is gray.")
    if spec.heads:
        lines.append(
            "The heads were trained on pairs of views of one picture; of two different pictures "
            "their answers mean nothing, and not every such pair is recognised as one."
        )
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    escaped = ((cell.replace("|", r"\|") for cell in line) for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
