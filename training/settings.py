"""What one run is made of, and the command line that asks for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What one run is made of.

    Args:
        data: where the images are (see `sources`).
        output: folder of the run: checkpoints, logs and, at the end, model/.
        method: a key of METHODS.
        encoder: a key of ENCODERS, a folder or a Hub id to continue from.
        augself: kind -> lambda; empty trains the method alone.
        convention: target convention of the AugSelf losses.
        size: side of the views in pixels.
        epochs, batch_size, base_lr, weight_decay: SGD, momentum 0.9, cosine to 0,
            lr = base_lr * batch_size / 256. A batch is what one step of the optimizer sees: all
            processes and all accumulated parts together.
        seed: of initialisation, order and views.
        workers: decoding processes.
        held_out: images for the final evaluation; None holds out 5% of `data`.
        classes: file with a class name a line; only their images are used.
        license: of the resulting model, for its card.
        arguments: further fields of transformers' TrainingArguments.
    """

    data: str
    output: Path
    method: str = "simsiam"
    encoder: str = "resnet18"
    augself: dict[str, float] = field(default_factory=lambda: {"crop": 1.0, "color": 1.0})
    convention: str = "relative"
    size: int = 96
    epochs: float = 200
    batch_size: int = 256
    base_lr: float = 0.03
    weight_decay: float = 5e-4
    seed: int = 0
    workers: int = 2
    held_out: str | None = None
    classes: Path | None = None
    license: str = "other"
    arguments: dict[str, Any] = field(default_factory=dict)


def command_line(settings: Settings) -> str:
    """The `augself pretrain` command of a run; folders by their last name only."""
    words = ["augself pretrain"]
    for option in dataclasses.fields(Settings):
        value = getattr(settings, option.name)
        flag = f"--{option.name.replace('_', '-')}"
        if option.name == "augself":
            words.append(f"{flag} {weights_text(value) or chr(39) * 2}")
        elif option.name == "arguments":
            words += [f"--set {name}={setting}" for name, setting in value.items()]
        elif option.name in ("data", "held_out") and value is not None:
            words.append(f"{flag} {source_name(value)}")
        elif value != option.default:
            words.append(f"{flag} {_short(value)}")
    return " ".join(words)


def source_name(source: str) -> str:
    """A source without the folders above its last one, which are nobody's business."""
    kind, colon, place = source.rpartition(":")
    return kind + colon + Path(place).resolve().name if Path(place).exists() else source


def _short(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    return f"{value:g}" if isinstance(value, float) else str(value)


def weights_text(augself: dict[str, float]) -> str:
    """crop=1,color=0.5, as --augself takes it."""
    return ",".join(f"{kind}={weight:g}" for kind, weight in augself.items())
