"""What a run minimises: the loss of its method, of the AugSelf heads, of a joint matcher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augself_hub.augmentations.sampling import Parameters
from augself_hub.modeling.objective import AugSelfLoss
from augself_hub.modeling.views import finish_views
from augself_hub.preprocess import Preprocessing
from training.methods import Method
from training.methods.frozen import Frozen
from training.methods.joint import JointMatcher
from training.monitoring.monitor import feature_std


class Pretraining(nn.Module):
    """What the trainer optimises: views -> method loss + AugSelf loss (+ the matcher's).

    Args:
        method: an encoder under training.
        augself: the heads and their loss.
        preprocessing: how the encoder wants its images normalised.
        joint: the matcher that is trained with the encoder; None: none is.
    """

    def __init__(
        self,
        method: Method,
        augself: AugSelfLoss,
        preprocessing: Preprocessing,
        joint: JointMatcher | None = None,
    ) -> None:
        super().__init__()
        self.method, self.augself, self.preprocessing = method, augself, preprocessing
        self.joint = joint

    def forward(
        self, crops: Tensor, w1: Parameters, w2: Parameters, labels: Tensor
    ) -> dict[str, Tensor]:
        """A batch of `data.collate` -> {"loss", "feature_std", "method", kind, ...}.

        All but loss are detached.
        """
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            policy, look = self.augself.spec.policy, self.preprocessing
            both = {name: torch.cat([w1[name], w2[name]]) for name in w1}
            if policy.order == "batch":  # the first view's, of each side
                first = [w["order"][:1].expand_as(w["order"]) for w in (w1, w2)]
                both["order"] = torch.cat(first)
            views = finish_views(crops, both, policy, look.mean, look.std)
            x1, x2 = views.to(memory_format=torch.channels_last).chunk(2)
        inputs = (x1, x2, labels) if self.method.needs_labels else (x1, x2)
        loss, y1, y2 = self.method(*inputs)
        augself, parts = self.augself(y1, y2, w1, w2)
        if not isinstance(self.method, Frozen):  # which has no loss to tell
            parts = {"method": loss.detach(), **parts}
        loss = loss + augself
        if self.joint is not None:
            matcher = self.joint(self.method, w1, w2, self.augself.spec)
            loss = loss + self.joint.settings.weight * matcher
            parts["matcher"] = matcher.detach()
        return {"loss": loss, "feature_std": feature_std(y1.detach()), **parts}
