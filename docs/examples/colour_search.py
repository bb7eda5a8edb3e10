"""Colour-sensitive search: what looks like this picture, in its colours or in others you name.

    augself extract PHOTOS --output gallery
    python docs/examples/colour_search.py gallery fruit/apple.jpg
    python docs/examples/colour_search.py gallery fruit/apple.jpg brightness=-0.4
    python docs/examples/colour_search.py gallery fruit/apple.jpg model=MODEL     (of another table)

Of the pictures whose features are nearest, those come first whose colours differ by what was asked
for (nothing: the same colours). The color head says so from the features alone: no picture is
opened again. brightness, contrast and saturation are log ratios (-0.4 is two thirds), hue is in
turns. Where a picture is gray its saturation and hue say nothing.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from augself_hub import AugSelfModel, FeatureTable
from augself_hub.folder import read_manifest

NEAREST = 20  # pictures whose colours are looked at


def main(folder: str, query: str, *wanted: str) -> None:
    table, asked = FeatureTable.read(folder), dict(pair.split("=") for pair in wanted)
    model = AugSelfModel.from_pretrained(asked.pop("model", None))
    refuse_other_features(table, model)
    dimensions = model.spec.heads["color"].dimensions
    if unknown := asked.keys() - {d.name for d in dimensions}:
        sys.exit(f"{min(unknown)}: give {', '.join(d.name for d in dimensions)} or model")
    aim = torch.tensor([float(asked.get(d.name, 0)) for d in dimensions])
    std = torch.tensor([d.std for d in dimensions])

    y, own = torch.tensor(table.features), table.ids.index(query)
    cosine = F.cosine_similarity(y, y[own : own + 1])
    cosine[own] = -1
    alike = cosine.topk(min(NEAREST, len(y) - 1)).indices
    with torch.no_grad():
        color = model.differences(y[own].expand(len(alike), -1), y[alike])["color"]  # (N, 4)
    off = ((color - aim) / std).norm(dim=1)

    print("cosine", *(f"{d.name:>10}" for d in dimensions), " picture")
    for row in off.argsort():
        numbers = " ".join(f"{value:+10.2f}" for value in color[row])
        print(f"{cosine[alike[row]]:6.3f} {numbers}  {table.ids[alike[row]]}")


def refuse_other_features(table: FeatureTable, model: AugSelfModel) -> None:
    """The heads understand the features of their own encoder alone, as it gives them."""
    if table.normalized:
        sys.exit("features of length 1 are not what the heads learned: extract without --normalize")
    if "color" not in model.spec.heads:
        sys.exit(f"{model.name} has no color head: give another with model=MODEL")
    if table.model not in read_manifest(model.folder)["files"].values():  # of its graphs
        sys.exit(f"the table is not of {model.name}: give the model it was made with, model=MODEL")


if __name__ == "__main__":
    main(*sys.argv[1:])
