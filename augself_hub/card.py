"""The model card: README.md of a model folder, generated from the folder's own files by `card.md`.

Nothing unmeasured is filled in. A card that somebody edited is theirs and is not written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from augself_hub import hub
from augself_hub.augmentations.spec import Dimension, Spec
from augself_hub.configs import computes, read_json
from augself_hub.folder import (
    CARD,
    CURVES,
    ENCODER,
    MANIFEST,
    STOCK_GRAPH,
    card_is_edited,
    files_of,
    read_manifest,
    read_spec,
)
from augself_hub.precision import QUANTIZED, graph_of
from augself_hub.preprocess import Preprocessing
from augself_hub.results import read_evaluation
from augself_hub.terminal import shown

PLACEHOLDER = "your-name/your-model"
_TEMPLATE = Path(__file__).with_name("card.md")

log = logging.getLogger(__name__)


def write(folder: Path, name: str = PLACEHOLDER) -> None:
    """Write README.md of a model folder, but where somebody has edited it: then it is theirs.

    Args:
        name: what the examples call the model, e.g. its Hub id.
    """
    if card_is_edited(folder):
        log.warning("%s was edited and stays: remove it to have it generated", folder / CARD)
        return
    text = render(folder, name)
    (folder / CARD).write_bytes(text.encode())  # as it is hashed, on any system
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        manifest["card"] = {"generated": hashlib.sha256(text.encode()).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def render(folder: Path, name: str = PLACEHOLDER) -> str:
    """The card's text. Raises ModelFolderError where the folder is incomplete."""
    spec, evaluation = read_spec(folder), read_evaluation(folder)
    named = read_json(folder / "config.json").get("architectures") or [""]
    architecture = shown(str(named[0])) if isinstance(named, list) and named[0] else "no name"
    dimensions = [(kind, d) for kind, head in spec.heads.items() for d in head.dimensions]
    calibrations = spec.match and {
        "have colours, or neither has": spec.match.alike,
        "are one gray and one coloured": spec.match.one_gray,
    }
    card = ModelCard.from_template(
        _metadata(folder, spec, name, evaluation["results"]),
        template_path=str(_TEMPLATE),
        name=name,
        spec=spec,
        architecture=architecture,
        size=Preprocessing.from_folder(folder).size,
        summary=list(_summary(folder, spec, architecture)),
        graphs=(folder / graph_of(folder)).is_file(),
        stock=_has_stock_graph(folder),
        dimensions=[
            (kind, d.name, d.unit, _number(d.standard_error), _learned(d)) for kind, d in dimensions
        ],
        needs_color=any(d.needs_color for _, d in dimensions),
        matcher=spec.matcher,
        matched=[
            (kind, d.name, d.unit, _learned(d))
            for kind, head in (spec.matcher.heads if spec.matcher else {}).items()
            for d in head.dimensions
        ],
        answers=[kind for kind, (which, _) in spec.answering().items() if which == "matcher"],
        calibrations=[(case, c) for case, c in (calibrations or {}).items() if c is not None],
        provenance=[
            (shown(key.replace("_", " ")), shown(str(v))) for key, v in spec.provenance.items()
        ],
        curves=CURVES if (folder / CURVES).is_file() else None,
        results=list(_results(evaluation)),
    )
    return f"{card}\n"


def _summary(folder: Path, spec: Spec, architecture: str) -> Iterator[list[str]]:
    """What somebody wants to know first; nothing that the folder does not say."""
    with safe_open(folder / ENCODER, "np") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    parameters = sum(math.prod(size) for size in sizes)
    size = Preprocessing.from_folder(folder).size
    yield ["what", f"an image encoder, {architecture}, {parameters / 1e6:.3g} million parameters"]
    yield ["in", f"pictures, of each the middle square at {size} x {size} pixels"]
    yield ["out", f"{spec.features} features, not scaled to length 1"]
    if kinds := list(spec.answering()):
        yield ["of two pictures", f"what takes one to the other: {', '.join(kinds)}"]
    files = {path: (folder / path).stat().st_size for path in files_of(folder) if computes(path)}
    smaller = [p for p in QUANTIZED if (folder / graph_of(folder, p)).is_file()]
    graphs = f", with graphs for ONNX Runtime ({', '.join(('fp32', *smaller))})"
    there = graphs if (folder / graph_of(folder)).is_file() else ""
    encoder, whole = files[ENCODER.as_posix()] / 1e6, sum(files.values()) / 1e6
    yield ["size", f"{encoder:.3g} MB of weights; {whole:.3g} MB in all{there}"]
    known = spec.provenance
    if "data" in known:
        of = f", {known['images']:,} images" if isinstance(known.get("images"), int) else ""
        yield ["trained on", shown(f"{known['data']}{of}")]


def _has_stock_graph(folder: Path) -> bool:
    return (folder / STOCK_GRAPH).is_file() and graph_of(folder) != STOCK_GRAPH


def _on_the_hub(source: Any) -> str | None:
    """`org/name` of a data set or model of the Hub, as it was given; None of anything else."""
    name = str(source).removeprefix("hf:").partition(":")[0].partition("@")[0]
    return name if hub.is_hub_id(name) and not Path(name).exists() else None


def _metadata(folder: Path, spec: Spec, name: str, results: list[dict[str, Any]]) -> ModelCardData:
    """The header that the Hub reads."""
    data, encoder = (_on_the_hub(spec.provenance.get(key, "")) for key in ("data", "encoder"))
    graphs = {
        "onnx": (folder / graph_of(folder)).is_file(),
        "transformers.js": _has_stock_graph(folder),
    }
    measured = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=r.get("dataset", r["task"]).replace(" ", "-"),
            dataset_name=r.get("dataset", r["task"]),
            metric_type=r["metric"],
            metric_name=f"{r['task']}: {r['name']}" if "dataset" in r else r["name"],
            metric_value=round(r["value"], 4),
        )
        for r in results
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=spec.provenance.get("license", "other"),
        tags=[
            *("augself", "self-supervised-learning", "vision"),
            *(tag for tag, there in graphs.items() if there),
        ],
        base_model=encoder,
        datasets=data and [data],
        metrics=sorted({r["metric"] for r in results}) or None,
        eval_results=measured or None,
    )


def _learned(dimension: Dimension) -> str:
    """R^2 or accuracy on held-out pairs with its 95% interval, and the mark."""
    mark = "**not learned** " if dimension.learned is False else ""
    if dimension.score is None or dimension.confidence_interval is None:
        return mark.strip()
    measure = "accuracy" if dimension.unit == "probability" else "R^2"
    low, high = dimension.confidence_interval
    return f"{mark}{measure} {dimension.score:.2f} ({low:.2f} to {high:.2f})"


def _results(evaluation: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Protocol (empty: as before), head and rows of a table for each task.

    A column stands for whatever is beside the model; what was not measured is empty.
    """
    told = None
    for task, group in groupby(evaluation["results"], key=lambda r: r["task"]):
        records = list(group)
        protocol = records[0].get("protocol") or evaluation["protocol"]
        labels = list(dict.fromkeys(label for r in records for label in r.get("compared_with", ())))
        rows = [
            [r["name"], _value(r), _number(r.get("baseline")), *(_beside(r, x) for x in labels)]
            for r in records
        ]
        head = [task, "this model", "baseline", *labels]
        yield "" if protocol == told else protocol, head, rows
        told = protocol


def _value(record: dict[str, Any]) -> str:
    """With half its 95% interval and its unit, where the protocol states them."""
    interval = f" ± {_number(record['margin_of_error'])}" if "margin_of_error" in record else ""
    return _number(record["value"]) + interval + (" %" if record.get("unit") == "%" else "")


def _beside(record: dict[str, Any], label: str) -> str:
    """Another's value; in brackets how much this model has more, with its 95% interval."""
    other = record.get("compared_with", {}).get(label)
    if other is None:
        return ""
    more = f"{other['difference']:+.3g}"
    if other["confidence_interval"] is not None:
        more += ", {:+.3g} to {:+.3g}".format(*other["confidence_interval"])
    return f"{_number(other['value'])} ({more})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
