"""What commands of this part share: how a model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from augself_hub.options import Option
from augself_hub.precision import PRECISIONS

DEVICES = "auto|cpu|openvino|cuda|tensorrt"


def running(option: Callable[..., Any]) -> list[Option[Any]]:
    """--device, --precision and --decode, made by `click.option` or by `grouped`."""
    return [
        option(
            "--device",
            metavar=DEVICES,
            default="auto",
            show_default=True,
            help="auto: CUDA where it can be used, else the CPU. Any other is used or refused.",
        ),
        option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="fp32",
            show_default=True,
            help="bf16 needs OpenVINO; int8 (CPUs) and fp16 (GPUs) need a model that augself "
            "export --quantize has made.",
        ),
        option(
            "--decode",
            metavar="exact|fast",
            default="exact",
            show_default=True,
            help="fast decodes large JPEGs at reduced size: quicker, features differ a little.",
        ),
    ]
