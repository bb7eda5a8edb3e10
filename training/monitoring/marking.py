"""Marks a finished model folder by its own held-out pairs, as the end of a run does:

    python -m training.monitoring.marking MODEL HELD_OUT [--group PATTERN]

For folders of version 0.1, which have no marks, and for other held-out images. The weights stay.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import click

from augself_hub import card
from augself_hub.atomic import write_json
from augself_hub.augmentations.difference import standardised
from augself_hub.augmentations.spec import Head, Spec
from augself_hub.errors import AugSelfError
from augself_hub.folder import (
    CONFIG,
    EVALUATION,
    changed_folder,
    own_folder,
    verify,
    write_manifest,
)
from augself_hub.modeling.model import AugSelfModel
from augself_hub.results import read_evaluation, with_inventories
from training.data.batches import ViewsDataset
from training.data.sources import open_held_out
from training.monitoring import matching
from training.monitoring.awareness import PAIRS, TASK, held_out_pairs, with_results
from training.run.publishing import PROTOCOL
from training.run.settings import GROUP_HELP


def mark(
    folder: Path, held_out: str, name: str = card.PLACEHOLDER, group: str | None = None
) -> Spec:
    """Measure a model on held-out pairs and write what was found into its folder, in one exchange.

    Args:
        held_out: images that the model was not trained on, as --held-out takes them.
        name: what the card calls the model.
        group: what names of held-out images of one origin have in common (`Images.grouped`).

    Raises:
        UsageError: a `group` that finds none. AugSelfError: a model without heads, or no images.
    """
    model = AugSelfModel.from_pretrained(verify(own_folder(folder, "mark")))
    listed = open_held_out(held_out).grouped(group)
    images = ViewsDataset(listed, model.spec.policy, seed=0)
    click.echo(images.images.inventory.text())
    results = held_out_pairs(model, images, PAIRS)
    if not results:
        raise AugSelfError(f"{folder} has no heads to measure, or {held_out} no images")
    results += matching.matched_pairs(model, images, PAIRS)
    spec = matching.with_matched(with_results(_with_largest(model.spec), results), results)
    with changed_folder(folder) as stage:
        (stage / CONFIG).write_text(spec.to_json())
        evaluation: dict[str, Any] = {"protocol": PROTOCOL, **read_evaluation(stage)}
        tasks = (TASK, matching.TASK)
        others = [r for r in evaluation["results"] if r["task"] not in tasks]
        results = [*results, *others]
        read = {"held_out": images.images.inventory}
        evaluation = with_inventories({**evaluation, "results": results}, "marking", read)
        write_json(stage / EVALUATION, evaluation, nan=True)
        card.write(stage, name)
        write_manifest(stage)
    return spec


def _with_largest(spec: Spec) -> Spec:
    """What the training pairs stayed within, which 0.1 did not keep."""
    simulated = standardised(spec.heads, spec.policy, spec.convention)

    def filled(head: Head, like: Head) -> Head:
        return dataclasses.replace(
            head,
            dimensions=tuple(
                d if d.largest is not None else dataclasses.replace(d, largest=new.largest)
                for d, new in zip(head.dimensions, like.dimensions, strict=True)
            ),
        )

    heads = {kind: filled(head, simulated[kind]) for kind, head in spec.heads.items()}
    return dataclasses.replace(spec, heads=heads)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("held_out")
@click.option(
    "--name", default=card.PLACEHOLDER, show_default=True, help="Of the model, on its card."
)
@click.option("--group", metavar="PATTERN", help=GROUP_HELP)
def main(model: Path, held_out: str, name: str, group: str | None) -> None:
    """Measure MODEL on pairs of views of HELD_OUT and write its marks."""
    logging.basicConfig(format="%(message)s")
    for ours in ("augself_hub", "training"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        spec = mark(model, held_out, name, group)
    except AugSelfError as error:
        raise click.ClickException(str(error)) from error
    for head in spec.heads.values():
        for d in head.dimensions:
            click.echo(f"{d.name}: {'not learned' if d.learned is False else 'learned'}, {d.score}")


if __name__ == "__main__":
    main()
