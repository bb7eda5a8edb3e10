"""A matcher for a run that ends, or for a model folder that is there already."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from augself_hub import card
from augself_hub.atomic import write_json
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import UsageError
from augself_hub.folder import (
    CONFIG,
    EVALUATION,
    changed_folder,
    verify,
    write_manifest,
)
from augself_hub.images import AS_FOUND, Inventory, Options
from augself_hub.modeling.maps import MapPlace, find_map
from augself_hub.modeling.matcher import Matcher
from augself_hub.modeling.model import AugSelfModel
from augself_hub.precision import PRECISIONS, QUANTIZED, graph_of
from augself_hub.results import read_evaluation, with_inventories
from training.data.batches import ViewsDataset
from training.data.drawing import FEWEST_TO_CALIBRATE, drawn_keys, halves
from training.data.sources import NO_INVENTORY, open_held_out, open_images
from training.data.streams import StreamViews, first_images
from training.methods.joint import JointSettings
from training.methods.matcher import MatcherSettings, calibrate, fit_matcher
from training.methods.options import checked_options
from training.methods.pairs import affordable, encoded
from training.monitoring.awareness import PAIRS, Result
from training.monitoring.matching import TASK, matched_pairs, with_matched
from training.run.images import split
from training.run.publishing import AFTERWARDS, PROTOCOL, graphs, stage
from training.run.settings import JOINT, Settings

log = logging.getLogger(__name__)
FEWEST_PAIRS = 2000  # that a run must have drawn: of fewer a matcher learns nothing
FURTHER = ", then fitted further on the frozen encoder"
STREAMED = 2000  # images of a stream that are kept for it


def matcher_settings(given: Mapping[str, Any]) -> MatcherSettings:
    """Raises UsageError for an option there is not, or a value out of its range."""
    checked: dict[str, Any] = dict(checked_options("the matcher", MatcherSettings, given))
    return MatcherSettings(**checked)


def joint_settings(given: Mapping[str, Any]) -> JointSettings:
    """The same of a matcher that is trained with the encoder."""
    checked: dict[str, Any] = dict(checked_options("a joint matcher", JointSettings, given))
    return JointSettings(**checked)


def refuse_unmatched(settings: Settings, spec: Spec, network: PreTrainedModel) -> None:
    """Before a run: what the matcher that was asked for cannot be had of.

    Raises:
        UsageError: says why.
    """
    (joint_settings if settings.matcher == JOINT else matcher_settings)(settings.matcher_options)
    if settings.matcher_options.get("go_on"):
        raise UsageError("matcher option go_on is of augself fit-matcher: a run's is a new one")
    asked = settings.matcher is not None or bool(settings.matcher_options)
    why = _impossible(spec, network, settings.size) if asked else None
    if why is not None and settings.matcher != "off":
        raise UsageError(f"--matcher {settings.matcher or 'after'}: {why}")


def _impossible(spec: Spec, network: PreTrainedModel, size: int) -> str | None:
    """Why no matcher can be fitted; None where one can."""
    if spec.convention != "relative":
        return f"convention {spec.convention} has no matcher: leave it out, or give relative"
    if "crop" not in spec.heads:
        return "a matcher needs a crop head, for its unit: --augself crop=1"
    try:
        find_map(network, size)
    except UsageError as error:
        return str(error)
    return None


def with_fitted_matcher(
    model: AugSelfModel, settings: Settings, views: Callable[[], ViewsDataset], drawn: int
) -> AugSelfModel:
    """A run's model with a matcher, where it is to have one; else the same model.

    Args:
        model: on the device that is to be used.
        views: gives what the run was trained on (`indexed`).
        drawn: pairs of views that the run has seen: by default the matcher sees no more.
    """
    if settings.matcher == "off":
        return model
    network, size = model.encoder, model.preprocessing.size
    why = _impossible(model.spec, network, size)
    if why is None and settings.matcher is None and drawn < FEWEST_PAIRS:
        why = f"this run drew {drawn} pairs of views, fewer than the {FEWEST_PAIRS} one needs"
    if why is not None:
        log.info("no matcher: %s", why)
        return model
    how = matcher_settings(settings.matcher_options)
    if settings.matcher is None and "pairs" not in settings.matcher_options:
        how = dataclasses.replace(how, pairs=min(how.pairs, drawn))
    return _fitted(model, views(), how, settings.seed)


def indexed(views: ViewsDataset | StreamViews, spec: Spec, seed: int) -> ViewsDataset:
    """What a run was trained on, any picture at any time: of a stream the first ones."""
    if isinstance(views, ViewsDataset):
        return views
    return ViewsDataset(first_images(views.images, STREAMED), spec.policy, seed)


def calibrated(model: AugSelfModel, held_out: ViewsDataset) -> ViewsDataset:
    """Makes a joint matcher's stated errors hold for half of the held-out images (`halves`).

    It has seen every image of the run.

    Returns:
        The others, to measure it on; all, where they are too few for both, which is said.
    """
    assert model.matcher is not None and model.spec.matcher is not None
    one, other = (held_out.at(rows) for rows in halves(held_out.images))
    if not len(one):
        log.info(
            "the matcher's errors are stated as it learned them: to calibrate them takes %d "
            "held-out images, and there are %d", FEWEST_TO_CALIBRATE, len(held_out),
        )  # fmt: skip
        return held_out
    spec, place, usual = model.spec, MapPlace.of(model.spec.matcher), MatcherSettings()
    pairs = min(usual.spared, affordable(usual.memory, place))
    keys = drawn_keys(len(one), pairs, held_out.seed)
    with stage(f"calibrating the matcher on {len(keys)} pairs of {len(one)} held-out images"):
        model.eval()
        views = encoded(model.encoder, one, spec, model.preprocessing, place, keys)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(held_out.seed)
            calibrate(model.matcher, views, spec)
    return other


def _fitted(
    model: AugSelfModel, views: ViewsDataset, how: MatcherSettings, seed: int
) -> AugSelfModel:
    """The model with a matcher that nothing has been measured of yet."""
    spec, preprocessing = model.spec, model.preprocessing
    with stage(f"fitting the matcher on {how.pairs} pairs of views of {len(views)} images"):
        matcher, place = fit_matcher(
            model.encoder, views, spec, preprocessing, how, seed, model.matcher
        )
    return model.with_matcher(matcher, place.level).eval()


def add_matcher(
    folder: Path,
    data: str,
    held_out: str | None = None,
    options: Options = AS_FOUND,
    seed: int = 0,
    how: Mapping[str, Any] | None = None,
    group: str | None = None,
) -> Spec:
    """Fit a matcher for the encoder of a model folder and write it there, in one exchange.

    Encoder and heads stay as they are; a matcher that is there is replaced, or gone on from.

    Args:
        folder: a model folder with a crop head of convention relative.
        data: images to fit on, as `augself pretrain` takes them.
        held_out: images to measure on; None: 5% of `data`.
        options: how `data` is read, and by the same columns and layout `held_out`.
        seed: of initialisation, order and views.
        how: fields of `MatcherSettings`.
        group: what names of held-out images of one origin have in common (`Images.grouped`).

    Returns:
        The new spec, with what was measured.

    Raises:
        UsageError, AugSelfError: no matcher can be fitted, or no images.
    """
    settings = matcher_settings(how or {})
    model = AugSelfModel.from_pretrained(verify(folder))
    why = _impossible(model.spec, model.encoder, model.preprocessing.size)
    if why is not None:
        raise UsageError(f"{folder}: {why}")
    views, measured_on = views_for(model.spec, data, held_out, options, seed, group)
    model = _fitted(model.to(available_device()), views, settings, seed)
    assert model.matcher is not None and model.spec.matcher is not None
    level = model.spec.matcher.level
    fitted_on = views.images.inventory
    return save_matcher(folder, model.matcher, level, measured_on, settings.go_on, fitted_on)


def views_for(
    spec: Spec,
    data: str,
    held_out: str | None,
    options: Options,
    seed: int,
    group: str | None = None,
) -> tuple[ViewsDataset, ViewsDataset]:
    """Images to fit on and images to measure on, as `add_matcher` takes them, seen by `spec`."""
    images = open_images(data, options)
    log.info("%s", images.inventory.text())
    if held_out is None:
        images, others = split(images, seed)
    else:
        others = open_held_out(held_out, options)
        log.info("%s", others.inventory.text())
    others = others.grouped(group)
    return ViewsDataset(images, spec.policy, seed), ViewsDataset(others, spec.policy, seed)


def available_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def save_matcher(
    folder: Path,
    matcher: Matcher,
    level: int,
    held_out: ViewsDataset,
    further: bool = False,
    fitted_on: Inventory = NO_INVENTORY,
) -> Spec:
    """Write a fitted matcher into a model folder, in one exchange, with what it is worth.

    Weights, description and results, the graphs anew where there are some, card and manifest.
    Quantised graphs go, unless only the errors it states are others: they were measured by what the
    old one answered.

    Args:
        matcher, level: as `fit_matcher` gives them, `MapPlace.level`.
        held_out: images to measure on, which it was not fitted on; none are allowed.
        further: it was fitted from the one that is there. fitted_on: the images.
    """
    before = AugSelfModel.from_pretrained(verify(folder))
    model = before.with_matcher(matcher.cpu(), level).eval()
    pairs = PAIRS if len(held_out) > 1 else 0
    with stage(f"measuring the matcher on {pairs} pairs of {len(held_out)} held-out images"):
        results = matched_pairs(model, held_out, pairs)
    model.spec = with_matched(model.spec, results)
    kept = _only_calibrated(before.matcher, model.matcher)
    if "matcher" in model.spec.provenance and not kept:  # of the one that is replaced
        was = model.spec.provenance["matcher"].removesuffix(FURTHER)
        provenance = {**model.spec.provenance, "matcher": was + FURTHER if further else AFTERWARDS}
        model.spec = dataclasses.replace(model.spec, provenance=provenance)
    read = {"data": fitted_on, "held_out": held_out.images.inventory}
    with rewritten(folder, model, kept, "fit-matcher", read) as (new, found):
        model.write_matcher(new)
        found[:] = [*(r for r in found if r["task"] != TASK), *results]
    return model.spec


@contextlib.contextmanager
def rewritten(
    folder: Path, model: AugSelfModel, kept: bool, command: str, read: Mapping[str, Inventory]
) -> Iterator[tuple[Path, list[Result]]]:
    """Change a part of a model folder in one exchange: its description, graphs, card and manifest
    follow the model.

    Args:
        kept: the answers are what they were, so that quantised graphs are still what was measured.
        command, read: what changes it, and the images it has read, for evaluation.json.

    Yields:
        Where the part's weights belong, and the results, a list to be changed in place.
    """
    with changed_folder(folder) as new:
        evaluation: dict[str, Any] = {"protocol": PROTOCOL, **read_evaluation(new)}
        results: list[Result] = list(evaluation["results"])
        yield new, results
        (new / CONFIG).write_text(model.spec.to_json())
        evaluation = with_inventories({**evaluation, "results": results}, command, read)
        write_json(new / EVALUATION, evaluation, nan=True)
        write_manifest(new, _new_graphs(model, new, kept))
        card.write(new)


def _only_calibrated(old: Matcher | None, new: Matcher | None) -> bool:
    """Whether two matchers differ in their stated errors at most."""
    if old is None or new is None or old.shape != new.shape:
        return False
    was = old.state_dict()
    return all(
        name in ("slope", "shift") or torch.equal(value, was[name])
        for name, value in new.state_dict().items()
    )


def _new_graphs(model: AugSelfModel, folder: Path, kept: bool) -> dict[str, Any]:
    """The graphs anew, where there were any; `kept` as `rewritten` takes it."""
    names = dict.fromkeys(graph_of(folder, p) for p in PRECISIONS)  # fp32 is bf16's, too
    there = [path for path in names if (folder / path).is_file()]
    smaller = [path for path in there if path.stem.endswith(QUANTIZED)]
    for path in there:
        if kept and path in smaller:
            continue
        (folder / path).unlink()
        if path in smaller:
            log.warning(
                "%s goes, it was measured without this matcher: augself export --quantize", path
            )
    parity = graphs(model, folder) if there else {}
    if not parity:  # no exporter: what is smaller has no graph it was made from
        for path in smaller:
            (folder / path).unlink(missing_ok=True)
        return {}
    from augself_hub.modeling.export import quantized

    return parity | quantized(folder)
