"""Pairs of views for what learns from a frozen encoder: encoded once, paired anew in every pass.

Several views of every picture are drawn as the encoder's own heads had them. What the encoder makes
of them, maps or features, is kept; which two views of a picture are a pair changes from
pass to pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Spec
from augself_hub.modeling.encoders import pooled
from augself_hub.modeling.maps import MapPlace, features_and_map
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from augself_hub.progress import counted
from training.data.batches import ViewsDataset, collate


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs: maps or features of a and b, their parameters, and the picture of each."""

    a: Tensor  # (N, C, S, S) or (N, D)
    b: Tensor
    wa: Parameters
    wb: Parameters
    picture: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.picture)

    def both_orders(self) -> Pairs:
        wa, wb = self.wa, self.wb
        ab, ba = ({n: torch.cat([u[n], v[n]]) for n in u} for u, v in ((wa, wb), (wb, wa)))
        a, b = torch.cat([self.a, self.b]), torch.cat([self.b, self.a])
        return Pairs(a, b, ab, ba, torch.cat([self.picture, self.picture]))


@dataclass(frozen=True)
class EncodedViews:
    """Maps (in half precision) or features of views, their parameters, and the picture of each.

    Of every picture there is an even number.
    """

    encodings: Tensor  # (V, C, S, S) or (V, D)
    parameters: Parameters
    picture: Tensor  # (V,)

    def __len__(self) -> int:
        return len(self.picture)

    def paired(self) -> Tensor:
        """(V / 2, 2) rows of views that show one picture: each once, in other pairs every time."""
        order = (self.picture + torch.rand(len(self), dtype=torch.float64)).argsort()
        pairs = order.view(-1, 2)
        return pairs[torch.randperm(len(pairs))]

    def at(self, pairs: Tensor, device: torch.device) -> Pairs:
        """The pairs of these rows (N, 2), in single precision."""
        a, b = (self.encodings[rows].to(device).float() for rows in pairs.T)
        wa, wb = ({n: v[rows].to(device) for n, v in self.parameters.items()} for rows in pairs.T)
        return Pairs(a, b, wa, wb, self.picture[pairs[:, 0]].to(device))


def affordable(memory: int, place: MapPlace) -> int:
    """Pairs whose maps are kept in so many bytes, in half precision; one at least."""
    return max(1, memory // (4 * place.channels * place.cells**2))


@torch.no_grad()
def encoded(
    network: PreTrainedModel,
    images: ViewsDataset,
    spec: Spec,
    preprocessing: Preprocessing,
    place: MapPlace | None,
    keys: Sequence[tuple[int, int]],
    chunk: int = 64,
) -> EncodedViews:
    """Both views of each key (epoch, index), as the encoder has them in evaluation mode.

    Args:
        network: in evaluation mode. place: where its maps are taken; None: its features are kept.
        chunk: keys that are encoded at once.
    """
    kept: Tensor | None = None
    parameters: list[Parameters] = []
    parts = (keys[start : start + chunk] for start in range(0, len(keys), chunk))
    start = 0
    for part in counted(parts, len(keys), "encoding views", "pair"):
        batch = collate(images.__getitems__(part))
        both = {n: torch.cat([batch["w1"][n], batch["w2"][n]]) for n in batch["w1"]}
        views = finish_views(
            batch["crops"].to(network.device),
            {n: value.to(network.device) for n, value in both.items()},
            spec.policy,
            preprocessing.mean,
            preprocessing.std,
        )
        if place is None:
            found = pooled(network, views).float().cpu()
        else:
            found = features_and_map(network, views, place)[1].half().cpu()
        if kept is None:
            kept = found.new_empty(2, len(keys), *found.shape[1:])
        end = start + len(part)
        kept[0, start:end], kept[1, start:end] = found.chunk(2)
        start = end
        parameters += [batch["w1"], batch["w2"]]
    assert kept is not None, "there are keys"
    wa, wb = (
        {name: torch.cat([w[name] for w in parameters[side::2]]) for name in parameters[0]}
        for side in (0, 1)
    )
    joined = {name: torch.cat([wa[name], wb[name]]) for name in wa}
    picture = torch.tensor([index for _, index in keys])
    return EncodedViews(kept.flatten(0, 1), joined, torch.cat([picture, picture]))
