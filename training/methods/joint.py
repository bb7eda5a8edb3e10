"""A matcher that is trained with the encoder, on the maps of the views of every step.

    L = L_method + L_augself + weight * L_matcher(map of x1, map of x2)

L_matcher is that of a frozen encoder (`training.methods.matcher`), in both orders, with strangers
of the same batch and blank pictures. Its gradient goes into the maps, so that the encoder's stages
below them learn to be compared. The maps are those the method computes anyway: no view is encoded
twice. Their channels' mean and deviation, by which the matcher standardises, follow the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from augself_hub.augmentations.sampling import Parameters
from augself_hub.augmentations.spec import Spec
from augself_hub.modeling.encoders import Encoder
from augself_hub.modeling.maps import MapPlace, find_map
from augself_hub.modeling.matcher import Matcher
from augself_hub.preprocess import Preprocessing
from training.methods.layers import all_reduce, world_size
from training.methods.matcher import blank_maps, matcher_for, matcher_loss
from training.methods.method import Method
from training.methods.pairs import Pairs

FOLLOWS = 0.05  # share of a step's statistics in those of the maps, once there are enough steps


@dataclass(frozen=True)
class JointSettings:
    """How a matcher is trained with the encoder.

    Args:
        weight: of its loss beside the method's, which begins near 3: four dimensions of crop, flip,
            match.
        rate: largest learning rate of its own AdamW, which rises for 15% of the run and falls on a
            cosine; the encoder's is the run's.
        decay: weight decay of the matcher.
        batch: pairs of a step at most, each in both orders; of each process.
    """

    weight: float = 0.25
    rate: float = 3e-3
    decay: float = 0.02
    batch: int = 128


class JointMatcher(nn.Module):
    """A `Matcher` and its loss; takes the maps that the encoders of a method leave.

    Args:
        method: its encoders are told to keep their maps.
        spec: of convention `relative`, with a crop head.
        preprocessing: of the encoder's images.
        settings: how it is trained.
        seed: of its initialisation; torch's own generator is left as it is.

    Raises:
        UsageError: the encoder gives no maps.
    """

    steps: Tensor  # () how many have been taken

    def __init__(
        self,
        method: Method,
        spec: Spec,
        preprocessing: Preprocessing,
        settings: JointSettings,
        seed: int,
    ) -> None:
        super().__init__()
        network: PreTrainedModel = method.encoder.network
        self.place: MapPlace = find_map(network, preprocessing.size)
        self.preprocessing, self.settings = preprocessing, settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.matcher: Matcher = matcher_for(self.place, spec)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for name in method.seen_by:
            encoder: Encoder = getattr(method, name)
            encoder.place = self.place

    def forward(self, method: Method, wa: Parameters, wb: Parameters, spec: Spec) -> Tensor:
        """The loss of the views that the method has just seen, unweighted.

        Args:
            method: in training mode; the maps its encoders kept are taken from them.
            wa, wb: parameters of the N views on either side.
        """
        first, second = (getattr(method, name) for name in method.seen_by)
        a, b = first.maps.pop(0), second.maps.pop(0)  # (N, C, S, S), in the order of encoding
        self._follow(torch.cat([a, b]).detach().float())
        most = self.settings.batch
        wa, wb = ({name: value[:most] for name, value in w.items()} for w in (wa, wb))
        a, b = a[:most], b[:most]
        pairs = Pairs(a, b, wa, wb, torch.arange(len(a), device=a.device))
        network = method.encoder.network
        modes = {module: module.training for module in network.modules()}
        network.eval()  # batch statistics are of pictures, not of blanks
        blanks = blank_maps(network, self.preprocessing, self.place)
        for module, mode in modes.items():
            module.training = mode
        return matcher_loss(self.matcher, pairs, spec, blanks)

    @torch.no_grad()
    def _follow(self, maps: Tensor) -> None:
        """The channels' mean and deviation, of all processes; the first steps' are averaged."""
        mean, square = maps.mean((0, 2, 3)), maps.square().mean((0, 2, 3))
        mean, square = all_reduce(torch.stack([mean, square])) / world_size()
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        # A channel that is nearly dead must not become the loudest when it wakes.
        deviation = deviation.clamp(min=0.01 * float(deviation.mean()) + 1e-6)
        self.steps += 1
        share = (1 / self.steps).clamp(min=FOLLOWS)
        self.matcher.mean.lerp_(mean, share)
        self.matcher.deviation.lerp_(deviation, share)
