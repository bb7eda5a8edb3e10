"""AugSelfLoss: what AugSelf adds to any training loop.

    L = L_method + sum over k of lambda_k * L_k(phi_k([ya, yb]), d_k(wa, wb))

(AugSelf, arXiv:2111.09613, equation 3.) Both orders of a pair are trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from augself_hub.augmentations.difference import Sizes, standardised, targets
from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Head, Policy, Spec, heads_for
from augself_hub.modeling.model import AugSelfHeads

FULL = 4  # dimensions of crop and of color


class AugSelfLoss(nn.Module):
    """The weighted sum of the AugSelf losses; holds the heads, whose parameters must be optimised.

    Args:
        features: D, the width of the encoder's features.
        weights: kind -> lambda, e.g. {"crop": 1.0, "color": 1.0}.
        policy: how the views are drawn (`TwoViews(...).policy`).
        convention: `relative`, or `paper` for what official checkpoints were trained with.
        sizes: (height, width) of some source images, for the targets' standard deviations; square
            ones by default. On 4:3 photographs squares' would let predicting zero cost 0.6 to 2.

    Raises:
        UsageError: an unknown kind or convention, or a kind the policy never applies.
    """

    def __init__(
        self,
        features: int,
        weights: Mapping[str, float],
        policy: Policy,
        convention: str = "relative",
        sizes: Sizes = ((1024, 1024),),
    ) -> None:
        super().__init__()
        heads = standardised(heads_for(weights, policy, convention), policy, convention, sizes)
        self.spec = Spec(convention, policy, heads, features)
        self.weights = {kind: float(weights[kind]) for kind in heads}
        self.heads = AugSelfHeads(self.spec)

    def forward(
        self, ya: Tensor, yb: Tensor, wa: Parameters, wb: Parameters
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (N, D) of both views and their parameters -> total loss, kind -> its loss.

        The losses in the dictionary are unweighted and detached, for the log: a standardised
        regression that predicts zero has 1, whatever its kind.
        """
        raw = self.heads(torch.cat([ya, yb]), torch.cat([yb, ya]))
        losses = {kind: self._loss(kind, raw[kind].float(), wa, wb) for kind in self.heads}
        weighted = (self.weights[kind] * self._share(kind) * losses[kind] for kind in losses)
        total = sum(weighted, ya.new_zeros(()))
        return total, {kind: loss.detach() for kind, loss in losses.items()}

    def _share(self, kind: str) -> float:
        """Dimensions out of four, so that lambda weighs every standardised dimension alike.

        A mean over one dimension is four times as curved as one over four: at lambda 1 blur and sol
        diverged at learning rates where crop and color are far from it.
        """
        head = self.spec.heads[kind]
        standardised = self.spec.convention == "relative" and head.type == "regression"
        return len(head.dimensions) / FULL if standardised else 1.0

    def _loss(self, kind: str, raw: Tensor, wa: Parameters, wb: Parameters) -> Tensor:
        policy, convention = self.spec.policy, self.spec.convention
        ab, mask_ab = targets(kind, wa, wb, policy, convention)
        ba, mask_ba = targets(kind, wb, wa, policy, convention)
        target, mask = torch.cat([ab, ba]), torch.cat([mask_ab, mask_ba])
        if (convention, kind) == ("paper", "sol"):
            return broadcast_loss(raw, target.to(raw))
        return head_loss(self.spec.heads[kind], raw, target.to(raw), mask.to(raw.device))


def broadcast_loss(raw: Tensor, target: Tensor) -> Tensor:
    """What official runs minimised for sol: every prediction against every target of the batch.

    The official target has shape (N,), the prediction (N, 1), and their difference broadcasts. The
    best answer is then the mean target, 0, whatever the pictures show: the head learns nothing.

    Args:
        raw, target: (N, 1).
    """
    return ((raw.tanh() - target.T) ** 2).mean()


def head_loss(head: Head, raw: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One head's loss over what the pictures can show.

    Args:
        raw: (N, outputs) head outputs.
        target: (N, n) in physical units, n = len(head.dimensions); (N, 1) class numbers.
        mask: (N, n) bool.

    A standardised regression head that predicts zero costs 1, whatever its kind.
    """
    if head.type == "binary":
        return F.binary_cross_entropy_with_logits(raw, target)
    if head.type == "classes":
        return F.cross_entropy(raw, target[:, 0].long())
    value = raw.tanh() if head.tanh else raw
    std = torch.tensor([d.std for d in head.dimensions], device=raw.device)
    error = ((value - target / std) ** 2 * mask).sum(dim=0)  # (n,)
    return (error / _mean_over_processes(mask.sum(dim=0))).mean()


def _mean_over_processes(count: Tensor) -> Tensor:
    """How many rows each dimension is averaged over, the mean over processes.

    DDP averages gradients over processes, so dividing by the mean count makes two processes on half
    the batch each equal one on the whole. Where nothing can be seen it divides by one row.
    """
    count, processes = count.float(), 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        processes = dist.get_world_size()
    return count.clamp(min=1) / processes
