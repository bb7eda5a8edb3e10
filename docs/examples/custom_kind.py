"""An augmentation kind of one's own in one file: `gamma`, how the midtones of two views differ.

    python docs/examples/custom_kind.py PHOTOS OUTPUT

A kind is four things: how it changes a view, what its head predicts, the target, and its row in the
table HEADS, by which a model folder with such a head is read. The encoder is the embedded one and
stays frozen; OUTPUT is a model folder that predicts gamma beside crop, color and flip.

A process that does not import this file refuses that folder: the server knows the kinds of the
package. CONTRIBUTING.md adds the same kind there.
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder

from augself_hub import AugSelfModel, Policy, TwoViews
from augself_hub.augmentations.functional import normalise
from augself_hub.augmentations.spec import HEADS, Dimension, Head
from augself_hub.modeling.model import AugSelfHeads
from augself_hub.modeling.objective import head_loss
from augself_hub.preprocess import Preprocessing

# The difference of two numbers uniform in [-1, 1] has the standard deviation sqrt(2/3).
GAMMA = Head("regression", (Dimension("exponent", "log2 ratio", std=(2 / 3) ** 0.5),))
HEADS["relative"]["gamma"] = GAMMA
EPOCHS, BATCH = 20, 16


class GammaViews:
    """PIL image -> x1, x2 and what takes one to the other: x -> x ** (2 ** g), g in [-1, 1]."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.two_views = TwoViews(Policy(size=preprocessing.size), (0, 0, 0), (1, 1, 1))
        self.preprocessing = preprocessing

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
        x1, x2, *_ = self.two_views(image)
        g = 2 * torch.rand(2) - 1
        bent = torch.stack([x1, x2]).clamp(0, 1) ** (2 ** g[:, None, None, None])
        x1, x2 = normalise(bent, self.preprocessing.mean, self.preprocessing.std)
        return x1, x2, g[1:] - g[:1]


def main(photos: str, output: str) -> None:
    torch.manual_seed(0)
    model = AugSelfModel.from_pretrained()
    images = ImageFolder(photos, GammaViews(model.preprocessing))
    train, held_out = random_split(images, [0.8, 0.2])
    own = dataclasses.replace(model.spec, heads={"gamma": GAMMA}, uncertainty=0)
    heads = AugSelfHeads(own)
    learn(heads, model, DataLoader(train, BATCH, shuffle=True, drop_last=True))
    grown = with_heads(model, heads).eval()
    print(f"R^2 of gamma on held-out pairs: {r_squared(grown, DataLoader(held_out, BATCH)):.2f}")
    grown.save_pretrained(output)


def learn(heads: AugSelfHeads, model: AugSelfModel, loader: DataLoader) -> None:
    """Both orders of each pair; predicting zero costs 1."""
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for (x1, x2, difference), _ in loader:
            with torch.no_grad():
                y1, y2 = model(x1).features, model(x2).features
            raw = heads(torch.cat([y1, y2]), torch.cat([y2, y1]))["gamma"]
            target = torch.cat([difference, -difference])
            loss = head_loss(GAMMA, raw, target, torch.ones_like(target, dtype=torch.bool))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def with_heads(model: AugSelfModel, heads: AugSelfHeads) -> AugSelfModel:
    """The same encoder with its own heads and these; errors of each pair are to be fitted anew."""
    both_kinds = {**model.spec.heads, "gamma": GAMMA}
    spec = dataclasses.replace(model.spec, heads=both_kinds, uncertainty=0)
    both = AugSelfHeads(spec)
    both.update({kind: {**model.heads, **heads}[kind] for kind in both_kinds})
    return AugSelfModel(model.encoder, both, spec, model.preprocessing)


@torch.no_grad()
def r_squared(model: AugSelfModel, loader: DataLoader) -> float:
    """0 is always predicting no difference."""
    pairs = [(model.predict_difference(a, b)["gamma"], d) for (a, b, d), _ in loader]
    predicted, true = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float(1 - (predicted - true).square().sum() / true.square().sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
