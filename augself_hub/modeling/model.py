"""AugSelfModel: a stock encoder and its AugSelf heads.

The encoder is what transformers loads from the same folder; the heads say how the augmentation
parameters of two views differ (AugSelf, arXiv:2111.09613, section 3).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, BitImageProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from augself_hub import hub
from augself_hub.augmentations.difference import both_orders, to_physical
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, ModelFolderError
from augself_hub.modeling.encoders import pooled, refuse_unpooled
from augself_hub.preprocess import Preprocessing


@dataclass
class AugSelfOutput(ModelOutput):
    """What AugSelfModel answers.

    Args:
        features: (N, D) pooled encoder output, never L2-normalised.
    """

    features: Tensor | None = None


class AugSelfHeads(nn.ModuleDict):
    """phi_k for every kind k of a spec: an MLP on the features of an ordered pair.

    Linear(2D, 512), BN, ReLU, Linear(512, 512), BN, ReLU, Linear(512, n_k); only the last has a
    bias. torch's default initialisation is the paper's uniform +-1/sqrt(fan_in).
    """

    def __init__(self, spec: Spec) -> None:
        width, hidden = 2 * spec.features, spec.hidden
        super().__init__(
            {kind: _head(width, hidden, head.outputs) for kind, head in spec.heads.items()}
        )

    def forward(self, ya: Tensor, yb: Tensor) -> dict[str, Tensor]:
        """Features of views a and b, (N, D) each -> raw outputs, kind -> (N, outputs)."""
        pair = torch.cat([ya, yb], dim=1)
        return {kind: head(pair) for kind, head in self.items()}


def _head(width: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )


class AugSelfModel(nn.Module):
    """A stock encoder with AugSelf heads.

    Args:
        encoder: any stock transformers image encoder with a plain pooler_output.
        heads: of the spec's kinds and widths.
        spec: what the heads predict, in which units.
        preprocessing: side, mean and std of the images.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        heads: AugSelfHeads,
        spec: Spec,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        refuse_unpooled(encoder.config)
        self.encoder = encoder
        self.heads = heads
        self.spec = spec
        self.preprocessing = preprocessing

    def forward(self, pixel_values: Tensor) -> AugSelfOutput:
        """(N, 3, H, W) normalised images -> `AugSelfOutput`."""
        return AugSelfOutput(features=pooled(self.encoder, pixel_values))

    def predict_difference(self, xa: Tensor, xb: Tensor) -> dict[str, Tensor]:
        """How the augmentation parameters of view b differ from those of view a.

        Args:
            xa, xb: (N, 3, H, W) normalised views.

        Returns:
            kind -> (N, outputs) in the units of `spec.heads[kind].dimensions`; probabilities for
            flip and rot. Both orders are averaged where swapping the views negates the answer.
        """
        ya, yb = self(xa).features, self(xb).features
        ab, ba = self.heads(ya, yb), self.heads(yb, ya)
        return {
            kind: both_orders(head, to_physical(head, ab[kind]), to_physical(head, ba[kind]))
            for kind, head in self.spec.heads.items()
        }

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> AugSelfModel:
        """Load a model folder, a Hub id, or (None) the embedded demonstration model.

        Args:
            model: folder, `org/name` or `org/name@revision`.
            revision: branch, tag or commit of a Hub id.
            dtype: of encoder and heads.

        Returns:
            The model in evaluation mode.

        Raises:
            ModelFolderError: nothing there, incomplete, or in disagreement with its manifest.
        """
        folder = hub.resolve(model, revision)
        spec = hub.read_spec(folder)
        heads = AugSelfHeads(spec)
        _load_heads(heads, folder / hub.HEADS)
        encoder = AutoModel.from_pretrained(folder, dtype=dtype)
        loaded = cls(encoder, heads.to(dtype), spec, Preprocessing.from_folder(folder))
        return loaded.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a new model folder, in float32; it appears in one step.

        Raises:
            AugSelfError: the folder exists already.
        """
        with hub.new_folder(Path(folder)) as stage:
            self.write_files(stage)
            hub.write_manifest(stage)

    def write_files(self, folder: Path) -> None:
        """The files of encoder, processor and heads, without the manifest that must come last."""
        encoder = copy.deepcopy(self.encoder).cpu().float()
        encoder.save_pretrained(folder)
        _processor(self.preprocessing).save_pretrained(folder)
        (folder / hub.CONFIG).parent.mkdir()
        (folder / hub.CONFIG).write_text(self.spec.to_json())
        state = {name: _published(value) for name, value in self.heads.state_dict().items()}
        save_file(state, folder / hub.HEADS)


def _load_heads(heads: AugSelfHeads, path: Path) -> None:
    try:
        heads.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing: this folder has no AugSelf heads") from None
    except Exception as error:  # safetensors raises its own type, torch a RuntimeError
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelFolderError(f"{path} does not fit augself/config.json: {reason}") from error


def _published(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float().contiguous() if value.is_floating_point() else value.contiguous()


def _processor(preprocessing: Preprocessing) -> Any:
    size = preprocessing.size
    if size < 1:
        raise AugSelfError(f"an image side of {size} pixels cannot be: it must be at least 1")
    return BitImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
    )
