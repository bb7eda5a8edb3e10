"""What one run is made of, and the command line that asks for it."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augself_hub.augmentations.spec import Policy
from augself_hub.errors import UsageError

FROZEN = "frozen"  # what `augself fit-heads` puts in a method's place
NORMALIZATIONS = ("imagenet", "stl10")
PAIRS = {"method_options": "--method-option", "policy": "--policy", "arguments": "--set"}


@dataclass(frozen=True)
class Settings:
    """What one run is made of.

    Args:
        data: where the images are (see `sources`).
        output: folder of the run: checkpoints, logs and, at the end, model/.
        method: a key of METHODS.
        method_options: the method's own hyperparameters, by their names in its constructor.
        encoder: a key of ENCODERS, a folder or a Hub id to continue from.
        augself: kind -> lambda; empty trains the method alone.
        convention: target convention of the AugSelf losses.
        size: side of the views in pixels.
        color_strength: times jitter ranges and the share of gray views; 2 is AugSelf's strong
            colour, 0.5 its weak one.
        policy: further fields of `Policy`, which says how views are drawn.
        normalization: imagenet or stl10; None: the encoder's own, of a preset ImageNet's.
        epochs, batch_size, base_lr, weight_decay: SGD, momentum 0.9, cosine to 0,
            lr = base_lr * batch_size / 256. A batch is what one step of the optimizer sees: all
            processes and all accumulated parts together.
        seed: of initialisation, order and views.
        workers: decoding processes.
        max_skipped: the share of the images that may be unreadable.
        held_out: images for the evaluation; None holds out 5% of `data`.
        monitor_every: epochs from one evaluation of the monitor to the next; 0: only the last.
        epoch_images: how many images make an epoch of a stream.
        classes: file with a class name a line; only their images are used.
        license: of the resulting model, for its card.
        report_to: who is told of the log beside training_log.json, e.g. tensorboard.
        push_to_hub: org/name to publish the model as, in the end.
        private: a new repository is private.
        arguments: further fields of transformers' TrainingArguments.
    """

    data: str
    output: Path
    method: str = "simsiam"
    method_options: dict[str, Any] = field(default_factory=dict)
    encoder: str = "resnet18"
    augself: dict[str, float] = field(default_factory=lambda: {"crop": 1.0, "color": 1.0})
    convention: str = "relative"
    size: int = 96
    color_strength: float = 1.0
    policy: dict[str, Any] = field(default_factory=dict)
    normalization: str | None = None
    epochs: float = 200
    batch_size: int = 256
    base_lr: float = 0.03
    weight_decay: float = 5e-4
    seed: int = 0
    workers: int = 2
    max_skipped: float = 0.1
    monitor_every: float = 10.0
    held_out: str | None = None
    epoch_images: int | None = None
    classes: Path | None = None
    license: str = "other"
    report_to: tuple[str, ...] = ("tensorboard",)
    push_to_hub: str | None = None
    private: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def command_line(settings: Settings) -> str:
    """The `augself` command of a run; folders by their last name only."""
    fit = settings.method == FROZEN
    words = [f"augself fit-heads {source_name(settings.encoder)}" if fit else "augself pretrain"]
    for option in dataclasses.fields(Settings):
        if fit and option.name in ("method", "encoder"):
            continue
        value = getattr(settings, option.name)
        flag = f"--{option.name.replace('_', '-')}"
        if option.name == "augself":
            words.append(f"{flag} {weights_text(value) or chr(39) * 2}")
        elif option.name in PAIRS:
            words += [f"{PAIRS[option.name]} {_pair(*pair)}" for pair in value.items()]
        elif value is True:
            words.append(flag)
        elif option.name in ("data", "held_out") and value is not None:
            words.append(f"{flag} {source_name(value)}")
        elif value != option.default:
            words.append(f"{flag} {_short(value)}")
    return " ".join(words)


def _pair(name: str, value: Any) -> str:
    """NAME=VALUE, as one word of a shell."""
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return shlex.quote(f"{name}={text}")


def source_name(source: str) -> str:
    """A source without the folders above its last one, which are nobody's business."""
    if "wds:" in source and "://" not in source:
        kind, colon, pattern = source.partition("wds:")
        return kind + colon + Path(pattern).name
    kind, colon, place = source.rpartition(":")
    return kind + colon + Path(place).resolve().name if Path(place).exists() else source


def _short(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def weights_text(augself: dict[str, float]) -> str:
    """crop=1,color=0.5, as --augself takes it."""
    return ",".join(f"{kind}={weight:g}" for kind, weight in augself.items())


def policy_of(settings: Settings) -> Policy:
    """How the views of a run are drawn.

    Raises:
        UsageError: a field `Policy` has not, or a value out of its range.
    """
    known = {f.name for f in dataclasses.fields(Policy)} - {"size"}
    if unknown := sorted(set(settings.policy) - known):
        raise UsageError(f"the policy has no {unknown[0]!r}: use {', '.join(sorted(known))}")
    given = {name: _number_or_pair(name, value) for name, value in settings.policy.items()}
    policy = Policy(size=settings.size, **given).with_color_strength(settings.color_strength)
    for name in known:
        _check_range(name, getattr(policy, name))
    return policy.with_kinds(set(settings.augself) - set(given))


RANGES = {"scale": (1e-6, 1.0), "ratio": (1e-3, 1e3), "sigma": (1e-3, 1e3)}
LIMITS = {"hue": 0.5, "brightness": 100.0, "contrast": 100.0, "saturation": 100.0}


def _number_or_pair(name: str, value: Any) -> Any:
    """Two numbers for a range, one for the rest."""
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    wanted = 2 if name in RANGES else 1
    if len(numbers) != wanted or not all(type(n) in (int, float) for n in numbers):
        form = "LOW,HIGH" if wanted == 2 else "one number"
        raise UsageError(f"policy {name}={value!r} is not of the form {name}={form}")
    return tuple(map(float, numbers)) if wanted == 2 else float(numbers[0])


def _check_range(name: str, value: Any) -> None:
    low, high = value if name in RANGES else (value, value)
    least, most = RANGES.get(name, (0.0, LIMITS.get(name, 1.0)))
    if not least <= low <= high <= most:
        raise UsageError(
            f"{name} of the views would be {value}: give {least:g} to {most:g}, by --policy or "
            "--color-strength"
        )
