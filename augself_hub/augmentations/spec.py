"""The table of augmentations: parameters, ranges, units, heads.

Three records and one table:

- `Policy` says how views are drawn (probabilities and ranges, in physical units);
- `Dimension` and `Head` say what an AugSelf head predicts and how its output is read;
- `Spec` is what a model folder stores in augself/config.json: a policy, the heads, the matcher;
- `HEADS` is the table: convention -> augmentation kind -> head.

`relative` is this project's convention, `paper` the one official checkpoints were trained with.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from augself_hub.configs import renamed
from augself_hub.errors import ModelFolderError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)
Record = TypeVar("Record", bound="DataclassInstance")

FORMAT = 2
MAX_DIMENSIONS = 64  # of a head; heads of a model
MAX_WORDS = 200  # letters of a name or a unit
LOG_VARIANCE = "log_variance"  # output of the heads, and of a matcher, beside what they predict
CHOICES = {"saturate": ("luma", "hsv"), "order": ("sample", "batch")}  # of a policy's words
HeadType = Literal["regression", "binary", "classes"]
Range = tuple[float, float]


@dataclass(frozen=True)
class Policy:
    """How one view is drawn: random resized crop, flip, colour jitter, [sol], gray, blur, [rot].

    Args:
        size: side of a view in pixels.
        scale, ratio: ranges of the crop's share of the area and of its width / height.
        flip, color, sol, gray, blur, rot: probability of being applied, in [0, 1].
        brightness, contrast, saturation: a factor is drawn from [max(0, 1 - v), 1 + v].
        hue: a shift is drawn from [-hue, hue], in turns of the colour circle.
        sigma: range of the Gaussian blur's standard deviation, in pixels of the view.
        saturate: how saturation is scaled: `luma` blends with the gray picture, as torchvision and
            Pillow do; `hsv` multiplies HSV's saturation, as official AugSelf runs did.
        order: of the four jitter operations: `sample`, each view its own; `batch`, one a batch of
            views, as official runs did; who shares a batch then decides what a view looks like.

    Source: AugSelf, section 4 and appendix; probabilities of sol and rot are 0 unless asked for.
    """

    size: int = 224
    scale: Range = (0.2, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    color: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    sol: float = 0.0
    gray: float = 0.2
    blur: float = 0.5
    sigma: Range = (0.1, 2.0)
    rot: float = 0.0
    saturate: str = "luma"
    order: str = "sample"

    @property
    def blur_kernel(self) -> int:
        """Taps of the blur: the odd number near a tenth of the side (96 -> 9, 224 -> 23)."""
        return max(3, (self.size // 10) | 1)

    def factors(self, name: str) -> Range:
        """The range a brightness, contrast or saturation factor is drawn from."""
        strength = getattr(self, name)
        return (max(0.0, 1.0 - strength), 1.0 + strength)

    def with_kinds(self, kinds: Any) -> Policy:
        """The same policy with sol and rot switched on (p 0.5) where they are to be learned."""
        extra: dict[str, Any] = {
            kind: 0.5 for kind in ("sol", "rot") if kind in kinds and not getattr(self, kind)
        }
        return dataclasses.replace(self, **extra)

    def with_color_strength(self, strength: float) -> Policy:
        """The same policy, jitter ranges and the share of gray views times `strength`.

        AugSelf's strong colour is 2, its weak one 0.5.
        """
        names = ("brightness", "contrast", "saturation", "hue", "gray")
        return dataclasses.replace(self, **{n: getattr(self, n) * strength for n in names})

    def probability(self, kind: str) -> float:
        """How often an augmentation of this kind changes a view."""
        return 1.0 if kind == "crop" else float(getattr(self, kind))


@dataclass(frozen=True)
class Dimension:
    """One number a head predicts.

    Args:
        name: e.g. "brightness".
        unit: of the predicted difference.
        antisymmetric: swapping the two views negates it, so that both orders may be averaged.
        needs_color: nothing can be said where either view is gray.
        std: root mean square of the target over random pairs; regression targets are divided by it.
        standard_error: root mean square error on held-out pairs, in the unit, hence right on
            average and not for every pair; None: not measured.
        largest: what 99.9% of the training pairs stay within, in the unit; an answer beyond it is
            beyond what was trained on. None: unknown, or no regression.
        learned: whether the answers are worth more than the baseline (always zero, or the more
            frequent answer); None: not measured.
        score, confidence_interval, baseline: R^2 or accuracy on held-out pairs, its 95% confidence
            interval, and what always predicting zero, or the more frequent answer, has.
    """

    name: str
    unit: str
    antisymmetric: bool = True
    needs_color: bool = False
    std: float = 1.0
    standard_error: float | None = None
    largest: float | None = None
    learned: bool | None = None
    score: float | None = None
    confidence_interval: Range | None = None
    baseline: float | None = None


@dataclass(frozen=True)
class MatchCalibration:
    """How pairs of one picture are told from pairs of two, by the cosine of their features.

    The probability that both are of one picture, where either is as likely beforehand, is
    1 / (1 + exp(-(slope * cosine + intercept))), fitted to held-out pairs. A matcher's own logit
    takes the cosine's place where there is one.

    Args:
        threshold: a pair with a lower probability counts as unlike pictures.
        auc: area under the ROC curve on held-out pairs.
        false_alarm_rate, detection_rate: share of the pairs of one picture, and of the pairs of
            two, below the threshold.
        pairs: of one picture, that were measured; about as many of two.
    """

    slope: float
    intercept: float
    threshold: float
    auc: float
    false_alarm_rate: float
    detection_rate: float
    pairs: int


@dataclass(frozen=True)
class Match:
    """How unlike pictures are told. A gray picture is further from its coloured twin, hence two.

    Args:
        alike: where both pictures have colours or neither has.
        one_gray: where exactly one is gray.
    """

    alike: MatchCalibration | None = None
    one_gray: MatchCalibration | None = None


@dataclass(frozen=True)
class Head:
    """What one head predicts. `outputs` is the width of its last layer.

    Args:
        type: regression (mean squared error), binary (logit) or classes (cross-entropy).
        dimensions: what is predicted; a binary or classes head has exactly one.
        classes: number of classes of a classes head, else 0.
        tanh: the raw output goes through tanh before it is compared (convention `paper`).
    """

    type: HeadType
    dimensions: tuple[Dimension, ...]
    classes: int = 0
    tanh: bool = False

    @property
    def outputs(self) -> int:
        return self.classes if self.type == "classes" else len(self.dimensions)

    def unmeasured(self) -> Head:
        """The same without what was measured on held-out pairs."""
        names = ("standard_error", "learned", "score", "confidence_interval", "baseline")
        unknown: dict[str, Any] = dict.fromkeys(names)
        dimensions = tuple(dataclasses.replace(d, **unknown) for d in self.dimensions)
        return dataclasses.replace(self, dimensions=dimensions)


def _regression(unit: str, *names: str, tanh: bool = False, **kwargs: Any) -> Head:
    return Head("regression", tuple(Dimension(n, unit, **kwargs) for n in names), tanh=tanh)


_FLIP = Head("binary", (Dimension("mirrored", "probability", antisymmetric=False),))
_ROT = Head("classes", (Dimension("quarter_turns", "probability", antisymmetric=False),), classes=4)

HEADS: dict[str, dict[str, Head]] = {
    "relative": {
        "crop": Head(
            "regression",
            (
                Dimension("y", "heights of a", antisymmetric=False),
                Dimension("x", "widths of a", antisymmetric=False),
                Dimension("height", "log ratio"),
                Dimension("width", "log ratio"),
            ),
        ),
        "color": Head(
            "regression",
            (
                Dimension("brightness", "log ratio"),
                Dimension("contrast", "log ratio"),
                Dimension("saturation", "log ratio", needs_color=True),
                Dimension("hue", "turns", needs_color=True),
            ),
        ),
        "flip": _FLIP,
        "blur": _regression("pixels of the view", "sigma"),
        "rot": _ROT,
        "sol": _regression("fraction of the range", "inverted"),
    },
    "paper": {
        "crop": Head(
            "regression",
            (
                Dimension("y", "fraction of the source"),
                # Mirrored as view 1 is: swapping the views keeps its sign where their flips differ.
                Dimension("x", "fraction of the source", antisymmetric=False),
                Dimension("height", "fraction of the source"),
                Dimension("width", "fraction of the source"),
            ),
            tanh=True,
        ),
        "color": _regression(
            "fraction of the range", "brightness", "contrast", "saturation", "hue", tanh=True
        ),
        "flip": Head("binary", (Dimension("same", "probability", antisymmetric=False),)),
        "blur": _regression("pixels of the view", "sigma", tanh=True),
        "rot": _ROT,
        "sol": _regression("fraction of the range", "threshold", tanh=True),
    },
}

KINDS = tuple(HEADS["relative"])


def heads_for(kinds: Any, policy: Policy, convention: str = "relative") -> dict[str, Head]:
    """The heads of the wanted kinds, in the table's order, standard deviations still unset.

    Raises:
        UsageError: an unknown convention or kind, or a kind the policy never applies.
    """
    if convention not in HEADS:
        raise UsageError(f"unknown convention {convention!r}: use one of {', '.join(HEADS)}")
    known = HEADS[convention]
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"unknown augmentation {kind!r}: use {', '.join(known)}")
        if policy.probability(kind) == 0:
            raise UsageError(f"augmentation {kind!r} is never applied: its probability is 0")
    heads = {kind: head for kind, head in known.items() if kind in kinds}
    if convention == "relative" and policy.rot and "crop" in heads:
        # A turned view a swaps height and width: swapping the views no longer negates them.
        crop = heads["crop"]
        dimensions = tuple(dataclasses.replace(d, antisymmetric=False) for d in crop.dimensions)
        heads["crop"] = dataclasses.replace(crop, dimensions=dimensions)
    return heads


@dataclass(frozen=True)
class MatcherSpec:
    """The geometric head on feature maps, whose weights are augself/matcher.safetensors.

    Args:
        level: where the encoder's map is taken: hidden states, from the last, -1, -2 ...
        shape: the network's sizes, `modeling.matcher.MatcherShape` by its fields: channels and
            cells of a map, (C, S, S); whether it tells flips and turns; groups, width, hidden ...
        heads: kind -> what it answers of crop, flip and rot, with what was measured of each.
        match: how unlike pictures are told by its logit; None: not measured.
    """

    level: int
    shape: dict[str, Any]
    heads: dict[str, Head]
    match: MatchCalibration | None = None

    @property
    def maps(self) -> tuple[int, int, int]:
        """(C, S, S) of one picture."""
        return (self.shape["channels"], self.shape["cells"], self.shape["cells"])

    @property
    def turns(self) -> bool:
        """Whether it tells quarter turns."""
        return bool(self.shape["turns"])

    def outputs(self) -> dict[str, int]:
        """Its network's raw outputs of a pair, by name: how many numbers each."""
        rot = 4 if self.turns else 1
        return {"crop": 4, "log_variance": 4, "flip": 1, "rot": rot, "match": 1}


@dataclass(frozen=True)
class Spec:
    """What augself/config.json says: enough to put a raw prediction back into physical units.

    Args:
        convention: `relative` or `paper`.
        policy: how the views the heads were trained on were drawn.
        heads: kind -> head, in the order of onnx/heads.onnx's outputs.
        features: D, the width of the encoder's features.
        hidden: width of the heads' hidden layers.
        uncertainty: width of the network that states an error of each pair for what the heads say;
            0: there is none, and errors are known on average only.
        match: how unlike pictures are told; None: not measured, or not possible.
        matcher: the geometric head; None: there is none.
        provenance: free text facts: who trained it, from what, with which version.
    """

    convention: str
    policy: Policy
    heads: dict[str, Head]
    features: int
    hidden: int = 512
    uncertainty: int = 0
    match: Match | None = None
    matcher: MatcherSpec | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def answering(self, maps: bool = True) -> dict[str, tuple[str, Head]]:
        """kind -> which head answers, `matcher` or `features`, and what it says of itself.

        What both can answer the matcher does, unless it has learned nothing of that kind.

        Args:
            maps: whether there are feature maps of the pair; of features alone the heads answer.
        """
        by_features = {kind: ("features", head) for kind, head in self.heads.items()}
        by_matcher = {
            kind: ("matcher", head)
            for kind, head in (self.matcher.heads if self.matcher and maps else {}).items()
            if kind not in self.heads or any(d.learned is not False for d in head.dimensions)
        }
        found = by_features | by_matcher
        return {kind: found[kind] for kind in HEADS[self.convention] if kind in found}

    def head_outputs(self) -> dict[str, int]:
        """The raw outputs of the heads on features for a pair, by name: how many numbers each.

        Last, where errors of each pair are stated, LOG_VARIANCE of every number of a regression.
        """
        outputs = {kind: head.outputs for kind, head in self.heads.items()}
        stated = sum(h.outputs for h in self.heads.values() if h.type == "regression")
        return outputs | ({LOG_VARIANCE: stated} if self.uncertainty and stated else {})

    def unmeasured(self) -> Spec:
        """The same without what was measured of heads and matcher, for other weights."""
        heads = {kind: head.unmeasured() for kind, head in self.heads.items()}
        matcher = self.matcher and dataclasses.replace(
            self.matcher,
            heads={kind: head.unmeasured() for kind, head in self.matcher.heads.items()},
            match=None,
        )
        return dataclasses.replace(self, heads=heads, matcher=matcher, match=None)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read augself/config.json, of this format or of version 0.1's (`_as_format_2`).

        Raises:
            ModelFolderError: not JSON, a newer format, a field that is missing or unknown, a
                convention or an augmentation this version does not know.
        """
        try:
            data = json.loads(text)
            written_as = data.pop("format", None)
            if type(written_as) is not int or written_as not in (1, FORMAT):
                raise ModelFolderError(
                    f"augself/config.json is not of format 1 or {FORMAT}: upgrade augself-hub"
                )
            _rename([data["heads"], data.get("match"), data.get("matcher")])
            policy = _build(Policy, data.pop("policy"))
            if len(data["heads"]) > MAX_DIMENSIONS:
                raise ModelFolderError(f"augself/config.json has {len(data['heads'])} heads")
            heads = {kind: _build_head(head) for kind, head in data.pop("heads").items()}
            match = data.pop("match", None)
            if match is not None:
                by_colour = {
                    name: None if one is None else _build(MatchCalibration, one)
                    for name, one in match.items()
                }
                match = _build(Match, by_colour)
            matcher = data.pop("matcher", None)
            matcher = None if matcher is None else _build_matcher(matcher)
            parts = {"policy": policy, "heads": heads, "match": match, "matcher": matcher}
            spec = _build(cls, {**data, **parts})
            _check_known(spec)
            return _as_format_2(spec) if written_as == 1 else spec
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ModelFolderError(f"augself/config.json cannot be read: {reason}") from error


_RENAMED = {  # fields as code between the releases wrote them
    "interval": "confidence_interval",
    "least": "threshold",
    "false_alarms": "false_alarm_rate",
    "found": "detection_rate",
}


def _rename(values: list[Any]) -> None:
    """Give fields that bear an older name, however deep, the one they have now."""
    old: set[str] = set()
    while values:
        value = values.pop()
        if isinstance(value, dict):
            old |= renamed(value, _RENAMED)
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
    if old:
        names = ", ".join(f"{name} is read as {_RENAMED[name]}" for name in sorted(old))
        log.info("augself/config.json: %s", names)


def _as_format_2(spec: Spec) -> Spec:
    """What version 0.1 wrote, put right: it took `paper`'s x for antisymmetric.

    Heads of official checkpoints learned the x of this version, which must not be averaged over
    both orders. Heads that 0.1 trained itself (their provenance has a method) learned another
    number, each centre mirrored by its own view's flip: it is no x of this convention.
    """
    if spec.convention != "paper" or "crop" not in spec.heads:
        return spec
    learned = False if "method" in spec.provenance else None
    crop = spec.heads["crop"]
    dimensions = tuple(
        dataclasses.replace(d, antisymmetric=False, learned=learned) if d.name == "x" else d
        for d in crop.dimensions
    )
    heads = {**spec.heads, "crop": dataclasses.replace(crop, dimensions=dimensions)}
    return dataclasses.replace(spec, heads=heads)


def _check_known(spec: Spec) -> None:
    known = HEADS.get(spec.convention)
    if known is None:
        raise ModelFolderError(
            f"augself/config.json has the unknown convention {spec.convention!r}: "
            "upgrade augself-hub"
        )
    if spec.matcher and spec.convention != "relative":
        raise ModelFolderError(
            "augself/config.json has a matcher, and convention paper has none: remove its entry"
        )
    for kind, head in (*spec.heads.items(), *(spec.matcher.heads if spec.matcher else {}).items()):
        if kind not in known or head.type != known[kind].type:
            raise ModelFolderError(
                f"augself/config.json has the unknown head {kind!r} ({head.type}): "
                "upgrade augself-hub"
            )


def _build(record: type[Record], data: dict[str, Any]) -> Record:
    known = {f.name: str(f.type) for f in dataclasses.fields(record)}
    if unknown := sorted(set(data) - set(known)):
        raise ModelFolderError(
            f"augself/config.json has an unknown field {unknown[0][:80]!r}: upgrade augself-hub"
        )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    for name, value in given.items():
        if not _is(known[name], value):
            wanted = _WORDS.get(known[name].removesuffix(" | None"), known[name])
            raise ModelFolderError(
                f"augself/config.json cannot be read: {record.__name__}.{name} is "
                f"{repr(value)[:40]}, not {wanted}"
            )
    return record(**given)


_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,),
}  # fmt: skip


def _is(kind: str, value: Any) -> bool:
    """Whether a value is one of a field's annotation; records inside are built by themselves."""
    kind, _, none = kind.partition(" | ")
    if value is None:
        return none == "None"
    if kind == "Range":
        return isinstance(value, tuple) and len(value) == 2 and all(_is("float", v) for v in value)
    if isinstance(value, str) and not (value.isprintable() and len(value) <= MAX_WORDS):
        return False  # it is shown on terminals, in cards and on pages
    return kind not in _TYPES or type(value) in _TYPES[kind]


def _build_matcher(data: dict[str, Any]) -> MatcherSpec:
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in data["shape"].items()}
    if max(len(data["shape"]), len(data["heads"])) > MAX_DIMENSIONS:
        raise ModelFolderError("augself/config.json has a matcher of too many fields or heads")
    heads = {kind: _build_head(head) for kind, head in data["heads"].items()}
    match = data.get("match")
    match = None if match is None else _build(MatchCalibration, match)
    return _build(MatcherSpec, {**data, "shape": shape, "heads": heads, "match": match})


def _build_head(data: dict[str, Any]) -> Head:
    if not 1 <= len(data["dimensions"]) <= MAX_DIMENSIONS:
        raise ModelFolderError(
            f"augself/config.json has a head of {len(data['dimensions'])} dimensions, "
            f"not 1 to {MAX_DIMENSIONS}"
        )
    dimensions = tuple(_build(Dimension, d) for d in data["dimensions"])
    return _build(Head, {**data, "dimensions": dimensions})
