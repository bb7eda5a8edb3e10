"""AugSelfModel: a stock encoder, its AugSelf heads and, where one was fitted, its matcher.

The encoder is what transformers loads from the same folder; the heads say how the augmentation
parameters of two views differ (AugSelf, arXiv:2111.09613, section 3), the matcher says crop, flip
and rotation from feature maps (`modeling.matcher`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitImageProcessor, PreTrainedModel
from transformers.utils.generic import ModelOutput

from augself_hub import hub
from augself_hub.answer import Difference
from augself_hub.atomic import write_json
from augself_hub.augmentations.matching import Prediction, prediction_of
from augself_hub.augmentations.spec import LOG_VARIANCE, MatcherSpec, Spec, heads_for
from augself_hub.differences import Answered
from augself_hub.errors import AugSelfError, ModelFolderError, UsageError
from augself_hub.folder import (
    CONFIG,
    CURVES,
    ENCODER,
    HEADS,
    MATCHER,
    TRAINING_LOG,
    new_folder,
    read_spec,
    write_manifest,
)
from augself_hub.images.given import GivenImage, features_of, named, prepared
from augself_hub.modeling.encoders import pooled, refuse_unpooled
from augself_hub.modeling.maps import MapPlace, features_and_map
from augself_hub.modeling.matcher import Matcher, MatcherShape
from augself_hub.modeling.opening import (
    named_dtype,
    open_network,
    refuse_not_finite,
    refuse_unlike_stock,
)
from augself_hub.modeling.uncertainty import Uncertainty
from augself_hub.paths import path_text
from augself_hub.preprocess import Preprocessing

log = logging.getLogger(__name__)
# sentence-transformers averages the last hidden state, unless a folder says that it is pooled.
_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
}
_MENDS = {
    "device_map": "give device=, or move the model with .to()",
    "quantization_config": "quantise the graph with augself export --quantize",
    "attn_implementation": "call .encoder.set_attn_implementation()",
    "trust_remote_code": "no code of a model is ever run",
}


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
    bias. torch's default initialisation is the paper's uniform +-1/sqrt(fan_in). Where the spec has
    an uncertainty, the last entry states the variances of their errors (`modeling.uncertainty`).
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        for kind, head in spec.heads.items():
            self[kind] = nn.Sequential(
                nn.Linear(2 * spec.features, spec.hidden, bias=False),
                nn.BatchNorm1d(spec.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(spec.hidden, spec.hidden, bias=False),
                nn.BatchNorm1d(spec.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(spec.hidden, head.outputs),
            )
        if stated := spec.head_outputs().get(LOG_VARIANCE):
            self[LOG_VARIANCE] = Uncertainty(spec.features, spec.uncertainty, stated)

    def forward(self, ya: Tensor, yb: Tensor) -> dict[str, Tensor]:
        """Features of views a and b, (N, D) each -> raw outputs, by `Spec.head_outputs`."""
        pair = torch.cat([ya, yb], dim=1)
        return {kind: head(pair) for kind, head in self.items()}


class AugSelfModel(nn.Module):
    """A stock encoder with AugSelf heads.

    Args:
        encoder: any stock transformers image encoder with a plain pooler_output.
        heads: of the spec's kinds and widths.
        spec: what the heads predict, in which units.
        preprocessing: side, mean and std of the images.
        matcher: of the spec's `matcher`; None where that is None.

    Attributes:
        folder: what it was loaded from, if it was. name: what it is called in answers.
    """

    folder: Path | None = None
    name: str = "model"

    def __init__(
        self,
        encoder: PreTrainedModel,
        heads: AugSelfHeads,
        spec: Spec,
        preprocessing: Preprocessing,
        matcher: Matcher | None = None,
    ) -> None:
        super().__init__()
        refuse_unpooled(encoder.config)
        if (matcher is None) != (spec.matcher is None):
            raise AugSelfError("a matcher goes with a spec that describes it: see with_matcher")
        self.encoder = encoder
        self.heads = heads
        self.matcher = matcher
        self.spec = spec
        self.preprocessing = preprocessing

    def forward(self, pixel_values: Tensor) -> AugSelfOutput:
        """(N, 3, H, W) normalised images -> `AugSelfOutput`.

        Raises:
            ModelFolderError: the encoder is not the one augself/config.json was written for.
        """
        features = pooled(self.encoder, pixel_values)
        if features.shape[1] != self.spec.features:
            raise ModelFolderError(
                f"the encoder gives {features.shape[1]} features and {CONFIG} says "
                f"{self.spec.features}: they are not of one model"
            )
        return AugSelfOutput(features=features)

    def predict_difference(self, xa: Tensor, xb: Tensor) -> dict[str, Tensor]:
        """How the augmentation parameters of view b differ from those of view a.

        Args:
            xa, xb: (N, 3, H, W) normalised views.

        Returns:
            kind -> (N, outputs) in the units of the answering head's dimensions; probabilities for
            flip and rot. Both orders are averaged where swapping the views negates the answer.

        Raises:
            AugSelfError: the model has no heads.
        """
        return self.predict_pair(xa, xb).values

    def predict_pair(self, xa: Tensor, xb: Tensor) -> Prediction:
        """The same with the standard errors of each pair, and whether both views match.

        Example:
            pair = model.predict_pair(xa, xb)
            pair.values["crop"], pair.errors["crop"]  # (N, 4) each, where there is a matcher
            model.spec.answering()["crop"]  # ("matcher", its Head)
        """
        self._refuse_without_heads()
        if self.matcher is None:
            return self._predict(self(xa).features, self(xb).features)
        (ya, ma), (yb, mb) = self.features_and_maps(xa), self.features_and_maps(xb)
        return self._predict(ya, yb, (vars(self.matcher(ma, mb)), vars(self.matcher(mb, ma))))

    def _predict(self, ya: Tensor, yb: Tensor, by_matcher: Any = None) -> Prediction:
        return prediction_of(self.spec, (self.heads(ya, yb), self.heads(yb, ya)), by_matcher)

    def features_and_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised images -> (N, D) features and the matcher's (N, C, S, S) maps."""
        assert self.spec.matcher is not None, "only a matcher needs maps"
        return features_and_map(self.encoder, pixel_values, MapPlace.of(self.spec.matcher))

    def with_matcher(self, matcher: Matcher, level: int) -> AugSelfModel:
        """The same encoder and heads, and a matcher that nothing has been measured of yet.

        Args:
            matcher: as `training.methods.matcher.fit_matcher` gives it.
            level: where its maps are taken, `MapPlace.level`.
        """
        spec = dataclasses.replace(self.spec, matcher=described(matcher, level, self.spec))
        return AugSelfModel(self.encoder, self.heads, spec, self.preprocessing, matcher)

    def differences(self, ya: Tensor, yb: Tensor) -> dict[str, Tensor]:
        """What the heads say of features of the views, (N, D) each."""
        return self._predict(ya, yb).values

    def features(
        self,
        images: Iterable[GivenImage],
        *,
        batch_size: int = 64,
        normalize: bool = False,
        on_error: str = "raise",
        progress: bool | None = None,
    ) -> np.ndarray:
        """N images, as `augself_hub.Encoder` takes them -> (N, D) float32, in evaluation mode.

        On the model's device, without gradients: what is trained takes `model(pixel_values)`.

        Args:
            images: paths, bytes of image files, PIL images, uint8 arrays; any number of them.
            batch_size: images computed at once. normalize: scale each row to length 1.
            on_error, progress: as `Encoder.features` takes them.

        Raises:
            UsageError: a single image, or something that is no image.
            ImageError, AugSelfError: one cannot be read; says which.
        """
        return features_of(
            images,
            partial(prepared, preprocessing=self.preprocessing),
            self._features,
            self.spec.features,
            batch=batch_size,
            threads=max(1, torch.get_num_threads()),
            normalize=normalize,
            on_error=on_error,
            progress=progress,
        )

    def difference(self, a: GivenImage, b: GivenImage) -> Difference:
        """What takes image a to image b, in evaluation mode.

        Raises:
            AugSelfError: the model has no heads.
            UsageError, ImageError, AugSelfError: as `features` does.
        """
        self._refuse_without_heads()
        read = partial(prepared, preprocessing=self.preprocessing)
        images = [named(which, one, read) for which, one in (("a", a), ("b", b))]
        x = self._pixel_values(images)
        with torch.no_grad(), self._evaluating():
            features, pair = self(x).features, self.predict_pair(*x.split(1))
        as_numpy = Prediction(
            {kind: v.float().cpu().numpy() for kind, v in pair.values.items()},
            {kind: v.float().cpu().numpy() for kind, v in pair.errors.items()},
            None if pair.match is None else pair.match.float().cpu().numpy(),
        )
        found = Answered.of(self.spec, images, features.float().cpu().numpy(), as_numpy)
        (difference,) = Difference.of(self.name, self.spec, found)
        return difference

    def _features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N (S, S, 3) uint8 -> (N, D) float32."""
        with torch.no_grad(), self._evaluating():
            features: Tensor = self(self._pixel_values(images)).features
        return features.float().cpu().numpy()

    def _pixel_values(self, images: Sequence[np.ndarray]) -> Tensor:
        """N (S, S, 3) uint8 -> (N, 3, S, S), normalised."""
        pixels = torch.from_numpy(np.stack(images)).to(self._device)
        mean, std = (
            torch.tensor(v, device=self._device).view(1, 3, 1, 1)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return ((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std).to(self.encoder.dtype)

    @property
    def _device(self) -> torch.device:
        return self.encoder.device

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Batch norms must not learn from what is only looked at; each gets its mode back."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _refuse_without_heads(self) -> None:
        if not self.spec.answering():
            raise AugSelfError(
                f"this model has no AugSelf heads ({HEADS} is missing or empty), only features: "
                "train some with augself fit-heads"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str = "",
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device | None = None,
        **others: Any,
    ) -> AugSelfModel:
        """Load a model folder, a Hub id, or (None) the embedded demonstration model.

        A folder without augself/model.safetensors gives features, and no differences.

        Args:
            model: folder, `org/name` or `org/name@revision`.
            revision: branch, tag or commit of a Hub id.
            cache_dir: where the Hub's files are kept; None: the Hub client's own cache.
            local_files_only: ask only the cache, as HF_HUB_OFFLINE=1 does.
            token: of the Hub; None: the one `hf auth login` keeps.
            subfolder: where in the folder or repository the model is.
            dtype: of encoder, heads and matcher, also by name ("float16"); "auto": as they are
                stored.
            device: of all; None: where torch puts new tensors.
            others: transformers' other options are refused by name, unless they ask for nothing;
                `torch_dtype` is its older name of `dtype`.

        Returns:
            The model in evaluation mode.

        Raises:
            ModelFolderError: nothing there, incomplete, in disagreement with its manifest, or of
                parts that do not fit each other; names the file.
            HubError: the Hub did not give it.
            UsageError: an option that cannot be honoured.
        """
        dtype = named_dtype(others.pop("torch_dtype", None) or dtype)
        for name, value in others.items():
            if value not in (None, False) and (name, value) != ("use_safetensors", True):
                mend = _MENDS.get(name, "leave it out")
                raise UsageError(f"from_pretrained cannot honour {name}={value!r}: {mend}")
        folder = hub.resolve(
            model,
            revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
        )
        spec = _spec_of_what_is_there(folder)
        with torch.device("meta"):  # whatever widths augself/config.json claims
            heads = AugSelfHeads(spec)
        if spec.heads:
            _load_weights(heads, folder / HEADS)
        matcher = None if spec.matcher is None else _load_matcher(spec.matcher, folder)
        encoder = open_network(folder, dtype, strict=True)
        loaded = cls(encoder, heads, spec, Preprocessing.from_folder(folder), matcher)
        loaded.heads.to(encoder.dtype)
        if loaded.matcher is not None:
            loaded.matcher.to(encoder.dtype)
        loaded.folder = folder
        if model is not None and Path(model).is_dir():
            loaded.name = hub.name_of(folder)
        else:
            loaded.name = f"{hub.name_of(model)}@{revision}" if revision else hub.name_of(model)
        return loaded.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a new model folder, in float32; it appears in one step.

        What was measured of a model as it was loaded is left out of the description of one whose
        weights have changed since.

        Raises:
            AugSelfError: the folder exists already.
        """
        self._save(Path(path_text("folder", folder)))

    def _save(self, folder: Path) -> bool:
        """`save_pretrained`; whether the folder this was loaded from is this model still."""
        with new_folder(folder) as stage:
            self.write_files(stage)
            same = self.folder is not None and _same_model(stage, self.folder)
            if not same and self._measured_as_loaded():
                log.warning("%s has changed: what was measured of it is left out", self.folder)
                (stage / CONFIG).write_text(self.spec.unmeasured().to_json())
            write_manifest(stage)
        return same

    def _measured_as_loaded(self) -> bool:
        """Whether the spec's figures are those of the folder this was loaded from, so that other
        weights have none. Of half precision nobody can tell whether they are others."""
        if self.folder is None or self.encoder.dtype != torch.float32:
            return False
        there = (self.folder / ENCODER).is_file() and (self.folder / CONFIG).is_file()
        return there and self.spec == _spec_of_what_is_there(self.folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Publish this model in one commit (see `hub.push`).

        The folder it was loaded from is published as it is if it is this model still. Otherwise
        onnx/, evaluation.json and what was measured of its heads stay away, which describe other
        weights, and a warning says so.

        Returns:
            The commit's URL.

        Raises:
            HubError: the Hub did not take it.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            same = self._save(folder)
            if self.folder is not None and same:
                folder = self.folder
            elif self.folder is not None:
                log.warning(
                    "%s has changed: published without onnx/ and without what was measured of it",
                    self.folder,
                )
                for name in (TRAINING_LOG, CURVES):
                    if (self.folder / name).is_file():
                        shutil.copyfile(self.folder / name, folder / name)
                write_manifest(folder)
            return hub.push(
                folder, repo_id, private=private, token=token, commit_message=commit_message
            )

    def write_files(self, folder: Path) -> None:
        """The files of encoder, processor and heads, without the manifest that must come last.

        Raises:
            AugSelfError: the encoder is not a stock network (an adapter was not merged), or a
                weight is not finite.
        """
        refuse_unlike_stock(self.encoder)
        refuse_not_finite(self.encoder, "the encoder")
        encoder = copy.deepcopy(self.encoder).cpu().float()
        encoder.save_pretrained(folder)
        with torch.no_grad():
            side = self.preprocessing.size
            answer = encoder.eval()(torch.zeros(1, 3, side, side)).pooler_output
        if answer.ndim == 2:  # a map of one cell is the average of the last hidden state
            for name, content in _SENTENCE_TRANSFORMERS.items():
                write_json(folder / name, content)
        _processor(self.preprocessing).save_pretrained(folder)
        (folder / CONFIG).parent.mkdir()
        (folder / CONFIG).write_text(self.spec.to_json())
        self.write_heads(folder)
        self.write_matcher(folder)

    def write_heads(self, folder: Path) -> None:
        """The weights of the heads, and of the errors they state."""
        refuse_not_finite(self.heads, "the heads")
        state = {name: _published(value) for name, value in self.heads.state_dict().items()}
        save_file(state, folder / HEADS)

    def write_matcher(self, folder: Path) -> None:
        """The matcher's weights, if there is one."""
        if self.matcher is not None:
            refuse_not_finite(self.matcher, "the matcher")
            state = {name: _published(value) for name, value in self.matcher.state_dict().items()}
            save_file(state, folder / MATCHER)


def _spec_of_what_is_there(folder: Path) -> Spec:
    """augself/config.json, without heads or matcher whose weights are not in the folder."""
    spec = read_spec(folder)
    if not (folder / HEADS).is_file():
        spec = dataclasses.replace(spec, heads={})
    return spec if (folder / MATCHER).is_file() else dataclasses.replace(spec, matcher=None)


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path), assign=True)
        refuse_not_finite(network, str(path))
    except ModelFolderError:
        raise
    except Exception as error:  # safetensors raises its own type, torch a RuntimeError
        raise ModelFolderError(
            f"{path} does not fit augself/config.json: {_line(error)}"
        ) from error


def _load_matcher(spec: MatcherSpec, folder: Path) -> Matcher:
    try:
        shape = MatcherShape(**spec.shape)
    except TypeError as error:
        raise ModelFolderError(
            f"{folder / CONFIG}: matcher.shape: {_line(error)}: upgrade augself-hub"
        ) from error
    with torch.device("meta"):  # whatever sizes augself/config.json claims
        matcher = Matcher(shape, tuple(d.std for d in spec.heads["crop"].dimensions))
    _load_weights(matcher, folder / MATCHER)
    return matcher


def described(matcher: Matcher, level: int, spec: Spec) -> MatcherSpec:
    """What augself/config.json says of a matcher: its sizes, and what it answers.

    Crop's unit, deviations and largest values are those of the heads on features; nothing is
    measured yet.
    """
    if spec.convention != "relative" or "crop" not in spec.heads:
        raise AugSelfError("a matcher needs convention relative and a crop head")
    shape = dataclasses.asdict(matcher.shape)
    kinds = ["crop", *["flip"] * shape["flips"], *["rot"] * shape["turns"]]
    heads = heads_for(kinds, spec.policy, spec.convention)
    heads["crop"] = spec.heads["crop"].unmeasured()
    return MatcherSpec(level, shape, heads)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _same_model(folder: Path, source: Path) -> bool:
    """Whether two folders hold the same weights, spec and preprocessing."""
    if not all((source / path).is_file() for path in (ENCODER, CONFIG)):
        return False
    described = [
        (_spec_of_what_is_there(f), Preprocessing.from_folder(f)) for f in (folder, source)
    ]
    if described[0] != described[1]:
        return False
    a, b = _weights(folder), _weights(source)
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def _weights(folder: Path) -> dict[str, Tensor]:
    paths = [path for path in (ENCODER, HEADS, MATCHER) if (folder / path).is_file()]
    return {f"{p}:{k}": value for p in paths for k, value in load_file(folder / p).items()}


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
