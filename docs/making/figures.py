"""Draws docs/figures from the embedded model and the demo's photographs:

    python docs/making/figures.py docs/figures

differences.png   two views of a photograph; what takes one to the other, true and predicted
undo.jpg          edited copies of photographs, and what the model says of them taken back
predicted.svg     the same for many pairs, a dot each
conventions.svg   what the paper's targets cost and which are out of reach
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from augself_hub import AugSelfModel, Encoder, Policy
from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.functional import augment
from augself_hub.augmentations.sampling import Parameters, draw
from augself_hub.augmentations.spec import HEADS
from augself_hub.modeling.views import finish_views, stack_parameters, two_crops
from augself_hub.preprocess import to_rgb

PHOTOGRAPHS = Path(__file__).parents[2] / "serving/demo/examples"
TRUE, PREDICTED, GRAY = "#0d9488", "#a855f7", "#9ca3af"
PAIRS = 60  # of each photograph
SHOWN = ("fig.jpg", 19)  # a photograph and which of its pairs
EDITS = (  # a photograph, its copy's brightness, contrast, saturation and hue, and what that is
    ("autumn.jpg", (0.7, 1.0, 1.0, 0.0), "0.7 times as bright"),
    ("brushes.jpg", (1.0, 1.0, 1.0, 0.08), "hues turned by 29\N{DEGREE SIGN}"),
)
Pairs = tuple[torch.Tensor, Parameters, Parameters]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "augself"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    model = AugSelfModel.from_pretrained()
    differences(model).savefig(folder / "differences.png", dpi=120)
    undo(Encoder()).savefig(folder / "undo.jpg", dpi=100, pil_kwargs={"quality": 88})
    for name, figure in (("predicted", predicted(model)), ("conventions", conventions())):
        figure.savefig(folder / f"{name}.svg", dpi=200, metadata={"Date": None})


def pairs_of(photograph: Path, policy: Policy, indices: range) -> Pairs:
    """(2N, 3, S, S) views in [0, 1], a's then b's, and the parameters of both."""
    image = to_rgb(Image.open(photograph))
    drawn = [two_crops(image, policy, 0, 0, index) for index in indices]
    a, b = ([pair[side] for pair in drawn] for side in (0, 1))
    wa, wb = (stack_parameters([w for _, w in views]) for views in (a, b))
    crops = torch.from_numpy(np.stack([crop for crop, _ in (*a, *b)]))
    both = {name: torch.cat([wa[name], wb[name]]) for name in wa}
    return finish_views(crops, both, policy, (0, 0, 0), (1, 1, 1)), wa, wb


def answers(
    model: AugSelfModel, pairs: Pairs
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
    """True, predicted and stated errors (N, n) of crop and color, and their dimensions."""
    views, wa, wb = pairs
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    with torch.no_grad():
        found = model.predict_pair(*((views - mean) / std).chunk(2))
    kinds, spec = ("crop", "color"), model.spec
    true = []
    for kind in kinds:
        target, seen = targets(kind, wa, wb, spec.policy, spec.convention)
        true.append(target.masked_fill(~seen, torch.nan))
    dimensions = [dimension for kind in kinds for dimension in spec.heads[kind].dimensions]
    predicted, errors = (
        torch.cat([each[kind] for kind in kinds], dim=1) for each in (found.values, found.errors)
    )
    return torch.cat(true, dim=1).numpy(), predicted.numpy(), errors.numpy(), dimensions


# -- Figures ---------------------------------------------------------------------------------------


def differences(model: AugSelfModel) -> Figure:
    """View a, view b, and bars in standard deviations of what random pairs show."""
    photograph, index = SHOWN
    pairs = pairs_of(PHOTOGRAPHS / photograph, model.spec.policy, range(index, index + 1))
    (true,), (predicted,), (error,), dimensions = answers(model, pairs)
    std = np.array([d.std for d in dimensions])
    figure = Figure(figsize=(9, 3), layout="constrained")
    first, second, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    for axes, view, name in zip((first, second), pairs[0], ("view a", "view b"), strict=True):
        axes.imshow(view.permute(1, 2, 0))
        axes.set_title(name)
        axes.set_axis_off()
    rows = np.arange(len(dimensions))
    bars.barh(rows - 0.2, true / std, 0.4, color=TRUE, label="true")
    bars.barh(
        rows + 0.2, predicted / std, 0.4, color=PREDICTED, label="predicted",
        xerr=error / std, error_kw={"elinewidth": 0.8},
    )  # fmt: skip
    bars.set_yticks(rows, [d.name for d in dimensions])
    bars.invert_yaxis()
    bars.axvline(0, color="black", linewidth=0.8)
    bars.set_title("what takes a to b")
    bars.set_xlabel("standard deviations of random pairs")
    bars.legend(frameon=False, loc="best")
    return figure


def undo(encoder: Encoder) -> Figure:
    """Photographs, copies edited by one number each, and the copies with the answer applied.

    The model compares the first two columns; the third is the second, its colours turned back by
    what the model says.
    """
    figure = Figure(figsize=(6.4, 3 * len(EDITS) * 0.5 + 0.3), layout="constrained")
    grid = figure.subplots(len(EDITS), 3, squeeze=False)
    for axes, (name, edit, text) in zip(grid, EDITS, strict=True):
        image = to_rgb(Image.open(PHOTOGRAPHS / name))
        image = image.resize((300, 225), box=_middle(*image.size))
        a = np.asarray(image)
        b = _recoloured(a, np.array(edit))
        told = encoder.difference(a, b).differences["color"]
        said = np.array([record["value"] or 0.0 for record in told])
        back = _recoloured(b, np.append(np.exp(-said[:3]), -said[3]), backwards=True)
        heads = ("a photograph", f"a copy, {text}", "taken back by the answer")
        for place, shown, head in zip(axes, (a, b, back), heads, strict=True):
            place.imshow(shown)
            place.set_axis_off()
            place.set_title(head, fontsize=8)
    return figure


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest 4:3 box in the middle."""
    w, h = min(width, height * 4 / 3), min(height, width * 3 / 4)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _recoloured(image: np.ndarray, color: np.ndarray, backwards: bool = False) -> np.ndarray:
    """(H, W, 3) uint8, brightness, contrast and saturation times factors, hue turned."""
    parameters = {
        "flip": np.array([False]),
        "color": color[None],
        "order": np.array([[3, 2, 1, 0] if backwards else [0, 1, 2, 3]]),
        "sol": np.array([1.0]),
        "gray": np.array([False]),
        "blur": np.array([0.0]),
        "rot": np.array([0]),
    }
    views = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
    changed = augment(views, parameters, Policy(size=64))[0]
    return np.round(changed.transpose(1, 2, 0) * 255).astype(np.uint8)


def predicted(model: AugSelfModel) -> Figure:
    """A panel for each dimension of crop and color, with its R^2 on these pairs."""
    found = [
        answers(model, pairs_of(path, model.spec.policy, range(n * PAIRS, (n + 1) * PAIRS)))
        for n, path in enumerate(sorted(PHOTOGRAPHS.glob("*.jpg")))
    ]
    true, said = (np.concatenate([answer[side] for answer in found]) for side in (0, 1))
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    panels = figure.subplots(2, 4)
    for axes, dimension, t, p in zip(panels.flat, found[0][-1], true.T, said.T, strict=True):
        seen = ~np.isnan(t)
        _dots(axes, t[seen], p[seen])
        r_squared = 1 - np.mean((p - t)[seen] ** 2) / np.mean(t[seen] ** 2)
        axes.set_title(f"{dimension.name}  R² {r_squared:.2f}")
        axes.set_xlabel(f"true, {dimension.unit}")
    for axes in panels[:, 0]:
        axes.set_ylabel("predicted")
    return figure


def _dots(axes: Axes, true: np.ndarray, said: np.ndarray) -> None:
    most = 1.05 * np.abs(true).max()
    axes.plot([-most, most], [-most, most], color=GRAY, linewidth=0.8)
    axes.scatter(true, said, s=4, color=PREDICTED, alpha=0.6, linewidths=0, rasterized=True)
    axes.set(xlim=(-most, most), ylim=(-most, most))


def conventions() -> Figure:
    """What predicting zero costs in each dimension of `paper`; sigma differences beyond tanh."""
    policy = Policy()
    index = np.arange(20_000)
    a, b = (draw(policy, (0, 0, index, view), 1024, 1024) for view in (0, 1))
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, color in (("crop", TRUE), ("color", PREDICTED)):
        names = [d.name for d in HEADS["paper"][kind].dimensions]
        cost = np.mean(targets(kind, a, b, policy, "paper")[0] ** 2, axis=0)
        left.bar(names, cost, color=color, label=f"{kind}: {cost.mean():.3f} on average")
    left.tick_params(axis="x", labelrotation=30)
    left.set(ylabel="mean squared error", ylim=(0, 0.17))
    left.set_title("predicting zero costs")
    left.legend(frameon=False)
    sigma = targets("blur", a, b, policy, "paper")[0][:, 0]
    out = np.mean(np.abs(sigma) > 1)
    right.hist(sigma[sigma != 0], bins=60, color=PREDICTED)
    right.axvspan(-1, 1, color=GRAY, alpha=0.25, linewidth=0)
    right.set(xlabel="sigma of view 1 minus sigma of view 2, pixels", ylabel="pairs")
    right.set_title(f"blur: {out:.0%} of pairs are out of tanh's reach")
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
