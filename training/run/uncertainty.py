"""Errors of each pair: for the heads of a run that ends, or of a model folder that is there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from augself_hub.augmentations.spec import Spec
from augself_hub.errors import UsageError
from augself_hub.folder import verify
from augself_hub.images import AS_FOUND, Options
from augself_hub.modeling.model import AugSelfModel
from training.data.batches import ViewsDataset
from training.data.drawing import halves
from training.methods.uncertainty import PAIRS as FITTED_ON
from training.methods.uncertainty import fit_uncertainty
from training.monitoring.awareness import PAIRS, TASK, held_out_pairs
from training.run.matching import (
    FEWEST_PAIRS,
    available_device,
    rewritten,
    views_for,
)
from training.run.publishing import stage
from training.run.settings import Settings

log = logging.getLogger(__name__)


def with_uncertainty(
    model: AugSelfModel,
    settings: Settings,
    views: Callable[[], ViewsDataset],
    held_out: ViewsDataset,
    drawn: int,
) -> AugSelfModel:
    """A run's model whose heads state an error of each pair, where they can learn it.

    Args:
        model: on the device that is to be used.
        views: gives what the run was trained on (`matching.indexed`).
        held_out: images it was not trained on; by half of them errors are calibrated (`halves`).
        drawn: pairs of views that the run has seen: no more are looked at for this.
    """
    if not _states(model.spec):
        return model
    if drawn < FEWEST_PAIRS:
        log.info(
            "errors are known on average only: this run drew %d pairs of views, fewer than the %d "
            "that errors of each pair need", drawn, FEWEST_PAIRS,
        )  # fmt: skip
        return model
    return _fitted(model, views(), held_out, drawn, settings.seed)


def add_uncertainty(
    folder: Path,
    data: str,
    held_out: str | None = None,
    options: Options = AS_FOUND,
    seed: int = 0,
    group: str | None = None,
) -> Spec:
    """Fit an error of each pair for a model folder's heads and write it there, in one exchange.

    What encoder, heads and matcher answer stays as it is.

    Args:
        folder: a model folder with a regression among its heads.
        data: images to fit on, as `augself pretrain` takes them.
        held_out: images to measure on; None: 5% of `data`.
        options: how `data` is read, and by the same columns and layout `held_out`.
        seed: of initialisation, order and views.
        group: what names of held-out images of one origin have in common (`Images.grouped`).

    Returns:
        The new spec.

    Raises:
        UsageError, AugSelfError: there is no such head, or no images.
    """
    model = AugSelfModel.from_pretrained(verify(folder))
    if not _states(model.spec):
        raise UsageError(
            f"{folder} has no head that predicts a number, so nothing an error could be stated of"
        )
    views, measured_on = views_for(model.spec, data, held_out, options, seed, group)
    model = _fitted(model.to(available_device()), views, measured_on, FITTED_ON, seed).cpu()
    pairs = PAIRS if len(measured_on) > 1 else 0
    with stage(f"measuring {pairs} pairs of {len(measured_on)} held-out images"):
        found = held_out_pairs(model, measured_on, pairs)
    covered = [result for result in found if result["metric"] == "coverage"]
    read = {"data": views.images.inventory, "held_out": measured_on.images.inventory}
    with rewritten(folder, model, True, "fit-uncertainty", read) as (new, results):
        model.write_heads(new)
        was = [r for r in results if r["task"] == TASK and r["metric"] != "coverage"]
        results[:] = [*was, *covered, *(r for r in results if r["task"] != TASK)]
    return model.spec


def _states(spec: Spec) -> bool:
    """Whether there is a number among what the heads say."""
    return any(head.type == "regression" for head in spec.heads.values())


def _fitted(
    model: AugSelfModel, views: ViewsDataset, held_out: ViewsDataset, most: int, seed: int
) -> AugSelfModel:
    pairs, rows = min(FITTED_ON, most), halves(held_out.images)[0]
    by = held_out.at(rows) if rows else None
    with stage(f"fitting an error of each pair on {pairs} pairs of {len(views)} images"):
        return fit_uncertainty(model, views, by, pairs, seed).eval()
