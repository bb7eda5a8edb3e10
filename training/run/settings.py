"""What one run is made of, and the command line that asks for it.

A field of `Settings` is declared once: its metadata gives the command line its heading and help,
and the checks its range.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from augself_hub.augmentations.spec import CHOICES, Policy
from augself_hub.errors import UsageError
from augself_hub.images.words import COLUMN_HELP, DECODES, LAYOUTS, READ_AS_HELP, Columns
from training.run.rules import Rule

JOINT = "joint"  # how a matcher may be trained: with the encoder
FROZEN = "frozen"  # what `augself fit-heads` puts in a method's place
FROZEN_DEFAULTS: dict[str, Any] = {"size": 224, "epochs": 10.0}  # where it has others
FIXED = ("encoder", "method", "method_options", "convention", "normalization")  # there, likewise
GROUP_HELP = "Text (a regular expression) that held-out images of one origin share in their names."
NORMALIZATIONS = ("imagenet", "stl10")
OPTIMIZERS, SCHEDULES = ("sgd", "adamw", "lars"), ("cosine", "constant")
SCHEDULE_STEPS = ("step", "epoch")
PAIRS = {
    "method_options": "--method-option",
    "matcher_options": "--matcher-option",
    "policy": "--policy",
    "arguments": "--set",
}
MATCHERS = ("off", "after", JOINT)
LEAST_SIZE = 8  # pixels: below it a ResNet's last maps and the blur have nothing to work on
CHOSEN = {  # what is not given of these is chosen for the images and the cores (`choosing`)
    "batch_size": "a quarter of the images, 16 to 256",
    "epochs": "10 to 200, by images and cores",
    "size": "96; on few cores 64; less for small images",
    "workers": "by the cores",
}
_TEXT, _MAYBE = Rule(str), Rule(str, optional=True)
_POSITIVE, _COUNT = Rule(float, 0, open=True), Rule(int, 1)


def _about(group: str, text: str, rule: Rule | None = None) -> dict[str, Any]:
    """The heading and the help of a field's option; without a rule it is checked by itself."""
    return {"group": group, "help": text, "rule": rule}


@dataclass(frozen=True)
class Settings:
    """What one run is made of; each field's metadata says what it is and what it may be.

    Raises:
        UsageError: a value of another type or out of range, or two that do not go together.
    """

    data: str = field(
        metadata=_about(
            "Images",
            "Source of images: a folder, a glob, a list, tars, parquet files, org/name "
            "(docs/data-sources.md), or stl10:DIR, cifar10:DIR, cifar100:DIR, imagenet:DIR.",
            _TEXT,
        )
    )
    output: Path = field(
        metadata=_about("Run", "Run folder: checkpoints, logs and, at the end, model/.")
    )
    method: str = field(
        default="simsiam",
        metadata=_about("Method", "Self-supervised method that AugSelf is added to.", _TEXT),
    )
    method_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about("Method", "Hyperparameter of the method, e.g. layers=3."),
    )
    encoder: str = field(
        default="resnet18",
        metadata=_about("Method", "Encoder: a preset, a folder or a Hub id.", _TEXT),
    )
    augself: dict[str, float] = field(
        default_factory=lambda: {"crop": 1.0, "color": 1.0},
        metadata=_about("Method", "Weight of each augmentation's AugSelf loss; '' for none."),
    )
    convention: str = field(
        default="relative",
        metadata=_about("Method", "Convention of the targets: relative or paper.", _TEXT),
    )
    matcher: str | None = field(
        default=None,
        metadata=_about(
            "Method",
            "The matcher, which finds view b in view a: fit it on the frozen encoder at the end "
            "(after), train it with the encoder (joint), or leave it out (off). Default: after, "
            "where there is a crop head of convention relative, the encoder gives maps and the run "
            "drew 2000 pairs.",
            Rule(str, choices=MATCHERS, optional=True),
        ),
    )
    matcher_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "Method", "Hyperparameter of the matcher, e.g. pairs=36000 or weight=0.25."
        ),
    )
    size: int = field(
        default=96, metadata=_about("Views", "Side of the views in pixels.", Rule(int, LEAST_SIZE))
    )
    color_strength: float = field(
        default=1.0,
        metadata=_about(
            "Views",
            "Factor on the jitter's ranges and the probability of gray: strong is 2, weak 0.5.",
            Rule(float),
        ),
    )
    policy: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about("Views", "Augmentation policy, e.g. blur=0 or scale=0.08,1."),
    )
    normalization: str | None = field(
        default=None,
        metadata=_about(
            "Views",
            "Mean and std of the images. Default: the encoder's own, of a preset ImageNet's.",
            Rule(str, choices=NORMALIZATIONS, optional=True),
        ),
    )
    epochs: float = field(
        default=200.0, metadata=_about("Optimisation", "Training epochs.", _POSITIVE)
    )
    batch_size: int = field(
        default=256,
        metadata=_about("Optimisation", "Images per step, over all processes.", _COUNT),
    )
    base_lr: float = field(
        default=0.03,
        metadata=_about(
            "Optimisation",
            "Learning rate at batch size 256, scaled by --batch-size / 256.",
            _POSITIVE,
        ),
    )
    optimizer: str = field(
        default="sgd",
        metadata=_about(
            "Optimisation",
            "sgd (momentum 0.9), adamw, or lars for large batches.",
            Rule(str, choices=OPTIMIZERS),
        ),
    )
    schedule: str = field(
        default="cosine",
        metadata=_about(
            "Optimisation",
            "Learning-rate schedule: a cosine to 0, or constant.",
            Rule(str, choices=SCHEDULES),
        ),
    )
    schedule_by: str = field(
        default="step",
        metadata=_about(
            "Optimisation",
            "How often learning rate and BYOL's momentum are updated: every step or every epoch.",
            Rule(str, choices=SCHEDULE_STEPS),
        ),
    )
    warmup_epochs: float = field(
        default=0.0,
        metadata=_about(
            "Optimisation", "Epochs of linear learning-rate warmup from 0.", Rule(float, 0)
        ),
    )
    weight_decay: float = field(
        default=0.0005,
        metadata=_about(
            "Optimisation",
            "Weight decay: of sgd on every weight, of the others not on biases and norms.",
            Rule(float, 0),
        ),
    )
    seed: int = field(
        default=0,
        metadata=_about(
            "Optimisation",
            "Random seed of initialisation, data order and views.",
            Rule(int, 0, 2**32 - 1),
        ),
    )
    workers: int = field(
        default=2, metadata=_about("Images", "Data-loading processes.", Rule(int, 0))
    )
    decode: str = field(
        default="exact",
        metadata=_about(
            "Images",
            "fast decodes large JPEGs smaller, no smaller than the views need.",
            Rule(str, choices=DECODES),
        ),
    )
    max_skipped: float = field(
        default=0.1,
        metadata=_about("Images", "Largest share of unreadable images.", Rule(float, 0, 1)),
    )
    monitor_every: float = field(
        default=10.0,
        metadata=_about(
            "Run",
            "Epochs between evaluations on held-out images; 0: only at the end.",
            Rule(float, 0),
        ),
    )
    held_out: str | None = field(
        default=None,
        metadata=_about("Images", "Images held out for evaluation; default: 5% of --data.", _MAYBE),
    )
    epoch_images: int | None = field(
        default=None,
        metadata=_about("Images", "Images per epoch of a stream.", Rule(int, 1, optional=True)),
    )
    classes: Path | None = field(
        default=None,
        metadata=_about("Images", "File with a class name per line: only their images are used."),
    )
    split: str | None = field(
        default=None,
        metadata=_about(
            "Images", "Split to train on; default: train, if there are several.", _MAYBE
        ),
    )
    column: tuple[str, ...] = field(default=(), metadata=_about("Images", COLUMN_HELP))
    read_as: str | None = field(
        default=None,
        metadata=_about("Images", READ_AS_HELP, Rule(str, choices=LAYOUTS, optional=True)),
    )
    stream: bool = field(
        default=False,
        metadata=_about("Images", "Read the images in order, without listing them.", Rule(bool)),
    )
    license: str = field(
        default="other",
        metadata=_about("Publication", "License of the model, for its card.", _TEXT),
    )
    report_to: tuple[str, ...] = field(
        default=("tensorboard",),
        metadata=_about(
            "Run", "Reporters of the log beside training_log.json: tensorboard, wandb, ..., none."
        ),
    )
    push_to_hub: str | None = field(
        default=None,
        metadata=_about(
            "Publication", "Publish the model as ORG/NAME at the end of the run.", _MAYBE
        ),
    )
    private: bool = field(
        default=False,
        metadata=_about("Publication", "Publish in a private repository.", Rule(bool)),
    )
    arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "Optimisation", "Field of transformers' TrainingArguments, e.g. bf16=True."
        ),
    )

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value, rule = getattr(self, one.name), one.metadata["rule"]
            if isinstance(value, os.PathLike) and one.type in ("str", "str | None"):
                value = os.fspath(value)
            if rule is not None:
                object.__setattr__(self, one.name, rule.checked(flag(one.name), value))
            elif one.name in PAIRS and not isinstance(value, Mapping):
                raise UsageError(f"{PAIRS[one.name]} {value}: give names with their values")
        object.__setattr__(self, "output", Path(self.output))
        object.__setattr__(self, "classes", None if self.classes is None else Path(self.classes))
        object.__setattr__(self, "augself", _weights(self.augself))
        if isinstance(self.report_to, str):
            raise UsageError(f"--report-to {self.report_to}: give several names, or none")
        object.__setattr__(self, "report_to", tuple(self.report_to))
        if isinstance(self.column, str):
            raise UsageError(f"--column {self.column}: give several ROLE=NAME, or none")
        object.__setattr__(self, "column", tuple(self.column))
        Columns.parse(self.column)
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs "
                f"{self.epochs:g}: give fewer"
            )
        if self.private and self.push_to_hub is None:
            raise UsageError("--private would have no effect: give --push-to-hub, or leave it out")
        if self.method == FROZEN and not self.augself:
            raise UsageError("--augself names no head to fit: give one, e.g. crop=1,color=1")
        if self.method == FROZEN and self.matcher == JOINT:
            raise UsageError(
                "--matcher joint trains the encoder, which fit-heads leaves as it is: give after"
            )
        if self.matcher == "off" and self.matcher_options:
            raise UsageError("--matcher-option would have no effect with --matcher off")
        if self.classes is not None and not self.classes.is_file():
            raise UsageError(f"--classes {self.classes}: there is no such file")


class Options(TypedDict, total=False):
    """The fields of `Settings` but data and output, for those who give some of them by name."""

    method: str
    method_options: dict[str, Any]
    encoder: str
    augself: dict[str, float]
    convention: str
    matcher: str | None
    matcher_options: dict[str, Any]
    size: int | None
    color_strength: float
    policy: dict[str, Any]
    normalization: str | None
    epochs: float | None
    batch_size: int | None
    base_lr: float
    optimizer: str
    schedule: str
    schedule_by: str
    warmup_epochs: float
    weight_decay: float
    seed: int
    workers: int | None
    decode: str
    max_skipped: float
    monitor_every: float
    held_out: str | None
    epoch_images: int | None
    classes: Path | None
    split: str | None
    column: tuple[str, ...]
    read_as: str | None
    stream: bool
    license: str
    report_to: tuple[str, ...]
    push_to_hub: str | None
    private: bool
    arguments: dict[str, Any]


def flag(name: str) -> str:
    """How the command line calls a field."""
    return PAIRS.get(name, f"--{name.replace('_', '-')}")


def _weights(augself: Any) -> dict[str, float]:
    """kind -> lambda. A negative one would maximise the error, 0 publish an untrained head."""
    if not isinstance(augself, Mapping):
        raise UsageError(f"--augself {augself}: give kinds with their weights, e.g. crop=1")
    return {
        kind: _POSITIVE.checked(f"--augself: the weight of {kind} is", weight)
        for kind, weight in augself.items()
    }


def command_line(settings: Settings) -> str:
    """The `augself` command of a run; folders by their last name only."""
    fit = settings.method == FROZEN
    defaults = {o.name: o.default for o in dataclasses.fields(Settings)}
    defaults |= FROZEN_DEFAULTS if fit else {}
    words = [f"augself fit-heads {source_name(settings.encoder)}" if fit else "augself pretrain"]
    for option in dataclasses.fields(Settings):
        if fit and option.name in ("method", "encoder"):
            continue
        value = getattr(settings, option.name)
        name = flag(option.name)
        if option.name == "augself":
            words.append(f"{name} {weights_text(value) or chr(39) * 2}")
        elif option.name in PAIRS:
            for key, given in value.items():
                text = ",".join(map(str, given)) if isinstance(given, tuple | list) else str(given)
                words.append(f"{PAIRS[option.name]} {shlex.quote(f'{key}={text}')}")
        elif option.name == "column":
            words += [f"{name} {shlex.quote(pair)}" for pair in value]
        elif value is True:
            words.append(name)
        elif option.name in ("data", "held_out") and value is not None:
            words.append(f"{name} {source_name(value)}")
        elif value != defaults[option.name] or (
            # Without it a command could mean another value elsewhere; workers decide nothing.
            option.name in CHOSEN and option.name != "workers"
        ):
            words.append(f"{name} {_short(value)}")
    return " ".join(words)


def source_name(source: str) -> str:
    """A source without the folders above its last one, which are nobody's business."""
    if "://" not in source and ("wds:" in source or any(sign in source for sign in "*?[{")):
        kind, colon, pattern = source.rpartition(":")
        return kind + colon + Path(pattern).name
    kind, colon, place = source.rpartition(":")
    return kind + colon + Path(place).resolve().name if Path(place).exists() else source


def _short(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """As few digits as give this very number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def weights_text(augself: dict[str, float]) -> str:
    """crop=1,color=0.5, as --augself takes it."""
    return ",".join(f"{kind}={_number(weight)}" for kind, weight in augself.items())


def policy_of(settings: Settings) -> Policy:
    """How the views of a run are drawn.

    Raises:
        UsageError: a field `Policy` has not, or a value out of its range.
    """
    known = {f.name for f in dataclasses.fields(Policy)} - {"size"}
    if unknown := sorted(set(settings.policy) - known):
        raise UsageError(f"the policy has no {unknown[0]!r}: use {', '.join(sorted(known))}")
    given = {name: _policy_value(name, value) for name, value in settings.policy.items()}
    policy = Policy(size=settings.size, **given).with_color_strength(settings.color_strength)
    for name in known - set(CHOICES):
        value = getattr(policy, name)
        low, high = value if name in RANGES else (value, value)
        least, most = RANGES.get(name, (0.0, LIMITS.get(name, 1.0)))
        if not least <= low <= high <= most:
            raise UsageError(
                f"{name} of the views would be {value}: give {least:g} to {most:g}, by --policy or "
                "--color-strength"
            )
    return policy.with_kinds(set(settings.augself) - set(given))


RANGES = {"scale": (1e-6, 1.0), "ratio": (1e-3, 1e3), "sigma": (1e-3, 1e3)}
LIMITS = {"hue": 0.5, "brightness": 100.0, "contrast": 100.0, "saturation": 100.0}


def _policy_value(name: str, value: Any) -> Any:
    """Two numbers for a range, a word where there are words to choose from, one number else."""
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise UsageError(f"policy {name}={value!r}: use {' or '.join(CHOICES[name])}")
        return value
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    wanted = 2 if name in RANGES else 1
    if len(numbers) != wanted or not all(type(n) in (int, float) for n in numbers):
        form = "LOW,HIGH" if wanted == 2 else "one number"
        raise UsageError(f"policy {name}={value!r} is not of the form {name}={form}")
    return tuple(map(float, numbers)) if wanted == 2 else float(numbers[0])
